"""procrastinate: one worker, a hundred at once, told of new jobs by NOTIFY."""

from __future__ import annotations

import asyncio
import logging

from measuring import (
    ADDRESS,
    AT_ONCE,
    BACKLOG,
    CALLERS,
    CONCURRENCY,
    HANDLER_S,
    MANY_CALLERS,
    Counter,
    rate,
    steadily,
    tell,
)
from procrastinate import App, PsycopgConnector

logging.disable(logging.WARNING)
app = App(connector=PsycopgConnector(conninfo=ADDRESS, min_size=2, max_size=20))
noops, sleeps, timed = Counter(), Counter(), Counter()


@app.task(queue="noop")
async def noop(n: int) -> None:
    noops.done += 1


@app.task(queue="sleep")
async def sleep(n: int) -> None:
    await asyncio.sleep(HANDLER_S)
    sleeps.done += 1


@app.task(queue="timed")
async def time_it(at: float) -> None:
    timed.began_after(at)


async def many() -> int:
    await noop.batch_defer_async(*[{"n": n} for n in range(AT_ONCE)])
    return AT_ONCE


async def one() -> int:
    await noop.defer_async(n=1)
    return 1


async def main() -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        tell("enqueue in thousands", await rate(many, MANY_CALLERS))
        tell("enqueue one at a time", await rate(one, CALLERS))
        for task, counter, measure in ((noop, noops, "no-op"), (sleep, sleeps, "10 ms handlers")):
            await task.batch_defer_async(*[{"n": n} for n in range(min(BACKLOG, 5_000))])
            worker = asyncio.create_task(
                app.run_worker_async(queues=[task.name.rpartition(".")[2]], concurrency=CONCURRENCY)
            )
            await counter.measured(measure, BACKLOG)
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
        worker = asyncio.create_task(app.run_worker_async(queues=["timed"], concurrency=CONCURRENCY))
        await asyncio.sleep(1)
        count = await steadily(lambda at: time_it.defer_async(at=at))
        while len(timed.delays_ms) < count:
            await asyncio.sleep(0.01)
        timed.tell_delays()
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


asyncio.run(main())
