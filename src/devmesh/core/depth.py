"""How deeply a JSON text is nested, asked before anything decodes it."""

from __future__ import annotations

import re

from devmesh.core import errors

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(rb"[\[{\]}]")


def require_depth(raw: bytes | memoryview, depth_max: int) -> None:
    """Raises invalid_params for a text that is nested more deeply. One with few brackets is not looked at twice."""
    text = bytes(raw)
    if text.count(b"[") + text.count(b"{") <= depth_max:
        return
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", text)):
        depth += 1 if bracket in b"[{" else -1
        if depth > depth_max:
            raise errors.invalid(f"the parameters are nested more than {depth_max} levels deep")
