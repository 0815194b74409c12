"""The depth of JSON texts, against a reading of each character."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmesh.core.depth import require_depth
from devmesh.core.errors import MeshError

leaves = st.none() | st.integers() | st.text('ab[]{}"\\,: ')
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('a[{"}]'), inner, max_size=4)
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max((depth(inner) for inner in value), default=0) if isinstance(value, list) else 0


def is_refused(text: str, depth_max: int) -> bool:
    try:
        require_depth(text.encode(), depth_max)
    except MeshError:
        return True
    return False


@given(values, st.booleans())
def test_a_text_is_refused_just_when_it_is_nested_more_deeply(value: Any, is_ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii)
    for depth_max in range(6):
        assert is_refused(text, depth_max) == (depth(value) > depth_max)


@pytest.mark.parametrize("text", ["[" * 5, "]" * 5, '[[[["', '{"a": [{]', '"[[[[', "[}[}[}[}"])
def test_what_is_not_well_formed_is_left_to_the_decoder(text: str) -> None:
    assert not is_refused(text, 3)
