"""Natural batching against one call at a time: the same corridor with two settings, in turns.

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

ROUNDS = 10  # of each; the order changes from one to the next
CALLERS = (200, 1)
ONE_AT_A_TIME = {"DEVMESH_GATHER_BATCH_MAX": "1", "DEVMESH_GATHER_IN_FLIGHT_MAX": str(POOL_SIZE)}
NO_SLOWER = 0.95  # two equal things differ by this much within a run
PARAMS = msgspec.json.encode({"title": "measure", "required_capabilities": ["summarize"]})


async def measure(stage: Stage) -> list[Figure]:
    round_s = stage.extent.measured_s / ROUNDS
    rates: dict[tuple[int, bool], float] = {}
    async with (
        stage.database() as dsn,
        corridor_on(dsn) as (together, caller),
        corridor_on(dsn, **ONE_AT_A_TIME) as (apart, _),
    ):
        for callers in CALLERS:
            done = {True: 0, False: 0}
            for number in range(ROUNDS):
                for is_batched in (True, False) if number % 2 else (False, True):
                    done[is_batched] += await _round(together if is_batched else apart, caller, callers, round_s)
            for is_batched in (True, False):
                rates[callers, is_batched] = done[is_batched] / (ROUNDS * round_s)
    together_limit = await creating_limit(stage, batch=100)
    apart_limits = {
        200: await creating_limit(stage, batch=1, clients=POOL_SIZE),
        1: await creating_limit(stage, 1, clients=1),
    }
    figures = []
    for callers, wanted in zip(CALLERS, (10.0, NO_SLOWER), strict=True):
        batched, single = rates[callers, True], rates[callers, False]
        who = f"{callers} callers" if callers > 1 else "1 caller"
        figures += [
            Figure(
                name=f"natural batching, {who}",
                value=batched,
                unit="/s",
                limit=together_limit if callers > 1 else apart_limits[callers],
            ),
            Figure(name=f"one at a time, {who}", value=single, unit="/s", limit=apart_limits[callers]),
            Figure(name=f"… ratio, {who}", value=batched / single, unit="times", at_least=wanted),
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
