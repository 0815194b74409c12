"""What a transaction that somebody holds open does to the queue of jobs: all that is deleted stays in its place meanwhile.

Jobs come at a steady rate, and are taken and completed as they come, as by a worker beside the database. The last minute under
the transaction is compared with the minute before it was begun.
"""

from __future__ import annotations

import asyncio
import time

import asyncpg

from bench.figures import Figure, percentile
from bench.jobs import SPEC, Queue, queue_on
from bench.stage import QUICK, Stage

RATE_PER_S = 2_000
AT_ONCE = 100
HELD_S, MINUTE_S = 600.0, 60.0
TAKERS = 2


async def measure(stage: Stage) -> list[Figure]:
    held_s, minute_s = (20.0, 5.0) if stage.extent is QUICK else (HELD_S, MINUTE_S)
    async with stage.database() as dsn, queue_on(dsn) as queue:
        worker_id = await queue.worker()
        await _steadily(queue, worker_id, minute_s / 4)  # whatever is done the first time is done
        before = await _steadily(queue, worker_id, minute_s)
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute("begin isolation level repeatable read")
            await connection.fetchval("select count(*) from mcp.jobs_ready")
            await _steadily(queue, worker_id, held_s - minute_s)
            after = await _steadily(queue, worker_id, minute_s)
        finally:
            await connection.close()
    [rates, p99s] = zip(
        *((len(delays_s) / minute_s, percentile(delays_s, 0.99) * 1000) for delays_s in (before, after)), strict=True
    )
    return [
        Figure(
            name=f"{RATE_PER_S:,} jobs/s, a transaction held open for {held_s:.0f} s: rate of the end / before it",
            value=rates[1] / rates[0], unit="x", at_least=0.98, note=f"{rates[0]:,.0f}/s, {rates[1]:,.0f}/s",
        ),
        Figure(
            name="… p99 from enqueued to completed", value=p99s[1] / p99s[0], unit="x", at_most=1.5,
            note=f"{p99s[0]:.1f} ms, {p99s[1]:.1f} ms",
        ),
    ]  # fmt: skip


async def _steadily(queue: Queue, worker_id: str, duration_s: float) -> list[float]:
    """Seconds from before it was enqueued to after it was completed, of each job that was completed within the time."""
    delays_s: list[float] = []
    began = time.perf_counter()
    ends_at = began + duration_s

    async def enqueue() -> None:
        for number in range(int(duration_s * RATE_PER_S / AT_ONCE)):
            if (early_s := began + number * AT_ONCE / RATE_PER_S - time.perf_counter()) > 0:
                await asyncio.sleep(early_s)
            await queue.call("job.enqueue_many", {"jobs": [{**SPEC, "payload": time.perf_counter()}] * AT_ONCE})

    async def take() -> None:
        while time.perf_counter() < ends_at:
            jobs = await queue.finish(worker_id)
            now = time.perf_counter()
            delays_s.extend(now - job["payload"] for job in jobs)

    await asyncio.gather(enqueue(), *(take() for _ in range(TAKERS)))
    while await queue.process(worker_id):
        pass
    return delays_s
