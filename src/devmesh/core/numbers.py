"""Numbers that JSON has not: NaN and the infinities, which would become null without a word."""

from __future__ import annotations

import math
import re

# As MessagePack writes them in 4 or in 8 bytes. Apart, each is found ten times as fast as both together.
_OF_4_BYTES, _OF_8_BYTES = re.compile(rb"\xca[\x7f\xff][\x80-\xff]"), re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")


def may_be_infinite(packed: bytes | memoryview) -> bool:
    """Whether MessagePack may hold such a number: it does, or a text or a number in it only looks like that."""
    return bool(_OF_8_BYTES.search(packed) or _OF_4_BYTES.search(packed))


def not_finite(value: object) -> float | None:
    """The first such number in a value of dicts and lists, however deep, or None."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, float):
            if not math.isfinite(each):
                return each
        elif isinstance(each, dict):
            left += each.values()
        elif isinstance(each, list | tuple):
            left += each
    return None
