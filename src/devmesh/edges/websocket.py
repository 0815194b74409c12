"""The agents' WebSocket: JSON-RPC 2.0 in frames of either codec. Translation and limits, nothing else.

Requests of one connection are served side by side, so a slow one never holds up a heartbeat; replies and events go out
through one bounded outbox, in the order they were made.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

import msgspec
import structlog
from msgspec import Raw

from devmesh import telemetry
from devmesh.core.access import Credential
from devmesh.core.errors import Kind, MeshError, unavailable
from devmesh.core.surrogates import half_of_a_character
from devmesh.edges.codecs import CODECS, JSON, Codec, Request
from devmesh.edges.credentials import peer_address, presented_secret
from devmesh.edges.session import Parts, Session
from devmesh.engine.outbox import Outbox
from devmesh.store.faults import translate

log = structlog.get_logger(__name__)

CLOSE_CREDENTIAL = 4001
CLOSE_NOT_INITIALIZED = 4002
CLOSE_SLOW_CONSUMER = 4008
CLOSE_GOING_AWAY = 1012
REST_S = 0.1  # in which a connection is not read that was refused for an overload, give or take a half
LATE_S = 0.005  # after it, in which what has waited meanwhile comes in

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class Gateway:
    """All connections of this process."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.connections: set[Connection] = set()
        self.requests: set[asyncio.Task[None]] = set()  # in flight
        self._emptied = asyncio.Event()  # while it is leaving
        self.is_leaving = False

    def application(self, elsewhere: Application) -> Application:
        """`/ws` is served here and other paths elsewhere. No router: its coroutines would stay with every connection."""

        def choose(scope: Message, receive: Receive, send: Send) -> Awaitable[None]:
            is_ours = scope["type"] == "websocket" and scope["path"] == "/ws"
            return (self.serve if is_ours else elsewhere)(scope, receive, send)

        return choose

    async def serve(self, scope: Message, receive: Receive, send: Send) -> None:
        """One connection, from its handshake to its end."""
        await receive()  # websocket.connect
        codec = next((CODECS[name] for name in scope["subprotocols"] if name in CODECS), None)
        await send({"type": "websocket.accept", "subprotocol": codec.subprotocol if codec else None})
        connection = Connection(self, codec or JSON, peer_address(scope), presented_secret(scope["headers"]), send)
        scope.clear()  # the server keeps it as long as the connection, which needs nothing more of its handshake
        self.connections.add(connection)
        telemetry.CONNECTIONS.inc()
        try:
            await connection.run(receive)
        finally:
            self.connections.discard(connection)
            telemetry.CONNECTIONS.dec()
            connection.ended()
            if not self.connections:
                self._emptied.set()

    def credentials_in_use(self) -> set[Credential]:
        """What open connections stand on."""
        callers = [connection.session.caller for connection in self.connections]
        return {caller.credential for caller in callers if caller is not None}

    def close_credentials(self, credentials: set[Credential]) -> None:
        """Closes the connections that stand on what is not valid any more."""
        for connection in list(self.connections):
            caller = connection.session.caller
            if caller is not None and caller.credential in credentials:
                connection.close(CLOSE_CREDENTIAL, "the credential is not valid any more")

    async def drain(self, limit_s: float) -> None:
        """Takes no new requests, lets those in flight end within a limit, and tells everybody to go elsewhere."""
        self.is_leaving = True
        if self.requests:
            await asyncio.wait(self.requests, timeout=limit_s)
        self._emptied.clear()
        for connection in list(self.connections):
            connection.close(CLOSE_GOING_AWAY, "the server is going away; reconnect and resume")
        if self.connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self._emptied.wait()


class Connection:
    __slots__ = (
        "_closing", "_codec", "_gateway", "_header_token", "_initialize_timer", "_is_flushing", "_late_until", "_must_rest",
        "_requests_in_flight", "_send", "outbox", "session",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, codec: Codec, address: str, header_token: str | None, send: Send) -> None:
        self._gateway, self._codec, self._header_token, self._send = gateway, codec, header_token, send
        self.outbox = Outbox(gateway.parts.settings.outbox_bytes_max, self._wake)
        self.session = Session(gateway.parts, codec, self.outbox, address)
        self._requests_in_flight = 0
        self._must_rest = False  # it was refused for an overload
        self._late_until = 0.0  # what comes until then has waited while nothing was read
        self._closing: tuple[int, str] | None = None
        self._is_flushing = False
        self._initialize_timer: asyncio.TimerHandle | None = None

    async def run(self, receive: Receive) -> None:
        """Reads until the connection ends."""
        limit_s = self._gateway.parts.settings.initialize_timeout_s
        late = (CLOSE_NOT_INITIALIZED, f"no `initialize` within {limit_s:g} s")
        self._initialize_timer = asyncio.get_running_loop().call_later(limit_s, lambda: self.close(*late))
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            telemetry.MESSAGES_RECEIVED.inc()
            text = message.get("text")
            data = text.encode() if text is not None else message["bytes"]
            is_unsure = text is None and self._codec.is_text  # nobody has looked whether a binary frame is UTF-8
            del message, text  # or an idle connection would keep what it said last
            if is_unsure and not _is_utf8(data):
                self._refuse(None, MeshError(Kind.PARSE_ERROR, "the message is not UTF-8"))
            else:
                await self._take(data)
            if self._must_rest:
                await self._rest()

    async def _rest(self) -> None:
        """Reads nothing for a while. Who asks for more than can be done is slowed down, and then refused much in one go."""
        self._must_rest = False
        await asyncio.sleep(REST_S * random.uniform(0.5, 1.5))  # noqa: S311  so that not all come back at once
        self._late_until = time.monotonic() + LATE_S

    def ended(self) -> None:
        """Requests under way go on: what they do is done whether or not somebody is there to hear it."""
        if self._initialize_timer is not None:
            self._initialize_timer.cancel()
        self._closing = self._closing or (CLOSE_GOING_AWAY, "")
        self.outbox.overflow()
        _keep(self._end_session())

    async def _end_session(self) -> None:
        """In a task of its own, because the database may take its time, and the socket is gone."""
        try:
            await self.session.close()
        except MeshError as error:
            log.warning("a session could not be ended and will be later", error=error.message)

    def close(self, code: int, reason: str) -> None:
        """Closes the connection once what is in the outbox has been sent."""
        if self._closing is None:
            self._closing = (code, reason)
            telemetry.CONNECTIONS_CLOSED.labels(code).inc()
            self._wake()

    async def _take(self, data: bytes) -> None:
        """One message: a request, or a batch of them."""
        settings = self._gateway.parts.settings
        if len(data) > settings.message_bytes_max:
            limit = settings.message_bytes_max
            self._refuse(None, MeshError(Kind.TOO_LARGE, f"a message has {limit} bytes at the most"))
            return
        try:
            parts = self._codec.parts(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._refuse(None, _malformed(data))
            return
        if parts is None:
            opened = self._open(data)
            if not isinstance(opened, Request):
                if opened is not None:
                    await self._send_reply(opened)
                return
            work = self._serve_one(opened)
        elif not parts:
            self._refuse(None, MeshError(Kind.INVALID_REQUEST, "a batch holds at least one request"))
            return
        elif len(parts) > settings.request_batch_max:
            limit = settings.request_batch_max
            self._refuse(None, MeshError(Kind.TOO_LARGE, f"a batch holds {limit} requests at the most"))
            return
        else:
            batch = [self._open(part) for part in parts]
            requests = sum(isinstance(part, Request) for part in batch)
            work = self._serve_batch(batch, requests)
            if not requests:  # nothing is in flight that would be counted: no more is read before these are refused
                await work
                return
        if self.session.caller is None:
            await work  # what was sent after `initialize` waits for it
        else:
            task = asyncio.get_running_loop().create_task(work)
            self._gateway.requests.add(task)
            task.add_done_callback(self._gateway.requests.discard)

    async def _serve_one(self, request: Request) -> None:
        await self._send_reply(await self._reply(request), requests=1)

    async def _serve_batch(self, opened: list[Request | bytes | None], requests: int) -> None:
        replies = await asyncio.gather(*(self._reply(part) for part in opened))
        answered = [reply for reply in replies if reply is not None]
        await self._send_reply(self._codec.batch(answered) if answered else None, requests)

    def _open(self, data: bytes | Raw) -> Request | bytes | None:
        """The request, if it is let in; otherwise the reply to it, None to a notification. Costs next to nothing."""
        request_id: object = None
        try:
            request = self._request(data)
            request_id = request.id
            self._let_in(request)
            return request
        except Exception as problem:
            return self._refusal(request_id, problem)

    async def _reply(self, opened: Request | bytes | None) -> bytes | None:
        """The reply to a request, or None to a notification. The wire boundary: nothing is raised beyond it."""
        if not isinstance(opened, Request):
            return opened
        try:
            result = await self._call(opened)
            return None if opened.id is msgspec.UNSET else self._codec.result(opened.id, result)
        except Exception as problem:
            return self._refusal(opened.id, problem)
        finally:
            self._gateway.parts.corridor.admission.leave(opened.method)

    def _refusal(self, request_id: object, problem: Exception) -> bytes | None:
        error = translate(problem)
        telemetry.ERRORS.labels(error.kind).inc()
        self._close_after(error)
        return None if request_id is msgspec.UNSET else self._codec.error(request_id, error.wire())

    def _request(self, data: bytes | Raw) -> Request:
        try:
            request = self._codec.request(data)
        except msgspec.ValidationError as problem:
            raise MeshError(Kind.INVALID_REQUEST, f"this is not a JSON-RPC 2.0 request: {problem}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _malformed(data) from None
        if request.jsonrpc != "2.0":
            raise MeshError(Kind.INVALID_REQUEST, 'a request has the member "jsonrpc" with the value "2.0"')
        return request

    def _let_in(self, request: Request) -> None:
        """Whether there is room for it: in this connection, and in this process."""
        if self._gateway.is_leaving:
            raise unavailable("this server is going away; reconnect to another")
        limit = self._gateway.parts.settings.requests_in_flight_max
        if self._requests_in_flight >= limit:
            telemetry.REQUESTS_REFUSED.labels("in flight").inc()
            message = f"this connection has {limit} requests in flight already; wait for answers"
            raise MeshError(Kind.RATE_LIMITED, message, retry_after_ms=100, reason="requests_in_flight")
        is_late = self._late_until > 0.0 and time.monotonic() < self._late_until
        try:
            self._gateway.parts.corridor.admission.enter(request.method, is_late=is_late)
        except MeshError:
            self._must_rest = not is_late
            raise
        self._requests_in_flight += 1

    async def _call(self, request: Request) -> bytes | Raw:
        try:
            params = self._codec.params(request.params)
        except (msgspec.MsgspecError, TypeError, UnicodeDecodeError, RecursionError):
            raise MeshError(Kind.INVALID_PARAMS, "the parameters are not well-formed") from None
        result = await self.session.call(request.method, params, self._header_token)
        if self._initialize_timer is not None and self.session.caller is not None:
            self._initialize_timer.cancel()
            self._initialize_timer = None
        return result

    def _close_after(self, error: MeshError) -> None:
        """A credential that was refused ends the connection, after its own error has been sent."""
        reason = error.data.reason or ""
        if self.session.caller is None and reason.startswith("credential."):
            asyncio.get_running_loop().call_soon(self.close, CLOSE_CREDENTIAL, reason)

    def _refuse(self, request_id: object, error: MeshError) -> None:
        telemetry.ERRORS.labels(error.kind).inc()
        self.outbox.put(self._codec.error(request_id, error.wire()))

    async def _send_reply(self, reply: bytes | None, requests: int = 0) -> None:
        """Puts the reply to so many requests into the outbox and sends it at once, unless somebody is sending what is there.

        Until there is room for it they stay in flight: for who does not read, no ever more answers are made.
        """
        if reply is not None:
            await self.outbox.room_for(reply)
        self._requests_in_flight -= requests
        if reply is None:
            return
        is_sending, self._is_flushing = self._is_flushing, True
        self.outbox.put(reply)
        if not is_sending:
            await self._flush()

    def _wake(self) -> None:
        if not self._is_flushing:
            self._is_flushing = True
            _keep(self._flush())

    async def _flush(self) -> None:
        """Sends what waits, then the close if one is due. It ends when there is nothing to send: no idle task is kept."""
        try:
            while (frame := self.outbox.take()) is not None:
                if self._codec.is_text:
                    await self._send({"type": "websocket.send", "text": frame.decode()})
                else:
                    await self._send({"type": "websocket.send", "bytes": frame})
            if self.outbox.is_overflowed and self._closing is None:
                self._closing = (CLOSE_SLOW_CONSUMER, "resume")
                telemetry.CONNECTIONS_CLOSED.labels(CLOSE_SLOW_CONSUMER).inc()
            if self._closing is not None:
                code, reason = self._closing
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except (OSError, RuntimeError):
            pass  # the peer has gone, or the close was sent already; the reading side ends the connection
        finally:
            self._is_flushing = False


_tasks: set[asyncio.Task[None]] = set()  # the loop itself holds them weakly


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _malformed(data: bytes | Raw) -> MeshError:
    why = half_of_a_character(bytes(data))
    return MeshError(Kind.PARSE_ERROR, "the message is not well-formed" + (f": {why}" if why is not None else ""))


def _keep(work: Coroutine[Any, Any, None]) -> None:
    """Has it done in the background."""
    task = asyncio.get_running_loop().create_task(work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
