"""Natural batching against one call at a time: the same corridor with two settings, in turns, so that both meet the same machine.

The callers are in this process: what is compared is the corridor, not the wire.
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from bench.figures import Figure
from bench.pgbench import creating_limit
from bench.stage import POOL_SIZE, Stage, corridor_on
from devmesh.core.access import Caller
from devmesh.operations.corridor import Corridor

ROUNDS = 4
CALLERS = (200, 1)
PARAMS = msgspec.json.encode({"title": "measure", "required_capabilities": ["summarize"]})


async def measure(stage: Stage) -> list[Figure]:
    round_s = stage.extent.measured_s / 4
    rates: dict[tuple[int, bool], float] = {}
    async with (
        stage.database() as dsn,
        corridor_on(dsn) as (together, caller),
        corridor_on(dsn, gather_batch_max=1, gather_in_flight_max=POOL_SIZE) as (apart, _),
    ):
        for callers in CALLERS:
            done = {True: 0, False: 0}
            for number in range(ROUNDS * 2):
                is_batched = number % 2 == 0
                done[is_batched] += await _round(together if is_batched else apart, caller, callers, round_s)
            for is_batched in (True, False):
                rates[callers, is_batched] = done[is_batched] / (ROUNDS * round_s)
    limits = {True: await creating_limit(stage, batch=100), False: await creating_limit(stage, batch=1)}
    figures = []
    for callers, wanted in zip(CALLERS, (10.0, 1.0), strict=True):
        batched, single = rates[callers, True], rates[callers, False]
        who = f"{callers} callers" if callers > 1 else "1 caller"
        figures += [
            Figure(name=f"natural batching, {who}", value=batched, unit="/s", limit=limits[callers > 1]),
            Figure(name=f"one at a time, {who}", value=single, unit="/s", limit=limits[False]),
            Figure(name=f"… ratio, {who}", value=batched / single, unit="×", at_least=wanted),
        ]
    return figures


async def _round(corridor: Corridor, caller: Caller, callers: int, round_s: float) -> int:
    """How many calls were done in a while."""
    ends_at = time.perf_counter() + round_s
    done = 0

    async def call() -> None:
        nonlocal done
        while time.perf_counter() < ends_at:
            await corridor.serve("task.create", caller, PARAMS)
            done += 1

    await asyncio.gather(*(call() for _ in range(callers)))
    return done
