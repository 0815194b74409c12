"""Natural batching against one call at a time: the same corridor with two settings, in turns.

The callers are in this process: what is compared is the corridor, not the wire.
"""

from __future__ import annotations

import asyncio
import statistics
import time

import msgspec

from bench.figures import Figure
from bench.pgbench import IN_FLIGHT, creating_limit
from bench.stage import POOL_SIZE, Stage, corridor_on
from devmesh.core.access import Caller
from devmesh.operations.corridor import Corridor

TURNS = 10  # of each setting; the order changes from one to the next
MANY = 200
ONE_AT_A_TIME = {"DEVMESH_GATHER_BATCH_MAX": "1", "DEVMESH_GATHER_IN_FLIGHT_MAX": str(POOL_SIZE)}
NO_SLOWER = 0.95  # two equal things differ by this much within a run
PARAMS = msgspec.json.encode({"title": "measure", "required_capabilities": ["summarize"]})

Rates = list[tuple[float, float]]  # batched and one at a time, turn by turn


async def measure(stage: Stage) -> list[Figure]:
    async with (
        stage.database() as dsn,
        corridor_on(dsn) as (together, caller),
        corridor_on(dsn, **ONE_AT_A_TIME) as (apart, _),
    ):
        many = await _turns(together, apart, caller, MANY, stage.extent.measured_s)
        one = await _turns(together, apart, caller, 1, stage.extent.measured_s)
    batched_limit = await creating_limit(stage, batch=MANY // IN_FLIGHT)
    single_limit = await creating_limit(stage, batch=1, clients=POOL_SIZE)
    lone_limit = await creating_limit(stage, batch=1, clients=1)
    return [
        *_figures(f"{MANY} callers", many, (batched_limit, single_limit), at_least=10),
        *_figures("1 caller", one, (lone_limit, lone_limit), at_least=NO_SLOWER),
    ]


async def _turns(together: Corridor, apart: Corridor, caller: Caller, callers: int, each_s: float) -> Rates:
    """Calls a second with both settings, in short turns."""
    rates: Rates = []
    for number in range(TURNS):
        ordered = [together, apart] if number % 2 else [apart, together]
        turn = {id(corridor): await _turn(corridor, caller, callers, each_s / TURNS) for corridor in ordered}
        rates.append((turn[id(together)], turn[id(apart)]))
    return rates


def _figures(who: str, rates: Rates, limits: tuple[float, float], at_least: float) -> list[Figure]:
    """The median turn: what else the machine does then spoils a few turns and not the figure."""
    batched, single = (statistics.median(rate) for rate in zip(*rates, strict=True))
    ratio = statistics.median(batched / single for batched, single in rates)
    return [
        Figure(name=f"natural batching, {who}", value=batched, unit="/s", limit=limits[0]),
        Figure(name=f"one at a time, {who}", value=single, unit="/s", limit=limits[1]),
        Figure(name=f"… ratio, {who}", value=ratio, unit="times", at_least=at_least),
    ]


async def _turn(corridor: Corridor, caller: Caller, callers: int, begin_s: float) -> float:
    """Calls a second, from the first call to the last answer. None is begun after `begin_s`."""
    began = time.perf_counter()
    done = 0

    async def call() -> None:
        nonlocal done
        while time.perf_counter() < began + begin_s:
            await corridor.serve("task.create", caller, PARAMS)
            done += 1

    await asyncio.gather(*(call() for _ in range(callers)))
    return done / (time.perf_counter() - began)
