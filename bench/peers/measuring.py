"""What every adapter written in Python does alike. It runs in the peers' environment, so it knows nothing of DevMesh.

An adapter prints a line of JSON for each figure: {"measure": …, "value": …}. It is told what to do by the environment: the
address of its database or Redis, and how much.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

ADDRESS = os.environ["PEER_ADDRESS"]
SECONDS = float(os.environ.get("PEER_SECONDS", "5"))
BACKLOG = int(os.environ.get("PEER_BACKLOG", "20000"))
AT_ONCE = 1_000
CALLERS, MANY_CALLERS = 50, 4  # who enqueue singly, and in thousands
CONCURRENCY = 100
HANDLER_S = 0.010
LATENCY_PER_S = 100


def tell(measure: str, value: float) -> None:
    print(json.dumps({"measure": measure, "value": value}), flush=True)


async def rate(work: Callable[[], Awaitable[int]], callers: int = 1, seconds: float = SECONDS) -> float:
    """How many a second, while each caller does it again and again."""
    began = time.perf_counter()

    async def again() -> int:
        done = 0
        while time.perf_counter() - began < seconds:
            count = await work()
            done += count
        return done

    total = sum(await asyncio.gather(*(again() for _ in range(callers))))
    return total / (time.perf_counter() - began)


class Counter:
    """Counts what handlers do, and how long it took them to begin."""

    def __init__(self) -> None:
        self.done = 0
        self.delays_ms: list[float] = []

    async def measured(self, measure: str, limit: int, seconds: float = SECONDS) -> None:
        """Tells how many were done a second, from the first on, until the limit or the time is reached."""
        while not self.done:
            await asyncio.sleep(0.001)
        began, before = time.perf_counter(), self.done
        while time.perf_counter() - began < seconds and self.done < limit:
            await asyncio.sleep(0.005)
        tell(measure, (self.done - before) / (time.perf_counter() - began))

    def began_after(self, enqueued_at: float) -> None:
        self.delays_ms.append((time.time() - enqueued_at) * 1000)

    def tell_delays(self) -> None:
        ordered = sorted(self.delays_ms)
        tell("latency p50", statistics.median(ordered))
        tell("latency p99", ordered[int(len(ordered) * 0.99)])


async def steadily(enqueue: Callable[[float], Awaitable[Any]], seconds: float = SECONDS) -> int:
    """Enqueues at a steady rate, each with the time at which it was. How many."""
    began = time.perf_counter()
    count = 0
    while (now := time.perf_counter() - began) < seconds:
        if (wait_s := count / LATENCY_PER_S - now) > 0:
            await asyncio.sleep(wait_s)
        await enqueue(time.time())
        count += 1
    return count
