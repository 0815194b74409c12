"""What a refusal says of parameters that are none: the field, and what it is to be, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import msgspec.inspect as types
import pytest

from devmesh import operations
from devmesh.core.errors import MeshError
from devmesh.core.names import IN_WORDS
from devmesh.operations.registry import REGISTRY


def parts(of: Any, seen: set[type]) -> Iterator[types.Type]:
    """A described type and all that it is made of."""
    if isinstance(of, list | tuple):
        for one in of:
            yield from parts(one, seen)
    elif isinstance(of, types.StructType):
        if of.cls not in seen:
            seen.add(of.cls)
            yield from parts([field.type for field in of.fields], seen)
    elif isinstance(of, types.Type):
        yield of
        yield from parts([getattr(of, name) for name in of.__struct_fields__], seen)


def test_each_pattern_is_said_in_words() -> None:
    operations.load_all()
    asked = [part for each in REGISTRY.values() for part in parts(types.type_info(each.params), set())]
    patterns = {part.pattern for part in asked if isinstance(part, types.StrType) and part.pattern is not None}
    assert len(patterns) > 5
    assert patterns <= IN_WORDS.keys()


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("job.enqueue", {"type": "a b"}, "type: expected letters (a-z, A-Z), digits and _.:/+-,"),
        ("job.enqueue_many", {"jobs": [{"type": "a", "tags": ["b", "-"]}]}, "jobs[0].tags[1]: expected letters (a-z,"),
        ("job.enqueue", {"type": "a", "unique_key": "a\u0000"}, "unique_key: expected a text without NUL (\\u0000),"),
        ("schedule.create", {"name": "a\nb"}, "name: expected a text without line breaks"),
        (
            "schedule.create",
            {"name": "a", "time_zone": "The Moon"},
            "time_zone: expected the name of a time zone, as in",
        ),
        ("tenant.create", {"name": "A"}, "name: expected 1 to 63 letters (a-z), digits, _ and -"),
    ],
)
def test_a_text_of_another_form_is_told_what_it_is_to_be(method: str, params: dict[str, Any], message: str) -> None:
    operations.load_all()
    with pytest.raises(MeshError) as refused:
        REGISTRY[method].decode(msgspec.json.encode(params))
    assert refused.value.message.startswith(message)
