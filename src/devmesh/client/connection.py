"""One connection, from its opening to its end: requests multiplexed by id, replies matched, events handed on in order.

It is never mended: a session replaces it (session.py). Must not know operations, retries or back-offs.
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

import msgspec
import websockets
from websockets.asyncio.client import ClientConnection, connect

from devmesh import __version__
from devmesh.client.address import Address
from devmesh.client.codecs import Codec, Message
from devmesh.client.errors import ConnectionLost, MeshError, WireError
from devmesh.core.errors import Kind

T = TypeVar("T")
log = logging.getLogger("devmesh.client")

OPEN_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
PING_INTERVAL_S = 20.0  # a server that does not answer for as long is given up
FRAME_BYTES_MAX = 1 << 28
HEARTBEAT_INTERVAL_S = 25.0  # unless the server says otherwise
CLOSE_ABNORMAL, CLOSE_GARBAGE = 1006, 1002
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Event(msgspec.Struct, frozen=True):
    """Something that happened. `data` holds the noun that changed, with its id and the fields that are new."""

    type: str
    topic: str  # the thing that changed, such as task:ID
    at: datetime.datetime
    data: dict[str, Any]
    cursor: str  # the place after this event: reading on from it misses nothing


Deliver = Callable[[Sequence[Event]], Awaitable[None]]


class Limits(msgspec.Struct):
    message_bytes_max: int = 1 << 20
    requests_in_flight_max: int = 256


class Initialized(msgspec.Struct):
    """What the server said to `initialize`."""

    cursor: str
    agent_id: uuid.UUID | None = None
    recovered: bool = True
    heartbeat_interval_s: float = HEARTBEAT_INTERVAL_S
    limits: Limits = msgspec.field(default_factory=Limits)


class Loss(NamedTuple):
    """How a connection ended."""

    code: int
    reason: str


class _Frame(msgspec.Struct):
    cursor: str
    events: list[Event]


class _Waiting(NamedTuple):
    """A request whose reply has not come. The reply is a result, a MeshError, or ConnectionLost."""

    method: str
    shape: type[Any]
    reply: asyncio.Future[Any]
    on_result: Callable[[Any], None] | None


class Connection:
    def __init__(self, websocket: ClientConnection, codec: Codec, deliver: Deliver) -> None:
        """For `open`."""
        self._websocket, self._codec, self._deliver = websocket, codec, deliver
        self._ids = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._room = asyncio.Semaphore(1)  # until the server has said how many requests it takes at once
        self._reader = asyncio.create_task(self._read(), name="devmesh connection")
        self._loss = Loss(CLOSE_ABNORMAL, "")
        self.initialized = Initialized(cursor="")
        self.cursor: str | None = None  # of the last frame of events

    @classmethod
    async def open(cls, address: Address, codec: Codec, deliver: Deliver) -> Self:
        """Raises OSError, TimeoutError or websockets.WebSocketException when that cannot be."""
        websocket = await connect(
            address.url,
            subprotocols=[codec.subprotocol],
            additional_headers={"Authorization": f"Bearer {address.api_key}"},
            user_agent_header=f"devmesh-client/{__version__}",
            compression=None,
            proxy=None if urlsplit(address.url).hostname in LOOPBACK else True,
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=PING_INTERVAL_S,
            ping_timeout=PING_INTERVAL_S,
            max_size=FRAME_BYTES_MAX,
        )
        return cls(websocket, codec, deliver)

    async def initialize(self, agent: str | None) -> Initialized:
        """The first call. `agent` is an agent's id, or the name under which this key registered it."""
        params: dict[str, Any] = {"client": {"name": "devmesh-python", "version": __version__}}
        if agent is not None:
            params["agent"] = agent
        self.initialized = await self.request("initialize", params, Initialized)
        self.cursor = self.initialized.cursor
        self._room = asyncio.Semaphore(self.initialized.limits.requests_in_flight_max)
        return self.initialized

    async def request(
        self, method: str, params: Mapping[str, Any], shape: type[T], on_result: Callable[[T], None] | None = None
    ) -> T:
        """The result. `on_result` is called with it as well, before any event that follows it is handed on.

        Raises MeshError when the answer is an error, ConnectionLost when there will be none.
        """
        async with self._room:
            request_id = next(self._ids)
            frame = self._codec.request(request_id, method, params)
            limit = self.initialized.limits.message_bytes_max
            if len(frame) > limit:  # sent anyway, it could cost the connection, and with it everybody's requests
                message = f"a message has {limit} bytes at the most, and {method} would have {len(frame)}"
                raise MeshError(Kind.TOO_LARGE, message)
            reply: asyncio.Future[T | MeshError | ConnectionLost] = asyncio.get_running_loop().create_future()
            self._waiting[request_id] = _Waiting(method, shape, reply, on_result)
            try:
                await self._websocket.send(frame, text=self._codec.is_text)
                found = await reply
            except websockets.ConnectionClosed:
                raise ConnectionLost from None
            finally:
                del self._waiting[request_id]
        if isinstance(found, MeshError | ConnectionLost):
            raise found
        return found

    async def ended(self) -> Loss:
        """Waits until the connection has ended, however it ends."""
        await asyncio.wait([self._reader])
        if not self._reader.cancelled() and (fault := self._reader.exception()) is not None:
            log.error("what came could not be taken", exc_info=fault)
            self._loss = Loss(CLOSE_GARBAGE, repr(fault))
            await self._websocket.close(CLOSE_GARBAGE)
        return self._loss

    async def close(self) -> None:
        await self._websocket.close()
        self._reader.cancel()  # it may be waiting for somebody to take events
        await asyncio.wait([self._reader])

    async def _read(self) -> None:
        try:
            while True:
                await self._take(self._codec.decode(await self._websocket.recv(decode=False), Message))
        except websockets.ConnectionClosed as closed:
            self._loss = Loss(closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else Loss(CLOSE_ABNORMAL, "")
        except msgspec.MsgspecError as problem:
            self._loss = Loss(CLOSE_GARBAGE, f"the server sent what cannot be understood: {problem}")
            await self._websocket.close(CLOSE_GARBAGE)
        finally:
            for waiting in self._waiting.values():
                if not waiting.reply.done():
                    waiting.reply.set_result(ConnectionLost())

    async def _take(self, message: Message) -> None:
        if message.method == "events":
            frame = self._codec.decode(message.params, _Frame)
            await self._deliver(frame.events)
            self.cursor = frame.cursor
            return
        waiting = self._waiting.get(message.id) if message.id is not None else None
        if waiting is not None and not waiting.reply.done():
            waiting.reply.set_result(self._reply(message, waiting))
        elif message.id is None and bytes(message.error):
            log.warning("the server refused a message: %s", self._codec.decode(message.error, WireError).exception())

    def _reply(self, message: Message, waiting: _Waiting) -> Any:
        if bytes(message.error):
            return self._codec.decode(message.error, WireError).exception()
        try:
            result = self._codec.decode(message.result, waiting.shape)
        except msgspec.MsgspecError as problem:
            explanation = f"the answer to {waiting.method} cannot be understood (another version?): {problem}"
            return MeshError(Kind.INTERNAL, explanation)
        if waiting.on_result is not None:
            waiting.on_result(result)
        return result
