"""A subscriber for whom more comes than may wait: a quick one gets it at its own pace, one that takes nothing is given up."""

from __future__ import annotations

import asyncio
import datetime
import uuid
from typing import Any

import pytest

from devmesh.core.events import Event
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
    def __init__(self) -> None:
        self.stream = Stream(uuid.uuid4(), 1, 0)
        self.outbox = Outbox(BYTES_MAX, lambda: None)
        self.subscriber = Subscriber(Log(), self.stream, JSON, self.outbox)  # type: ignore[arg-type]
        self.subscriber.topics[EVERYTHING] = 0
        self.stream.listen(self.subscriber, EVERYTHING)
        self.got = b""

    def comes(self, count: int, size_bytes: int = 900) -> None:
        """So many events are read from the log, and handed to whom they concern."""
        now, begin = datetime.datetime.now(datetime.UTC), self.stream.position + 1
        data = '{"is":"' + "x" * size_bytes + '"}'
        events = [Event(begin + place, now, "task.created", ("task:1",), data) for place in range(count)]
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
