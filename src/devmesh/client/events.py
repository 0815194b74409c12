"""Events as an endless iterator that survives its connections: none missed, none repeated, and no hole kept quiet.

A stream has a connection of its own. So a reader that is slow holds up nobody's requests, its place is exactly the last event
it was given, and what it gets is exactly what its topics say.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Self

import msgspec

from devmesh.client.address import Address
from devmesh.client.codecs import Codec
from devmesh.client.connection import Connection, Event
from devmesh.client.errors import EventsMissed, MeshError
from devmesh.client.session import Session
from devmesh.core.errors import Kind

WAITING_EVENTS_MAX = 1_000  # then the reader's connection waits, and in the end the server says "resume"


class _Subscribed(msgspec.Struct):
    cursor: str
    recovered: bool = True


class EventStream:
    """`async for event in client.events(…)`; with `async with` it listens from the entry on, before the first step.

    When events are lost to it, iterating raises EventsMissed; iterate again to go on after the hole.
    """

    def __init__(
        self, address: Address, codec: Codec, topics: Sequence[str], since: str | None, connect_timeout_s: float | None
    ) -> None:
        """For `Client.events`."""
        if not topics:
            raise MeshError(
                Kind.INVALID_PARAMS, "name at least one topic, such as tenant, inbox or task:ID", field="topics"
            )
        self._address, self._codec, self._topics = address, codec, list(topics)
        self._connect_timeout_s = connect_timeout_s
        self.cursor = since
        """The place after the last event that was given out here: with `since` it goes on there another time."""
        self._received = since  # the place after the last event that came, which may still wait here
        self._waiting: collections.deque[Event | EventsMissed] = collections.deque()
        self._arrived, self._taken = asyncio.Event(), asyncio.Event()
        self._is_subscribed = False
        self._session: Session | None = None  # while it is open
        self._is_entered = False  # by `async with`, which ends the connection then
        self._iteration: object = None  # the latest, which ends the connection otherwise

    async def __aenter__(self) -> Self:
        self._is_entered = True
        await self._open()
        return self

    async def _open(self) -> None:
        session = Session(self._address, self._codec, self._greet, self._deliver)
        await session.start(self._connect_timeout_s, on_end=self._arrived.set)
        self._session = session

    async def __aexit__(self, *_: object) -> None:
        self._is_entered = False
        await self.close()

    async def close(self) -> None:
        """Ends the connection. Iterating again begins after the last event that was given out."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        self._waiting.clear()
        self._received = self.cursor
        self._arrived.set()

    async def __aiter__(self) -> AsyncGenerator[Event, None]:
        """Without `async with`, the connection ends with the iteration, also when that is broken off."""
        if self._is_entered:
            while self._session is not None:
                yield await self.next()
            return
        own = self._iteration = object()
        if self._session is None:
            await self._open()
        try:
            while True:
                yield await self.next()
        finally:  # of an iteration that was broken off Python may come to it when the next one has begun
            if self._iteration is own:
                await self.close()

    async def next(self) -> Event:
        """The next event, however long it takes to come. Raises EventsMissed, or MeshError when there will be none."""
        while not self._waiting:
            if self._session is None:
                raise MeshError(Kind.CANCELLED, "this stream was closed")
            if self._session.ended is not None:
                raise self._session.ended
            self._arrived.clear()
            await self._arrived.wait()
        found = self._waiting.popleft()
        self._taken.set()
        self.cursor = found.cursor
        if isinstance(found, EventsMissed):
            raise found
        return found

    async def _greet(self, connection: Connection) -> None:
        self._is_subscribed = False
        initialized = await connection.initialize(None)
        if initialized.agent_id is not None:  # a key that is bound to an agent listens to its inbox unasked
            await connection.request("unsubscribe", {"topics": ["inbox"]}, dict[str, Any])
        params: dict[str, Any] = {"topics": self._topics}
        if self._received is not None:
            params["since"] = self._received
        await connection.request("subscribe", params, _Subscribed, on_result=self._subscribed)

    def _subscribed(self, answer: _Subscribed) -> None:
        self._is_subscribed = True
        self._received = answer.cursor
        if self.cursor is None:
            self.cursor = answer.cursor
        if not answer.recovered:
            self._put(EventsMissed(answer.cursor))

    async def _deliver(self, events: Sequence[Event]) -> None:
        """Takes events when there is room for them; until then the connection is not read."""
        if not self._is_subscribed:
            return
        while len(self._waiting) >= WAITING_EVENTS_MAX:
            self._taken.clear()
            await self._taken.wait()
        for event in events:
            self._received = event.cursor
            self._put(event)

    def _put(self, found: Event | EventsMissed) -> None:
        self._waiting.append(found)
        self._arrived.set()
