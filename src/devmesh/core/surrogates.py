"""Halves of characters: JSON may write one beyond the first 65,536 as two escapes, and neither half is a character alone.

Decoders refuse them, some with words that say something else. Asked when a text was refused, to tell why.
"""

from __future__ import annotations

import re

_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH, _LOW))


def half_of_a_character(raw: bytes | memoryview) -> str | None:
    """What is wrong with a JSON text that has one: the first, and what to do. None: there is none."""
    found = _HALF.search(bytes(raw).replace(rb"\\", b".."))  # a backslash that is meant begins no escape
    if found is None:
        return None
    return f"{found[0].decode()} is half of a character (a lone surrogate): write both halves, or leave it out"
