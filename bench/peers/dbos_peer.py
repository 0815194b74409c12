"""DBOS: durable workflows from a queue, a hundred at once."""

from __future__ import annotations

import asyncio
import logging
import time

from dbos import DBOS
from measuring import ADDRESS, CALLERS, CONCURRENCY, HANDLER_S, Counter, rate, steadily, tell

logging.disable(logging.WARNING)
config = {"name": "bench", "system_database_url": ADDRESS, "log_level": "ERROR", "run_admin_server": False}
DBOS(config=config)
noops, sleeps, timed = Counter(), Counter(), Counter()
TAKEN = 500
queues = {}


@DBOS.workflow()
async def noop(n: int) -> None:
    noops.done += 1


@DBOS.workflow()
async def sleep(n: int) -> None:
    await asyncio.sleep(HANDLER_S)
    sleeps.done += 1


@DBOS.workflow()
async def time_it(at: float) -> None:
    timed.began_after(at)


async def main() -> None:
    DBOS.launch()
    for name in ("noop", "sleep", "timed"):
        queues[name] = await DBOS.register_queue_async(name, worker_concurrency=CONCURRENCY, polling_interval_sec=0.05)

    async def one() -> int:
        await queues["noop"].enqueue_async(noop, 1)
        return 1

    # It has no call for many; the workers of a queue are in the process that enqueues, and begin at once.
    tell("enqueue one at a time", await rate(one, CALLERS))
    before, began = noops.done, time.perf_counter()
    await asyncio.sleep(5)
    tell("no-op", (noops.done - before) / (time.perf_counter() - began))
    await asyncio.gather(*(queues["sleep"].enqueue_async(sleep, n) for n in range(TAKEN)))
    await sleeps.measured("10 ms handlers", TAKEN)
    count = await steadily(lambda at: queues["timed"].enqueue_async(time_it, at))
    ends_at = time.monotonic() + 60
    while len(timed.delays_ms) < count and time.monotonic() < ends_at:
        await asyncio.sleep(0.05)
    timed.tell_delays()
    DBOS.destroy()


asyncio.run(main())
