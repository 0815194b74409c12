"""The shapes of answers, made known to the decoder before two threads can meet over one.

msgspec describes a struct to itself when it first decodes one. Another thread that decodes the same one in that moment reads a
description that is half made, and the process ends with a segmentation fault. An agent and a worker decode in two threads from
their first moment on: in their own and in their heart's.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

OURS = ("devmesh.client.", "devmesh.core.")


def make_ready() -> None:
    """Describes all that is declared by now. Once, where the client is imported."""
    for shape in _declared(msgspec.Struct):
        if shape.__module__.startswith(OURS):
            msgspec.json.Decoder(shape)


def _declared(above: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for shape in above.__subclasses__():
        yield shape
        yield from _declared(shape)
