"""A subscriber for whom more comes than may wait: a quick one gets it at its own pace, one that takes nothing is given up."""

from __future__ import annotations

import asyncio
import datetime
import re
import uuid
from collections.abc import Sequence
from typing import Any

import pytest

from devmesh.core.events import Cursor, Event
from devmesh.edges.codecs import JSON
from devmesh.engine import outbox as outboxes
from devmesh.engine import subscriber as subscribers
from devmesh.engine.outbox import Outbox
from devmesh.engine.stream import EVERYTHING, Recent, Stream
from devmesh.engine.subscriber import Subscriber
from tests.harness import eventually

BYTES_MAX = 10_000


class Log:
    """What the subscriber reads events from, in place of the fan-out: all are in memory."""

    async def page(self, stream: Stream, sequence: int, topics: Any) -> tuple[list[Recent], int]:
        recents = stream.after(sequence, 100, 1 << 20)
        return recents, recents[-1].event.sequence if recents else sequence

    def delivered(self, count: int) -> None:
        """It counts nothing."""


class Consumer:
    def __init__(self, log: Log | None = None, topic: str = EVERYTHING) -> None:
        self.stream = Stream(uuid.uuid4(), 1, 0)
        self.outbox = Outbox(BYTES_MAX, lambda: None)
        self.subscriber = Subscriber(log or Log(), self.stream, JSON, self.outbox)  # type: ignore[arg-type]
        self.subscriber.topics[topic] = 0
        self.stream.listen(self.subscriber, topic)
        self.got = b""

    def comes(self, count: int, size_bytes: int = 900, topics: Sequence[str] = ("task:1",)) -> None:
        """So many events are read from the log, and handed to whom they concern."""
        now, begin = datetime.datetime.now(datetime.UTC), self.stream.position + 1
        data = '{"is":"' + "x" * size_bytes + '"}'
        events = [
            Event(begin + place, now, "task.created", (topics[place % len(topics)],), data) for place in range(count)
        ]
        self.stream.dispatch(self.stream.append(events))

    def takes(self) -> bool:
        """Everything that waits for it now. Whether it has got all there is by then."""
        while (frame := self.outbox.take()) is not None:
            self.got += frame
        return self.got.count(b'"is"') == self.stream.position


async def test_more_than_may_wait_comes_to_one_that_has_not_taken_the_last_yet() -> None:
    consumer = Consumer()
    consumer.comes(8)
    consumer.comes(8)
    consumer.comes(30)
    assert not consumer.outbox.is_overflowed
    await eventually(consumer.takes, "it gets everything")
    assert not consumer.outbox.is_overflowed
    assert consumer.got.count(b'"is"') == 46


async def test_one_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribers, "LIVE_STALL_LIMIT_S", 0.05)
    consumer = Consumer()
    consumer.comes(8)
    consumer.comes(8)
    await eventually(lambda: consumer.outbox.is_overflowed, "it is given up", 2)


async def test_a_long_answer_waits_for_those_before_it() -> None:
    consumer = Consumer()
    consumer.comes(8)
    answer = b"x" * BYTES_MAX
    waiting = asyncio.create_task(consumer.outbox.room_for(answer))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert consumer.takes()
    await waiting
    consumer.outbox.put(answer)
    assert not consumer.outbox.is_overflowed


async def test_nor_does_it_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outboxes, "STALL_LIMIT_S", 0.05)
    consumer = Consumer()
    consumer.comes(8)
    async with asyncio.timeout(2):
        await consumer.outbox.room_for(b"x" * BYTES_MAX)
    assert consumer.outbox.is_overflowed


def test_a_page_of_what_is_in_memory_ends_at_so_many_events_or_bytes() -> None:
    stream = Consumer().stream
    now = datetime.datetime.now(datetime.UTC)
    sizes_bytes = [1, 1, 900_000, 900_000, 1]
    stream.append(
        Event(place, now, "task.created", ("task:1",), "x" * size_bytes)
        for place, size_bytes in enumerate(sizes_bytes, start=1)
    )

    def page(after: int) -> list[int]:
        return [recent.event.sequence for recent in stream.after(after, 3, 500_000)]

    assert [page(after) for after in range(6)] == [[1, 2, 3], [2, 3], [3], [4], [5], []]


class SlowLog(Log):
    """A log in which it takes a while to find where a cursor lies, and to read on."""

    def __init__(self) -> None:
        self.has_found = asyncio.Event()

    async def judge(self, stream: Stream, since: Cursor, age_s_max: float) -> tuple[int, bool]:
        await self.has_found.wait()
        return since.sequence, True

    async def page(self, stream: Stream, sequence: int, topics: Any) -> tuple[list[Recent], int]:
        recents, position = await super().page(stream, sequence, topics)
        await asyncio.sleep(0)
        return recents[:5], recents[:5][-1].event.sequence if recents else position


async def test_one_that_falls_behind_while_it_asks_for_the_past_gets_each_event_once() -> None:
    log = SlowLog()
    consumer = Consumer(log, "task:1")
    both = ("task:1", "task:2")
    consumer.comes(8, topics=both)
    consumer.takes()
    asking = asyncio.create_task(consumer.subscriber.subscribe(["task:2"], Cursor(1, 0)))
    await asyncio.sleep(0)
    for _ in range(2):
        consumer.comes(16, topics=both)
    assert not consumer.subscriber.is_live, "more has come than may wait for it"
    log.has_found.set()
    await asyncio.sleep(0)
    consumer.comes(4, topics=both)

    def has_caught_up() -> bool:
        consumer.takes()
        return asking.done() and consumer.subscriber.is_live

    await eventually(has_caught_up, "it has caught up")
    consumer.takes()
    sequences = [int(place, 16) for place in re.findall(rb'"cursor":"[0-9a-f]{8}([0-9a-f]{16})"}', consumer.got)]
    assert sorted(sequences) == list(range(1, 45))
    replayed = sequences[sequences.index(2) :]
    assert replayed == sorted(replayed)
