"""What goes on one page is counted in bytes as they are sent."""

from __future__ import annotations

from devmesh.core.names import PAGE_BYTES_MAX, fitting, size_bytes


def test_texts_have_the_size_of_their_bytes() -> None:
    assert [size_bytes(text) for text in (None, "", "abc", "漢", "a漢\U0001f600")] == [0, 0, 3, 3, 8]


def test_a_page_has_as_many_as_fit_and_the_first_however_large() -> None:
    third = PAGE_BYTES_MAX // 3
    assert [fitting(sizes) for sizes in ([], [third] * 5, [PAGE_BYTES_MAX + 1] * 2, [1, PAGE_BYTES_MAX])] == [
        0,
        3,
        1,
        1,
    ]
