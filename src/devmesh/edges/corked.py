"""The server's WebSocket protocol, made to write once in a turn of the loop whatever was sent in it.

Each write is a system call, the costliest part of a short reply. Who asks much on one connection, or is refused much, gets its
replies together. Must not know what is sent.
"""

from __future__ import annotations

import asyncio
from asyncio.transports import BaseTransport
from typing import Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

HELD_BYTES_MAX = 1 << 16  # then it is written at once, so that the transport can say that it is full


class CorkedProtocol(WebSocketsSansIOProtocol):
    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast("BaseTransport", Corked(cast("asyncio.Transport", transport), self.loop)))


class Corked:
    """A transport as the protocol needs it."""

    __slots__ = ("_held_bytes", "_loop", "_parts", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] | None = None  # none most of the time
        self._held_bytes = 0

    def write(self, data: bytes) -> None:
        if self._parts is None:
            self._parts = []
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > HELD_BYTES_MAX:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if self._parts is not None:
            parts, self._parts, self._held_bytes = self._parts, None, 0
            self._transport.write(b"".join(parts))
