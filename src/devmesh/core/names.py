"""The shapes of names that people choose: short enough to read, plain enough to stand in a topic, a lane or a path."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable
from typing import Annotated

from msgspec import UNSET, Meta, Raw, UnsetType

from devmesh.core import errors

IN_WORDS: dict[str, str] = {}


def like(pattern: str, in_words: str) -> str:
    """A pattern for texts. Who gives another text is told in words what it is to be: "expected" them."""
    IN_WORDS[pattern] = in_words
    return pattern


# The end is `$(?!\n)`, because Python's `$` alone lets a line break follow.
ON_ONE_LINE = like(r"^[^\x00-\x1f\x7f]+$(?!\n)", "a text without line breaks and other control characters")
WITHOUT_NUL = like(r"^[^\x00]*$", "a text without NUL (\\u0000), which cannot be stored: remove it")
PLAIN = like(
    r"^[A-Za-z0-9][A-Za-z0-9_.:/+-]*$(?!\n)",
    "letters (a-z, A-Z), digits and _.:/+-, of which a letter or a digit is first",
)
Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=ON_ONE_LINE)]
Label = Annotated[str, Meta(min_length=1, max_length=100, pattern=PLAIN)]
Text = Annotated[str, Meta(max_length=20_000, pattern=WITHOUT_NUL)]
Labels = Annotated[list[Label], Meta(max_length=64)]
PageLimit = Annotated[int, Meta(ge=1, le=200)]
WaitMs = Annotated[int, Meta(ge=0, le=60_000)]
# A time with its zone. The registry sees to the years: a time of the first or the last may be none in another zone.
Moment = Annotated[datetime.datetime, Meta(tz=True, extra_json_schema={"pattern": "^(?!000[01]|9999)"})]
Version = Annotated[int, Meta(ge=0, le=2_147_483_647)]  # of a thing; the first is 1
IdempotencyKey = Annotated[str, Meta(min_length=1, max_length=255, pattern=ON_ONE_LINE)]
PAGE_BYTES_MAX = 1 << 20  # of what one page shows, unless a single thing is larger
PageCursor = Annotated[str, Meta(extra_json_schema={"pattern": "^[0-9a-f]{32}$"})]

UUID_PATTERN = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
EMPTY_OBJECT = Raw(b"{}")


def require_object(value: Raw, field: str) -> Raw:
    """The caller's own JSON, when it is an object."""
    if not bytes(value).lstrip().startswith(b"{"):
        raise errors.invalid(f"{field}: expected a JSON object", field)
    return value


def optional_object(value: Raw | UnsetType, field: str) -> Raw | None:
    """The caller's own JSON object; None when it gave none, or null. (A Raw field cannot be declared as one or None.)"""
    if value is UNSET or bytes(value) == b"null":
        return None
    return require_object(value, field)


def decode_page_cursor(text: str | None, field: str = "cursor") -> uuid.UUID | None:
    """A page's cursor is the last id it showed; opaque to callers."""
    if text is None:
        return None
    try:
        return uuid.UUID(hex=text)
    except ValueError:
        raise errors.invalid("this is not a cursor that an answer has handed out", field) from None


def page_cursor(ids: list[uuid.UUID], limit: int) -> str | None:
    """The cursor of the next page, or None when this one was not full."""
    return ids[-1].hex if len(ids) == limit else None


def size_bytes(text: str | None) -> int:
    """What a text takes on the wire, about."""
    if text is None:
        return 0
    return len(text) if text.isascii() else len(text.encode())


def fitting(sizes_bytes: Iterable[int]) -> int:
    """How many of these things go on one page: as many as come to PAGE_BYTES_MAX, and the first however large it is."""
    count, total_bytes = 0, 0
    for size in sizes_bytes:
        total_bytes += size
        if total_bytes > PAGE_BYTES_MAX and count:
            break
        count += 1
    return count
