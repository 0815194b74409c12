"""A WebSocket client that costs next to nothing, because it shares its processors with the server that it measures.

It sends frames that were made beforehand and hands over the payloads that come; no extensions, no fragments, and a mask of
zeros, which leaves a payload as it is. Not for users: `devmesh.client` is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self, cast

import msgspec

SUBPROTOCOL = "devmesh.v1.json"
OPEN_LIMIT_S = 60.0
CALL_LIMIT_S = 60.0
_TEXT, _CLOSE, _PING, _PONG = 0x1, 0x8, 0x9, 0xA

Receiver = Callable[[bytes], None]


class Refused(Exception):
    """The server would not have the connection, or answered a call of the preparation with an error."""


def request(method: str, params: dict[str, Any] | None = None, request_id: int = 1) -> bytes:
    """The frame of a JSON-RPC request."""
    message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params or {}}
    return frame(msgspec.json.encode(message))


def frame(payload: bytes, opcode: int = _TEXT) -> bytes:
    length = len(payload)
    if length < 126:
        head = bytes((0x80 | opcode, 0x80 | length))
    elif length < 1 << 16:
        head = bytes((0x80 | opcode, 0x80 | 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + length.to_bytes(8, "big")
    return head + b"\0\0\0\0" + payload


def is_result(payload: bytes) -> bool:
    """Whether a reply, to a request with a short id, is no error."""
    return b'"result":' in payload[:48]


class Connection(asyncio.Protocol):
    """One connection. What it receives goes to `receiver`, which may be replaced at any time."""

    __slots__ = ("_open", "_rest", "is_closed", "receiver", "transport")

    def __init__(self) -> None:
        self.receiver: Receiver = _ignore
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # until connection_made
        self.is_closed = False
        self._rest = b""
        self._open: asyncio.Future[None] | None = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(cls, host: str, port: int, key: str, *, local_host: str | None = None) -> Self:
        """Opens a connection with a key in its header. It still has to be initialized."""
        loop = asyncio.get_running_loop()
        local = (local_host, 0) if local_host is not None else None
        async with asyncio.timeout(OPEN_LIMIT_S):
            _, connection = await loop.create_connection(cls, host, port, local_addr=local)
            connection.transport.write(
                f"GET /ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
                "User-Agent: bench\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
                f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
            )
            assert connection._open is not None
            await connection._open
        connection._open = None
        return connection

    def send(self, framed: bytes) -> None:
        self.transport.write(framed)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a call of the preparation: decoded, one at a time, not for load."""
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        before = self.receiver

        def receive(payload: bytes) -> None:
            message = msgspec.json.decode(payload)
            if "id" not in message:
                before(payload)
            elif not answer.done():
                answer.set_result(message)

        self.receiver = receive
        self.send(request(method, params))
        try:
            async with asyncio.timeout(CALL_LIMIT_S):
                message = await answer
        finally:
            self.receiver = before
        if "error" in message:
            raise Refused(f"{method}: {message['error']}")
        result: dict[str, Any] = message["result"]
        return result

    def close(self) -> None:
        self.transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's own class has the same methods

    def connection_lost(self, _: Exception | None) -> None:
        self.is_closed = True
        if self._open is not None and not self._open.done():
            self._open.set_exception(Refused("the server closed the connection before it was open"))

    def data_received(self, data: bytes) -> None:
        self._rest = self._rest + data if self._rest else data
        if self._open is None or self._open.done() or self._take_handshake():
            self._take_frames()

    def _take_handshake(self) -> bool:
        """Whether the answer to the handshake is there as a whole."""
        assert self._open is not None
        answer, end, self._rest = self._rest.partition(b"\r\n\r\n")
        if not end:
            self._rest = answer
        elif answer.startswith(b"HTTP/1.1 101"):
            self._open.set_result(None)
        else:
            self._open.set_exception(Refused(answer.decode(errors="replace")))
        return bool(end)

    def _take_frames(self) -> None:
        data = self._rest
        at, end = 0, len(data)
        while end - at >= 2:
            length, start = data[at + 1], at + 2
            if length == 126:
                length, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif length == 127:
                length, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            if end < start + length:
                break
            opcode, at = data[at] & 0xF, start + length
            if opcode == _TEXT:
                self.receiver(data[start:at])
            elif opcode == _PING:
                self.transport.write(frame(data[start:at], _PONG))
            elif opcode == _CLOSE:
                self.is_closed = True
        self._rest = data[at:]


def _ignore(_: bytes) -> None:
    """What nobody waits for."""
