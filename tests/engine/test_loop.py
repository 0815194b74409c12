"""A loop goes on whatever its passes come to, and tells how it is: well, failing, stuck or ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from devmesh.core.errors import Kind, MeshError, unavailable
from devmesh.engine.loop import BACKOFF_MAX_S, Loop
from tests.harness import eventually

STUCK_AFTER_S = 0.2


class Passes(Loop):
    name = "passes"

    def __init__(self) -> None:
        super().__init__(interval_s=0.01)
        self.failure: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.begun = 0

    async def run_once(self) -> bool:
        self.begun += 1
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        return False

    def is_seen(self, status: str, message: str = "") -> bool:
        found = self.state(STUCK_AFTER_S)
        return found.status == status and message in found.message


@pytest.fixture
async def loop() -> AsyncIterator[Passes]:
    loop = Passes()
    loop.start()
    await loop.passed.wait()
    yield loop
    loop.open.set()
    await loop.stop()


async def test_a_loop_whose_passes_end_is_healthy(loop: Passes) -> None:
    found = await loop.check(STUCK_AFTER_S)
    assert (found.status, found.message) == ("healthy", "")
    assert found.latency_ms is not None
    assert found.latency_ms >= 0


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (unavailable("the database is away"), "failed: the database is away"),
        (MeshError(Kind.INTERNAL, "it broke", error_id="7"), "failed: it broke (error id 7)"),
        (RuntimeError("the password is tiger"), "failed: RuntimeError, see the log"),
    ],
)
async def test_a_loop_whose_passes_fail_is_degraded_until_one_succeeds(
    loop: Passes, failure: Exception, said: str
) -> None:
    loop.failure = failure
    await eventually(lambda: loop.is_seen("degraded", said), "its failure is seen")
    assert "tiger" not in loop.state(STUCK_AFTER_S).message
    loop.failure = None
    await eventually(lambda: loop.is_seen("healthy"), "it recovers", BACKOFF_MAX_S + 5)


async def test_a_loop_that_hangs_is_unhealthy_until_its_pass_ends(loop: Passes) -> None:
    loop.open.clear()
    await eventually(lambda: loop.is_seen("unhealthy", "under way for"), "its hanging is seen")
    loop.open.set()
    await eventually(lambda: loop.is_seen("healthy"), "it recovers")


async def test_a_loop_that_has_ended_is_unhealthy(loop: Passes) -> None:
    assert loop._task is not None
    loop._task.cancel()
    await eventually(lambda: loop.is_seen("unhealthy", "it does not run"), "its end is seen")


async def test_a_loop_that_waits_after_failures_stops_at_once(loop: Passes) -> None:
    loop.failure = unavailable("away")
    await eventually(lambda: loop.is_seen("degraded", "its last 5 passes failed"), "it waits for long", 10.0)
    began = time.monotonic()
    await loop.stop()
    assert time.monotonic() - began < BACKOFF_MAX_S / 4


async def test_a_ring_does_not_shorten_the_wait_after_failures(loop: Passes) -> None:
    loop.failure = unavailable("away")
    await eventually(lambda: loop.is_seen("degraded", "its last 7 passes failed"), "it waits for long", 10.0)
    begun = loop.begun
    for _ in range(10):
        loop.wake()
        await asyncio.sleep(0)
    assert loop.begun == begun
