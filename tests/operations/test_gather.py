"""Natural batching: who goes alone, who waits for whom, and for how long."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Any

import pytest

from devmesh.operations import gather
from devmesh.operations.gather import Batch, Gather
from tests.harness import eventually


class Writes:
    """Notes the batches that were begun, and ends each when it is told to."""

    def __init__(self) -> None:
        self.begun: list[list[int]] = []
        self._ends: list[asyncio.Event] = []

    async def __call__(self, calls: Sequence[int]) -> Sequence[int]:
        self.begun.append(list(calls))
        self._ends.append(end := asyncio.Event())
        await end.wait()
        return [10 * call for call in calls]

    def are_begun(self, count: int) -> bool:
        return len(self.begun) == count

    def end(self, place: int) -> None:
        self._ends[place].set()


def gathering(writes: Writes, **options: Any) -> Gather[int, int]:
    return Gather(writes, **{"batch_max": 8, "in_flight_max": 3, "waiting_max": 100, **options})


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing begins because it has waited for long."""
    monkeypatch.setattr(gather, "WAIT_S_MAX", 60.0)


@pytest.mark.usefixtures("patient")
async def test_a_few_wait_for_the_batch_before_them_and_go_together() -> None:
    writes = Writes()
    calls = gathering(writes)
    first = calls.add(1)
    await eventually(lambda: writes.begun == [[1]], "a lone call goes at once")
    second = calls.add(2)
    await asyncio.sleep(0)
    assert (writes.begun, calls.waiting) == ([[1]], 1)
    writes.end(0)
    assert await first == 10
    await eventually(lambda: writes.begun == [[1], [2]], "it goes when the other has ended")
    writes.end(1)
    assert await second == 20


@pytest.mark.usefixtures("patient")
async def test_many_go_beside_the_batch_before_them() -> None:
    writes = Writes()
    calls = gathering(writes)
    answers = [calls.add(1)]
    await eventually(lambda: len(writes.begun) == 1, "the first has begun")
    answers += [calls.add(number) for number in (2, 3)]
    await eventually(lambda: writes.begun == [[1], [2, 3]], "a quarter of a batch does not wait")
    for place in (0, 1):
        writes.end(place)
    assert await asyncio.gather(*answers) == [10, 20, 30]


@pytest.mark.usefixtures("patient")
async def test_what_hurries_waits_for_nothing_but_a_place() -> None:
    writes = Writes()
    calls = gathering(writes, hurries=True)
    answers = []
    for number in range(4):
        answers.append(calls.add(number))
        await eventually(functools.partial(writes.are_begun, min(number + 1, 3)), "up to three at once")
    assert calls.waiting == 1
    writes.end(0)
    await eventually(lambda: len(writes.begun) == 4, "the fourth has the place of the first")
    for place in (1, 2, 3):
        writes.end(place)
    assert await asyncio.gather(*answers) == [0, 10, 20, 30]


async def test_a_batch_that_takes_long_holds_nobody_up() -> None:
    writes = Writes()
    calls = gathering(writes)
    stuck = calls.add(1)
    await eventually(lambda: len(writes.begun) == 1, "the first has begun")
    second = calls.add(2)
    await eventually(lambda: len(writes.begun) == 2, "the second does not wait for the end of the first")
    writes.end(1)
    assert await second == 20
    assert not stuck.done()
    writes.end(0)
    assert await stuck == 10
    await calls.drain()


async def test_a_caller_may_be_answered_before_its_batch_has_ended() -> None:
    is_over = asyncio.Event()

    async def write(batch: Batch[int, int]) -> Sequence[int | BaseException]:
        batch.answer([10 * call for call in batch])
        await is_over.wait()
        raise RuntimeError("what comes afterwards is nobody's business")

    calls: Gather[int, int] = Gather(write, batch_max=8, in_flight_max=1, waiting_max=100)
    assert [await answer for answer in (calls.add(1), calls.add(2))] == [10, 20]
    assert calls.in_flight == 1
    is_over.set()
    await calls.drain()
