"""What the queue of jobs does in a second, straight on PostgreSQL: enqueued, given out and completed, history and events kept.

The generator is this process, which calls operations in a corridor of its own, as a worker beside the database does. It shares
the machine's processors with PostgreSQL. Results are JSON both ways, as on any wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import asyncpg
import msgspec

from bench.figures import Figure, percentile
from bench.stage import Stage, corridor_on
from devmesh.core.access import Caller
from devmesh.operations.corridor import Corridor

AT_ONCE = 1_000  # jobs in one enqueue
MANY_CALLERS = 4  # who do so at a time
CLAIMED = 500  # jobs in one claim, and in one completion
SINGLE_CALLERS = 50
LOOPS = 3  # that claim and complete side by side
TURN_S = 1.0
SPEC = {"type": "measure", "queue": "bench", "payload": {"path": "docs/guide.md"}}
UNLIMITED = {
    "DEVMESH_RATE_PER_KEY_PER_S": "0",
    "DEVMESH_RATE_PER_TENANT_PER_S": "0",
    "DEVMESH_ADMISSION_TARGET_MS": "10000",
}


class Queue:
    """The operations of jobs, as one caller uses them."""

    def __init__(self, corridor: Corridor, caller: Caller) -> None:
        self._corridor, self._caller = corridor, caller
        self._many = msgspec.json.encode({"jobs": [SPEC] * AT_ONCE})
        self._one = msgspec.json.encode(SPEC)

    async def call(self, name: str, params: bytes | dict[str, Any]) -> Any:
        raw = params if isinstance(params, bytes) else msgspec.json.encode(params)
        return msgspec.json.decode(await self._corridor.serve(name, self._caller, raw))

    async def enqueue_many(self) -> int:
        await self._corridor.serve("job.enqueue_many", self._caller, self._many)
        return AT_ONCE

    async def enqueue_one(self) -> int:
        await self._corridor.serve("job.enqueue", self._caller, self._one)
        return 1

    async def worker(self) -> str:
        worker = await self.call("worker.register", {"name": f"bench {time.monotonic_ns()}", "capacity": 10_000})
        return str(worker["worker"]["id"])

    async def process(self, worker_id: str, latencies_s: list[float] | None = None) -> int:
        """Takes some jobs and completes them: how many."""
        return len(await self.finish(worker_id, latencies_s))

    async def life(self, worker_id: str) -> int:
        """Enqueues many jobs, and takes and completes as many: how many were there to take."""
        await self.enqueue_many()
        return sum([await self.process(worker_id) for _ in range(AT_ONCE // CLAIMED)])

    async def finish(self, worker_id: str, latencies_s: list[float] | None = None) -> list[dict[str, Any]]:
        """Takes some jobs and completes them: which, as they were given."""
        began = time.perf_counter()
        asked = {"worker_id": worker_id, "queues": ["bench"], "limit": CLAIMED, "wait_ms": 100}
        jobs = (await self.call("job.claim", asked))["jobs"]
        if latencies_s is not None and jobs:
            latencies_s.append(time.perf_counter() - began)
        if not jobs:
            return []
        done = [{"job_id": job["id"], "attempt": job["attempt"], "result": {"ok": True}} for job in jobs]
        answer = await self.call("job.complete", {"jobs": done})
        assert not answer["refused"]
        return list(jobs)


@asynccontextmanager
async def queue_on(dsn: str) -> AsyncIterator[Queue]:
    async with corridor_on(dsn, **UNLIMITED) as (corridor, caller):
        yield Queue(corridor, caller)


async def rate(duration_s: float, *works: Callable[[], Awaitable[int]]) -> float:
    """How many in a second, while each of these is done again and again."""
    ends_at = time.perf_counter() + duration_s
    began = time.perf_counter()

    async def again(work: Callable[[], Awaitable[int]]) -> int:
        done = 0
        while time.perf_counter() < ends_at:
            done += await work()
        return done

    total = sum(await asyncio.gather(*(again(work) for work in works)))
    return total / (time.perf_counter() - began)


async def measure(stage: Stage) -> list[Figure]:
    seconds = stage.extent.measured_s
    async with stage.database() as dsn, queue_on(dsn) as queue:
        worker_id = await queue.worker()
        single = await rate(seconds / 2, *[queue.enqueue_one] * SINGLE_CALLERS)
        many = await rate(seconds / 2, *[queue.enqueue_many] * MANY_CALLERS)
        processed = await rate(seconds, *[lambda: queue.process(worker_id)] * LOOPS)
        while await queue.process(worker_id):
            pass
        wal, lives = await _lives(dsn, queue, worker_id, seconds)
        depths = [await _claim_p95_ms(queue, worker_id, waiting) for waiting in (1_000, stage.extent.jobs_waiting)]
    held, free = await _under_an_old_transaction(stage, 2 * seconds)
    return [
        Figure(name=f"enqueued in {AT_ONCE:,}s, {MANY_CALLERS} callers", value=many, unit="/s", at_least=60_000),
        Figure(name=f"enqueued one at a time, {SINGLE_CALLERS} callers", value=single, unit="/s", at_least=5_000),
        Figure(name="no-op jobs processed, fenced, history kept", value=processed, unit="/s", at_least=20_000),
        Figure(name="whole lives, all at once", value=lives, unit="/s", at_least=10_000),
        Figure(name="WAL a job over its whole life", value=wal / 1024, unit="KiB", at_most=1.25),
        Figure(
            name=f"claim p95 at {stage.extent.jobs_waiting:,} waiting / at 1,000", value=depths[1] / depths[0], unit="x",
            at_most=2, note=f"{depths[0]:.1f} ms, {depths[1]:.1f} ms",
        ),
        Figure(
            name=f"whole lives under a transaction held open for {4 * seconds:.0f} s / without, in turns", value=held / free,
            unit="x", note=f"{held:,.0f}/s, {free:,.0f}/s; at 2,000/s see `held`",
        ),
    ]  # fmt: skip


async def _lives(dsn: str, queue: Queue, worker_id: str, duration_s: float) -> tuple[float, float]:
    """The WAL that a whole life takes, in bytes, and lives a second."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("checkpoint")
        ended_before = await connection.fetchval("select count(*) from mcp.job_executions")
        before = await connection.fetchval("select pg_current_wal_insert_lsn()")
        done = 0

        async def life() -> int:
            nonlocal done
            count = await queue.life(worker_id)
            done += count  # not in one line: what the other loop adds meanwhile would be lost
            return AT_ONCE

        lives = await rate(duration_s, *[life] * 2)
        while count := await queue.process(worker_id):
            done += count
        assert done == await connection.fetchval("select count(*) from mcp.job_executions") - ended_before
        return float(await connection.fetchval("select pg_current_wal_insert_lsn() - $1::pg_lsn", before)) / done, lives
    finally:
        await connection.close()


async def _claim_p95_ms(queue: Queue, worker_id: str, waiting: int) -> float:
    """Of claims of 500, while so many wait, of which the most are left."""
    for _ in range(waiting // AT_ONCE):
        await queue.enqueue_many()
    latencies_s: list[float] = []
    for _ in range(60):
        for _ in range(await queue.process(worker_id, latencies_s) // AT_ONCE or 1):
            await queue.enqueue_many()
    return percentile(latencies_s, 0.95) * 1000


async def _under_an_old_transaction(stage: Stage, duration_s: float) -> tuple[float, float]:
    """Lives a second in the later half of the time, while a transaction keeps all that is deleted in its place, and without.

    Two databases work in turns: the machine's own speed, which drifts by more than this could show, is the same for both.
    """
    async with contextlib.AsyncExitStack() as stack:
        sides = [await _side(stage, stack) for _ in range(2)]
        connection = await asyncpg.connect(sides[0].dsn)
        stack.push_async_callback(connection.close)
        await connection.execute("begin isolation level repeatable read")
        await connection.fetchval("select count(*) from mcp.jobs_ready")
        turns = [[await rate(TURN_S, *[side.life] * 2) for side in sides] for _ in range(round(duration_s / TURN_S))]
    held, free = (statistics.median(rates) for rates in zip(*turns[len(turns) // 2 :], strict=True))
    return held, free


class _Side(NamedTuple):
    """A database of its own, and whole lives of jobs in it."""

    dsn: str
    life: Callable[[], Awaitable[int]]


async def _side(stage: Stage, stack: contextlib.AsyncExitStack) -> _Side:
    dsn = await stack.enter_async_context(stage.database())
    queue = await stack.enter_async_context(queue_on(dsn))
    life = functools.partial(queue.life, await queue.worker())
    await life()  # whatever is done the first time is done
    return _Side(dsn, life)
