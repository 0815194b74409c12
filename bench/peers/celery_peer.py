"""Celery on Redis: a hundred threads, prefetching, no results kept. The worker is this process, and so is who enqueues."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time

from celery import Celery, group
from measuring import ADDRESS, AT_ONCE, BACKLOG, CALLERS, CONCURRENCY, HANDLER_S, MANY_CALLERS, Counter, steadily, tell

logging.disable(logging.WARNING)
app = Celery("bench", broker=ADDRESS)
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=10,
    worker_redirect_stdouts=False,
    broker_connection_retry_on_startup=True,
    broker_pool_limit=CALLERS,
)
noops, sleeps, timed = Counter(), Counter(), Counter()
SECONDS = 5


@app.task
def noop() -> None:
    noops.done += 1


@app.task
def sleep() -> None:
    time.sleep(HANDLER_S)
    sleeps.done += 1


@app.task
def time_it(at: float) -> None:
    timed.began_after(at)


def rate(work, callers: int = 1) -> float:
    began, counts = time.perf_counter(), []

    def again() -> None:
        done = 0
        while time.perf_counter() - began < SECONDS:
            done += work()
        counts.append(done)

    threads = [threading.Thread(target=again) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def many() -> int:
    group(noop.s() for _ in range(AT_ONCE)).apply_async()
    return AT_ONCE


def one() -> int:
    noop.delay()
    return 1


tell("enqueue in thousands", rate(many, MANY_CALLERS))
tell("enqueue one at a time", rate(one, CALLERS))


async def measure() -> None:
    await noops.measured("no-op", 10**9)
    app.control.purge()
    for _ in range(BACKLOG // AT_ONCE):
        group(sleep.s() for _ in range(AT_ONCE)).apply_async()
    await sleeps.measured("10 ms handlers", BACKLOG)
    app.control.purge()
    await asyncio.sleep(3)

    async def enqueue(at: float) -> None:
        await asyncio.to_thread(time_it.delay, at)

    count = await steadily(enqueue)
    while len(timed.delays_ms) < count:
        await asyncio.sleep(0.01)
    timed.tell_delays()
    os._exit(0)  # the worker would want to be asked


threading.Thread(target=lambda: asyncio.run(measure()), daemon=True).start()
quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=ERROR"]
app.worker_main(["worker", "--pool=threads", f"--concurrency={CONCURRENCY}", *quiet])  # signals are for the main thread
