"""The fan-out: reads each tenant's log once for all the subscribers of this process.

Sequences are contiguous in commit order, so a reader that sees no gap has missed nothing; one that does see a gap has lost
history and sends its subscribers away to resume, where they learn it. The bell makes it look at once; without a ring it
looks at intervals.
"""

from __future__ import annotations

import asyncio
import datetime
import time
import uuid
from collections.abc import Sequence

import structlog

from devmesh import telemetry
from devmesh.core.errors import unavailable
from devmesh.core.events import JOBS, Cursor, Event
from devmesh.engine.outbox import Outbox
from devmesh.engine.ring_loop import RingLoop
from devmesh.engine.stream import EVERYTHING, Codec, Recent, Stream
from devmesh.engine.subscriber import Subscriber
from devmesh.store.database import Database, Record
from devmesh.store.statements import load

log = structlog.get_logger(__name__)

SQL = load("events")
READ_BYTES_MAX = 8 << 20  # as they are stored, of the events of all streams that one look reads, and one more of each
REPLAY_BYTES_MAX = 1 << 20  # the same of what is read for one who catches up
FLOORS_INTERVAL_S = 5.0  # between looks for what retention has removed
FLOOD_EVENTS = 50  # of a tenant in one look
UNUSED_PASSES_MAX = 120  # how long a stream without subscribers is kept: their reconnecting finds it in memory


class Fanout(RingLoop):
    name = "fanout"

    def __init__(self, database: Database, *, interval_s: float, page_events_max: int, ring_bytes_max: int) -> None:
        super().__init__(interval_s)
        self._database = database
        self._page_events_max, self._ring_bytes_max = page_events_max, ring_bytes_max
        self._streams: dict[uuid.UUID, Stream] = {}
        self._opening = asyncio.Lock()
        self._floors_due_at = 0.0

    def heard(self, tenants: frozenset[uuid.UUID] | None) -> None:
        """The bell rang."""
        mine = tenants if tenants is None else tenants & self._streams.keys()
        if mine is None or mine:
            super().heard(mine)

    async def subscriber(self, tenant_id: uuid.UUID, codec: Codec, outbox: Outbox) -> Subscriber:
        """A new subscriber, of nothing yet. Close it when its connection ends. Raises MeshError."""
        async with self._opening:
            stream = self._streams.get(tenant_id)
            if stream is None:
                [row] = await self._database.read(SQL.position, tenant_id)
                stream = self._streams[tenant_id] = Stream(tenant_id, row["epoch"], row["last_sequence"])
        subscriber = Subscriber(self, stream, codec, outbox)
        stream.subscribers.add(subscriber)
        return subscriber

    async def run_once(self) -> bool:
        rung = self.take_rung()
        if rung is None:
            self._forget_unused()
            await self._forget_removed()
        looked = [s for s in self._streams.values() if (rung is None or s.tenant_id in rung) and s.listeners]
        if not looked:
            return False
        by_tenant, unfinished = await self._read(looked)
        self._rung |= unfinished
        # Those with little news first, and sent off before a flood is dealt with.
        for stream in sorted(looked, key=lambda stream: len(by_tenant.get(stream.tenant_id, ()))):
            events = by_tenant.get(stream.tenant_id, [])
            if len(events) >= FLOOD_EVENTS:
                await asyncio.sleep(0)
            self._take(stream, events)
        return bool(unfinished)

    async def _read(self, looked: Sequence[Stream]) -> tuple[dict[uuid.UUID, list[Event]], set[uuid.UUID]]:
        """What follows in these streams, as much as goes into one look, and in which of them there may be more."""
        rows = await self._database.read(
            SQL.after, [s.tenant_id for s in looked], [s.position for s in looked], self._page_events_max,
            READ_BYTES_MAX // len(looked),
        )  # fmt: skip
        by_tenant: dict[uuid.UUID, list[Event]] = {}
        found: dict[uuid.UUID, int] = {}
        for row in rows:
            by_tenant.setdefault(row["tenant_id"], []).append(_event(row))
            found[row["tenant_id"]] = row["found"]
        return by_tenant, {
            tenant_id
            for tenant_id, count in found.items()
            if count == self._page_events_max or len(by_tenant[tenant_id]) < count
        }

    def _take(self, stream: Stream, events: list[Event]) -> None:
        events = [
            event for event in events if event.sequence > stream.position
        ]  # it may have been brought up meanwhile
        if not events:
            return
        if [event.sequence for event in events] != list(range(stream.position + 1, stream.position + 1 + len(events))):
            log.error("the log has a gap; subscribers are sent away to resume", tenant_id=stream.tenant_id)
            del self._streams[stream.tenant_id]
            for subscriber in list(stream.subscribers):
                subscriber.outbox.overflow()
            return
        fresh = stream.append(events)
        telemetry.EVENTS_READ.inc(len(events))
        self.delivered(stream.dispatch(fresh))
        stream.trim(self._ring_bytes_max // len(self._streams))
        telemetry.FANOUT_LAG_SECONDS.observe(max(0.0, time.time() - events[0].at.timestamp()))

    def _forget_unused(self) -> None:
        for stream in list(self._streams.values()):
            stream.unused_passes = 0 if stream.subscribers else stream.unused_passes + 1
            if stream.unused_passes > UNUSED_PASSES_MAX:
                del self._streams[stream.tenant_id]

    async def _forget_removed(self) -> None:
        """Has the streams in memory begin where retention has made them begin in the log."""
        if time.monotonic() < self._floors_due_at or not self._streams:
            return
        for row in await self._database.read(SQL.floors, list(self._streams)):
            if (stream := self._streams.get(row["tenant_id"])) is not None:
                stream.forget_until(row["floor_sequence"])
        self._floors_due_at = time.monotonic() + FLOORS_INTERVAL_S

    def delivered(self, count: int) -> None:
        telemetry.EVENTS_DELIVERED.inc(count)

    async def bring_up(self, stream: Stream, age_s_max: float = 0.0) -> None:
        """Sees to it that a stream's position is that of the log, or was a moment ago. What nobody listens to is not read."""
        if stream.listeners or stream.looked_at > time.monotonic() - age_s_max:
            return
        asked_at = time.monotonic()
        [row] = await self._database.read(SQL.position, stream.tenant_id)
        is_behind = row["epoch"] != stream.epoch or row["last_sequence"] > stream.position
        if is_behind and not stream.listeners:  # they need what lies between
            stream.go_on_from(row["epoch"], row["last_sequence"])
        stream.looked_at = asked_at

    async def judge(self, stream: Stream, since: Cursor | None, age_s_max: float = 0.0) -> tuple[int, bool]:
        """From which sequence a reader goes on that asks to go on after `since`, and whether that loses nothing.

        What retention has removed is not recovered: it goes on from the oldest that is held. A cursor of another history
        (another epoch, or beyond the end) says nothing about this one: it goes on from now, which may be `age_s_max` ago.
        """
        await self.bring_up(stream, age_s_max if since is None else 0.0)
        if since is None:
            return stream.position, True
        if stream.has(since):
            return since.sequence, True
        if since.epoch != stream.epoch:
            return stream.position, False
        [row] = await self._database.read(SQL.position, stream.tenant_id)
        if since.epoch != row["epoch"] or since.sequence > row["last_sequence"]:
            return stream.position, False
        # Events that were committed but not read yet come live, to those who listen by then.
        start = min(max(since.sequence, row["floor_sequence"]), stream.position)
        return start, since.sequence >= row["floor_sequence"]

    async def page(self, stream: Stream, sequence: int, topics: Sequence[str]) -> tuple[list[Recent], int]:
        """The next events of a stream after a sequence, and up to where they reach: from memory where it has them.

        Raises MeshError, also when retention has removed some of them meanwhile.
        """
        if sequence >= stream.ring_floor:
            recents = stream.after(sequence, self._page_events_max, REPLAY_BYTES_MAX)
            await asyncio.sleep(0)  # a long replay lets others have their turn
            return recents, recents[-1].event.sequence if recents else sequence
        end = stream.position
        wanted = None if EVERYTHING in topics else [*topics, *{JOBS for topic in topics if topic.startswith("job:")}]
        rows = await self._database.read(
            SQL.page_of_topics, stream.tenant_id, sequence, end, wanted, self._page_events_max, REPLAY_BYTES_MAX
        )
        [floor] = await self._database.read(SQL.floors, [stream.tenant_id])
        if sequence < floor["floor_sequence"]:
            raise unavailable("events were removed by retention while they were read; resume to learn where they begin")
        recents = [Recent(_event(row), stream.epoch) for row in rows]
        is_more = bool(rows) and (len(rows) < rows[0]["found"] or len(rows) == self._page_events_max)
        return recents, recents[-1].event.sequence if is_more else end


def _event(row: Record) -> Event:
    at: datetime.datetime = row["at"]
    return Event(row["sequence"], at, row["type"], tuple(row["topics"]), row["data"])
