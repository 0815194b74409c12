"""Events over plain HTTP, as server-sent events: the same that the WebSocket carries, from the same fan-out.

A message's id is its cursor, so that a browser that reconnects goes on where it was. Whatever ends a stream is said in its last
message, `error`, unless its client does not read any more; the log fills in what was missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from devmesh import telemetry
from devmesh.core import access, events
from devmesh.core.access import Caller, Credential
from devmesh.core.errors import Kind, MeshError, unavailable
from devmesh.core.events import Event
from devmesh.edges.codecs import JSON
from devmesh.edges.http_guard import EXTENSION
from devmesh.edges.parameters import from_url, refuse_body
from devmesh.edges.problem import problem_of
from devmesh.engine.fanout import Fanout
from devmesh.engine.outbox import Outbox
from devmesh.engine.subscriber import Subscriber
from devmesh.operations.connections import Connections
from devmesh.operations.registry import Params
from devmesh.settings import Settings

KEEP_ALIVE_INTERVAL_S = 15.0
KEEP_ALIVE = b": still here\n\n"
LAST_WORDS_LIMIT_S = 5.0  # in which who does not read may still learn why its stream ends
RECONNECT_AFTER_MS = 1000
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


class Follow(Params, kw_only=True):
    """What a stream may be asked for. `Last-Event-ID`, which a browser sends when it reconnects, counts before `since`."""

    topics: Annotated[list[events.Topic], Meta(min_length=1)] = msgspec.field(default_factory=lambda: ["tenant"])
    since: events.CursorText | None = None


class SseCodec:
    """How events look here."""

    name = "sse"

    def event(self, event: Event, cursor: str) -> bytes:
        return message(event.type, JSON.event(event, cursor), cursor)

    def frame(self, encoded: Sequence[bytes], cursor: str) -> bytes:
        return b"".join(encoded)


def message(event_type: str, data: bytes, cursor: str | None = None) -> bytes:
    """`data` is JSON: it has line breaks between its tokens only, where a space does as well."""
    place = b"" if cursor is None else b"id: %b\n" % cursor.encode()
    return place + b"event: %b\ndata: %b\n\n" % (event_type.encode(), data.translate(_ONE_LINE))


class EventStreams:
    """All streams of this process. They end with their keys, and when the server goes."""

    def __init__(self, fanout: Fanout, connections: Connections, settings: Settings) -> None:
        self._fanout, self.connections, self._settings = fanout, connections, settings
        self.streams: set[EventStream] = set()
        self.is_leaving = False

    async def open(self, request: Request, caller: Caller) -> EventStream:
        """The stream that a request asks for; it is the response. Raises MeshError."""
        access.require(caller, access.Scope.READ)
        await refuse_body(request)
        asked = from_url(request, Follow)
        topics = [events.check_topic(topic, caller.agent_id) for topic in asked.topics]
        limit = self._settings.subscriptions_per_connection_max
        if len(topics) > limit:
            raise MeshError(Kind.QUOTA_EXCEEDED, f"a stream may listen to {limit} topics", field="topics")
        cursor = events.decode_cursor(asked.since) if asked.since is not None else None
        last_event_id = request.headers.get("last-event-id")
        if last_event_id is not None:
            cursor = events.decode_cursor(last_event_id)
        if self.is_leaving:
            raise unavailable("this server is going away; connect to another")
        self.connections.open(caller.tenant_id)
        try:
            return await self._begin(caller, topics, cursor)
        except BaseException:
            self.connections.close(caller.tenant_id)
            raise

    async def _begin(self, caller: Caller, topics: list[str], cursor: events.Cursor | None) -> EventStream:
        stream = EventStream(self, caller)
        subscriber = await self._fanout.subscriber(caller.tenant_id, SseCodec(), stream.outbox)
        try:
            begun = await subscriber.subscribe(topics, cursor)
        except MeshError:
            subscriber.close()
            raise
        stream.begin(subscriber, begun.cursor, begun.recovered)
        return stream

    @property
    def outbox_bytes_max(self) -> int:
        return self._settings.outbox_bytes_max

    def credentials_in_use(self) -> set[Credential]:
        """What open streams stand on."""
        return {stream.caller.credential for stream in self.streams}

    def close_credentials(self, credentials: set[Credential]) -> None:
        """Ends the streams that stand on what is not valid any more."""
        for stream in self.streams:
            if stream.caller.credential in credentials:
                stream.end(MeshError(Kind.UNAUTHENTICATED, "the credential is not valid any more"))

    async def drain(self, limit_s: float) -> None:
        """Tells everybody to go elsewhere, within a limit."""
        self.is_leaving = True
        told = [asyncio.create_task(stream.ended.wait()) for stream in self.streams]
        for stream in self.streams:
            stream.end(unavailable("this server is going away; reconnect and resume"))
        if told:
            _, late = await asyncio.wait(told, timeout=limit_s)
            for task in late:
                task.cancel()


class EventStream:
    """One stream, from its first message to its last. An ASGI application, as every response is."""

    def __init__(self, streams: EventStreams, caller: Caller) -> None:
        self._streams, self.caller = streams, caller
        self._woken = asyncio.Event()
        self.outbox = Outbox(streams.outbox_bytes_max, self._wake)
        self.ended = asyncio.Event()
        self._subscriber: Subscriber | None = None
        self._ending: MeshError | None = None
        self._abort: Callable[[], None] | None = None  # ends the connection as it is, once there is one
        self._limit: asyncio.TimerHandle | None = None
        self._is_left = False

    def begin(self, subscriber: Subscriber, cursor: str, recovered: bool) -> None:
        """The first message says where the stream begins, and whether nothing was lost before that."""
        self._subscriber = subscriber
        data = msgspec.json.encode({"cursor": cursor, "recovered": recovered})
        self.outbox.put(b"retry: %d\n" % RECONNECT_AFTER_MS + message("subscribed", data, cursor))

    def end(self, error: MeshError) -> None:
        """Ends the stream with a reason, once what is in the outbox has been sent, or as it is when nobody reads that."""
        self._ending = self._ending or error
        self._woken.set()
        if self._limit is None and self._abort is not None:
            self._limit = asyncio.get_running_loop().call_later(LAST_WORDS_LIMIT_S, self._abort)

    def _wake(self) -> None:
        self._woken.set()
        if self.outbox.is_overflowed:
            self.end(unavailable("this stream was read too slowly, or cannot go on from here; reconnect and resume"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        self._abort = scope["extensions"][EXTENSION]["abort"]
        if self._ending is not None:
            self.end(self._ending)
        watching = asyncio.create_task(self._watch(receive))
        self._streams.streams.add(self)
        telemetry.EVENT_STREAMS.inc()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            if scope["method"] != "HEAD":
                await self._send_all(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            watching.cancel()
            if self._limit is not None:
                self._limit.cancel()
            telemetry.EVENT_STREAMS.dec()
            self._streams.streams.discard(self)
            assert self._subscriber is not None
            self._subscriber.close()
            self._streams.connections.close(self.caller.tenant_id)
            self.ended.set()

    async def _send_all(self, send: Send) -> None:
        """Sends what waits until the client leaves or the stream ends."""
        while not self._is_left:
            self._woken.clear()
            while (frame := self.outbox.take()) is not None:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
            if self._ending is not None:
                data = msgspec.json.encode(problem_of(self._ending))
                await send({"type": "http.response.body", "body": message("error", data), "more_body": True})
                return
            try:
                async with asyncio.timeout(KEEP_ALIVE_INTERVAL_S):
                    await self._woken.wait()
            except TimeoutError:
                self.outbox.put(KEEP_ALIVE)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._is_left = True
        self._woken.set()
