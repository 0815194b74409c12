"""How deeply a JSON text is nested, asked before anything decodes it."""

from __future__ import annotations

import re

from devmesh.core import errors

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_KEPT = b'[]{}"'
_OTHERS = bytes(set(range(256)) - set(_KEPT))
_ONE_KIND = bytes.maketrans(b"[]", b"{}")


def require_depth(raw: bytes | memoryview, depth_max: int) -> None:
    """Raises invalid_params for a text that is nested more deeply. One with few brackets is not looked at twice."""
    text = bytes(raw)
    if text.count(b"[") + text.count(b"{") <= depth_max:
        return
    brackets = _brackets(text)
    for _ in range(depth_max):
        left = brackets.replace(b"{}", b"")  # the innermost pairs go
        if left == brackets:  # nothing is left, or what is not well-formed, which is for the decoder to say
            return
        brackets = left
    if brackets:
        raise errors.invalid(f"the parameters are nested more than {depth_max} levels deep")


def _brackets(text: bytes) -> bytes:
    """The brackets of a text, all of one kind, without those inside of strings. Without a loop: texts may be long."""
    if b"\\" in text:
        text = _STRING.sub(b"", text)
    text = text.translate(_ONE_KIND, _OTHERS).replace(b'""', b"")
    return _STRING.sub(b"", text) if b'"' in text else text
