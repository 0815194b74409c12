"""How the database stands, as health asks every second: it answers, it takes writes, or it only has no connection to spare.

Must not decide what follows from it, nor wait for long: what is slow here is slow for everybody.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable

from devmesh.core.components import Component, degraded, healthy, unhealthy
from devmesh.store.database import Database
from devmesh.store.faults import DISK_FULL
from devmesh.store.statements import load

SQL = load("clock")
DISK_FULL_S = 10.0  # after a write that found no room; then others may try
ANSWER_LIMIT_S = 0.8  # below what health waits, so that the reason can be told
CLOCK_OFFSET_S_MAX = 5.0
SILENCE_S_MAX = 2.0  # a pool that is all in use is alive while somebody on it gets answers


async def check(database: Database) -> Component:
    """Raises MeshError when the database is away."""
    return await patiently(database, functools.partial(_look, database))


async def _look(database: Database) -> Component:
    [row] = await database.read(SQL.standing)
    if database.disk_full_s_ago < DISK_FULL_S:
        return unhealthy(DISK_FULL.message)
    if row["is_standby"]:
        return unhealthy("the database is a standby and takes no writes")
    if row["is_read_only"]:
        return unhealthy("the database takes no writes: it is set to be read-only (default_transaction_read_only)")
    offset_s = row["clock"].timestamp() - time.time()
    if abs(offset_s) > CLOCK_OFFSET_S_MAX:
        way = "ahead of" if offset_s > 0 else "behind"
        return degraded(
            f"the database's clock is {abs(offset_s):.0f} s {way} this machine's; leases follow the database's"
        )
    return healthy()


async def patiently(database: Database, look: Callable[[], Awaitable[Component]]) -> Component:
    """What a look into the database finds. One that gets no answer tells how the database stands, and of itself nothing."""
    try:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            return await look()
    except TimeoutError:
        return _silent(database)


def _silent(database: Database) -> Component:
    stats, silence_s = database.stats, database.silence_s
    if stats.idle == 0 and stats.waiting and silence_s < SILENCE_S_MAX:
        return degraded(f"all {stats.size} connections are in use, and {stats.waiting} wait for one")
    return unhealthy(f"no answer for {silence_s:.1f} s")
