"""uvicorn's HTTP, with bounds that it does not have itself: how long a request may take to come, and how long its head may be.

Otherwise whoever opens connections and says nothing, or never comes to an end, holds memory and open files for as long as it
likes. What is no HTTP gets a problem as its answer, as everything else does. Must not know what is asked for.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import ClassVar

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from devmesh.core.errors import Kind, MeshError
from devmesh.edges.problem import HEAD_TOO_LONG, MEDIA_TYPE, TOO_SLOW, problem_of, status_of

# Of a request's scope; its `abort` ends the connection at once, whatever still waits to be sent.
EXTENSION = "devmesh"
HEAD_BYTES_MAX = 65_536  # and what has come with its end


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    head_limit_s: ClassVar[float]
    body_limit_s: ClassVar[float]

    _timer: asyncio.TimerHandle | None = None  # while a request is on its way
    _is_head_due = True
    _is_begun = False  # something of a request has come
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._time(self.head_limit_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._is_head_due and self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self._refuse(f"the head of a request has {HEAD_BYTES_MAX} bytes at the most", HEAD_TOO_LONG)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: {"abort": self.transport.abort}}
        self._is_begun = True
        if not self._is_head_due:
            self._is_head_due, self._head_bytes = True, 0
            self._time(self.head_limit_s)

    def on_headers_complete(self) -> None:
        self._is_head_due = False
        self._stop_timing()
        if not self.parser.should_upgrade():
            self._time(self.body_limit_s)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_timing()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse("this is not HTTP/1.1 as its standard has it")

    def _time(self, limit_s: float) -> None:
        self._stop_timing()
        self._timer = self.loop.call_later(limit_s, self._is_late)

    def _stop_timing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_late(self) -> None:
        self._timer = None
        cycle: RequestResponseCycle | None = self.cycle
        answering = cycle if cycle is not None and not cycle.response_complete else None
        if self._is_head_due and answering is not None:  # of an earlier request: its sender may well wait for that
            self._time(self.head_limit_s)
        elif not self._is_begun or (answering is not None and answering.response_started):
            self.transport.close()
        else:
            self._refuse("the request took too long to come", TOO_SLOW)

    def _refuse(self, message: str, reason: str | None = None) -> None:
        """Answers for good: what else comes on this connection is not understood any more."""
        self._stop_timing()
        error = MeshError(Kind.INVALID_REQUEST, message, reason=reason)
        body, status = msgspec.json.encode(problem_of(error)), status_of(error)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def guarded(head_limit_s: float, body_limit_s: float) -> type[GuardedProtocol]:
    """The protocol with its limits; a server makes one for each connection."""
    return type("GuardedProtocol", (GuardedProtocol,), {"head_limit_s": head_limit_s, "body_limit_s": body_limit_s})
