"""PgQueuer: batches of a hundred, told of new jobs by NOTIFY."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging

import asyncpg
from measuring import ADDRESS, AT_ONCE, BACKLOG, CALLERS, HANDLER_S, MANY_CALLERS, Counter, rate, steadily, tell
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.queries import Queries

logging.disable(logging.WARNING)
noops, sleeps, timed = Counter(), Counter(), Counter()


async def main() -> None:
    async with asyncpg.create_pool(ADDRESS, min_size=4, max_size=20) as pool:
        driver = AsyncpgPoolDriver(pool)
        queries = Queries(driver)
        await queries.install()

        async def many() -> int:
            await queries.enqueue(["noop"] * AT_ONCE, [b"{}"] * AT_ONCE, [0] * AT_ONCE)
            return AT_ONCE

        async def one() -> int:
            await queries.enqueue(["noop"], [b"{}"], [0])
            return 1

        tell("enqueue in thousands", await rate(many, MANY_CALLERS))
        tell("enqueue one at a time", await rate(one, CALLERS))
        await queries.enqueue(["sleep"] * BACKLOG, [b"{}"] * BACKLOG, [0] * BACKLOG)

        async def run(name: str, handle, during) -> None:
            queue = PgQueuer(driver)
            queue.entrypoint(name)(handle)
            worker = asyncio.create_task(queue.run(dequeue_timeout=datetime.timedelta(seconds=5), batch_size=100))
            await during()
            queue.shutdown.set()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(worker, 10)

        async def noop(job) -> None:
            noops.done += 1

        async def sleep(job) -> None:
            await asyncio.sleep(HANDLER_S)
            sleeps.done += 1

        async def time_it(job) -> None:
            timed.began_after(float(job.payload))

        async def steady() -> None:
            await asyncio.sleep(1)
            count = await steadily(lambda at: queries.enqueue(["timed"], [str(at).encode()], [0]))
            while len(timed.delays_ms) < count:
                await asyncio.sleep(0.01)
            timed.tell_delays()

        await run("noop", noop, lambda: noops.measured("no-op", BACKLOG * 100))
        await run("sleep", sleep, lambda: sleeps.measured("10 ms handlers", BACKLOG))
        await run("timed", time_it, steady)


asyncio.run(main())
