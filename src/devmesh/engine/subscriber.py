"""One connection's place in its tenant's stream: what it listens to, and how it catches up with what it missed.

Within a connection each event comes exactly once and, after the point where a replay has begun, in order. While it catches
up it is not live: the fan-out passes it by and the replay brings it what came meanwhile. It also catches up, at the pace of
its reader, when more comes at once than waits for a consumer: that is no reason to send a quick one away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import structlog

from devmesh.core.errors import MeshError
from devmesh.core.events import Cursor, topics_heard
from devmesh.engine.outbox import LIVE_STALL_LIMIT_S, STALL_LIMIT_S, Outbox
from devmesh.engine.stream import EVERYTHING, Codec, Recent, Stream, frames_of

if TYPE_CHECKING:
    from devmesh.engine.fanout import Fanout

log = structlog.get_logger(__name__)

IDLE_AGE_S_MAX = 0.1  # of the position of who listens to nothing: very many may connect at once


class Subscribed(NamedTuple):
    """`recovered` is false when what lies between the cursor that was given and this one is lost: look afresh."""

    cursor: str
    recovered: bool


class Subscriber:
    __slots__ = ("_catching_up", "_fanout", "_stream", "_turn", "codec", "is_closed", "outbox", "topics")

    def __init__(self, fanout: Fanout, stream: Stream, codec: Codec, outbox: Outbox) -> None:
        """For `Fanout.subscriber`."""
        self._fanout, self._stream = fanout, stream
        self.codec, self.outbox = codec, outbox
        self.topics: dict[str, int] = {}  # each with the sequence after which its events are wanted
        self.is_closed = False
        self._catching_up: asyncio.Task[None] | None = None
        self._turn: asyncio.Lock | None = None

    @property
    def is_live(self) -> bool:
        return self._catching_up is None

    async def position(self) -> Cursor:
        """Where the stream has come to: what is committed from now on comes after it."""
        await self._fanout.bring_up(self._stream)
        return self._stream.cursor()

    async def subscribe(self, topics: Sequence[str], since: Cursor | None = None) -> Subscribed:
        """Listens to topics from now on, or from a cursor on. Frames of the past begin after this has returned."""
        if self._turn is None:
            self._turn = asyncio.Lock()
        async with self._turn:
            await self._caught_up()
            age_s_max = 0.0 if topics else IDLE_AGE_S_MAX
            start, recovered = await self._fanout.judge(self._stream, since, age_s_max)
            await self._caught_up()  # it may have fallen behind meanwhile
            before = dict(self.topics)
            was_heard = bool(self._stream.listeners)
            for topic in topics:
                self.topics[topic] = min(start, before.get(topic, start))
                if not self.is_closed:
                    self._stream.listen(self, topic)
            if self._stream.listeners and not was_heard:  # nobody has read what came since
                self._fanout.heard(frozenset({self._stream.tenant_id}))
            stop = self._stream.position
            if start < stop and not self.is_closed:
                self._catching_up = asyncio.get_running_loop().create_task(self._catch_up(start, stop, before))
            return Subscribed(Cursor(self._stream.epoch, start).encode(), recovered)

    def send(self, frames: Sequence[bytes], begins_after: int) -> bool:
        """Takes what the fan-out has for it, all that is new to it after a sequence. False when it will read that itself."""
        if self.outbox.has_room(frames):
            for frame in frames:
                self.outbox.put(frame)
            return True
        catching_up = self._catch_up(begins_after, begins_after, {}, LIVE_STALL_LIMIT_S)
        self._catching_up = asyncio.get_running_loop().create_task(catching_up)
        return False

    def unsubscribe(self, topics: Sequence[str]) -> list[str]:
        """Stops listening; answers with those that were listened to."""
        known = [topic for topic in topics if self.topics.pop(topic, None) is not None]
        for topic in known:
            self._stream.unlisten(self, topic)
        return known

    def close(self) -> None:
        self.is_closed = True
        self.unsubscribe(list(self.topics))
        self._stream.subscribers.discard(self)
        if self._catching_up is not None:
            self._catching_up.cancel()

    async def _caught_up(self) -> None:
        """Until no catch-up runs. Two at a time would send events twice, and out of order."""
        while self._catching_up is not None and not self._catching_up.done():
            await asyncio.wait([self._catching_up])

    async def _catch_up(
        self, start: int, stop: int, before: dict[str, int], stall_limit_s: float = STALL_LIMIT_S
    ) -> None:
        """Sends what lies between `start` and now. Up to `stop`, the topics of `before` have had theirs already.

        The consumer is given up when it takes nothing for the limit, and once it has taken something, for the usual one.
        """
        taken = self.outbox.taken
        position = start
        try:
            while position < self._stream.position and not self.outbox.is_overflowed:
                page, position = await self._fanout.page(self._stream, position, list(self.topics))
                wanted = [recent for recent in page if self._is_wanted(recent, stop, before)]
                for frame in frames_of(self.codec, wanted):
                    await self.outbox.drained(stall_limit_s if self.outbox.taken == taken else STALL_LIMIT_S)
                    self.outbox.put(frame)
                self._fanout.delivered(len(wanted))
        except MeshError as error:
            log.warning("a replay failed; the client is told to resume", error=error.message)
            self.outbox.overflow()
        finally:
            if self._catching_up is asyncio.current_task():
                self._catching_up = None

    def _is_wanted(self, recent: Recent, stop: int, before: dict[str, int]) -> bool:
        sequence = recent.event.sequence
        heard = (*topics_heard(recent.event), EVERYTHING)
        if sequence <= stop and any(before.get(topic, sequence) < sequence for topic in heard):
            return False
        return any(self.topics.get(topic, sequence) < sequence for topic in heard)
