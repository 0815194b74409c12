"""Halves of characters in JSON texts, against what the decoder takes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from devmesh.core.surrogates import half_of_a_character

PIECES = [r"\ud800", r"\uDBFF", r"\udc00", r"\uDFff", r"\\", r"\n", r"\u0041", "ud800", "x"]


def is_taken(raw: bytes) -> bool:
    try:
        msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return False
    return True


@given(st.lists(st.sampled_from(PIECES), max_size=8))
@example([r"\\", "ud800"])
@example([r"\ud800", r"\\", r"\udc00"])
@example([r"\ud800", r"\udc00", r"\udc00"])
def test_a_text_of_escapes_is_refused_exactly_when_it_has_half_of_a_character(pieces: list[str]) -> None:
    raw = f'"{"".join(pieces)}"'.encode()
    assert is_taken(raw) == (half_of_a_character(raw) is None)


@pytest.mark.parametrize("half", [r"\ud83d", r"\uDE00"])
def test_it_is_named_with_what_to_do(half: str) -> None:
    told = half_of_a_character(f'{{"a": ["{half}"]}}'.encode())
    assert told == f"{half} is half of a character (a lone surrogate): write both halves, or leave it out"
