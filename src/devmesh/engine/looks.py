"""Which tenants have something that is due: the loops of a process ask at the same moment, and go in one statement.

An idle worker does little else, and what it costs is the number of its round trips: each look by itself finds nothing in a
tenth of a millisecond, and takes a whole one of both processes.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
import uuid

from devmesh.core.errors import Kind, MeshError
from devmesh.store.database import Database, Record
from devmesh.store.statements import Statement, load, together

TENANTS, SNAPSHOTS = load("tenants"), load("snapshots")
KNOWN = (
    TENANTS.with_pending, TENANTS.with_overdue, TENANTS.with_unannounced, TENANTS.with_overdue_jobs,
    TENANTS.with_due_limited_jobs, TENANTS.with_waiting_jobs, TENANTS.with_due_schedules, TENANTS.with_late_workers,
    SNAPSHOTS.with_due_policies,
)  # fmt: skip

GATHER_S = 0.005  # timers of one moment do not fire in one
TOGETHER_S_MAX = 0.1  # for which loops wait for each other's looks: one that is slow, or locked out, holds up no other
APART_S = 60.0  # for which each then goes by itself
TOGETHER = together("looks", KNOWN)


class Looks:
    """Asks the statements of `KNOWN`, which have no parameters and answer with rows of `tenant_id`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._phase_s = random.uniform(0, 3600)  # noqa: S311  no secret: nodes are not to march in step
        self._asked: set[str] = set()
        self._under_way: asyncio.Task[list[Record]] | None = None
        self._apart_until = -math.inf

    def pause_s(self, interval_s: float) -> float:
        """Until the next of the moments, so far apart, in which all who have this interval ask."""
        pause_s = interval_s - (time.monotonic() + self._phase_s) % interval_s
        return pause_s if pause_s > interval_s / 10 else pause_s + interval_s  # a timer may have fired a little early

    async def tenants(self, statement: Statement) -> list[uuid.UUID]:
        if time.monotonic() >= self._apart_until:
            try:
                async with asyncio.timeout(TOGETHER_S_MAX):
                    found = await self._together(statement.name)
            except (MeshError, TimeoutError) as error:
                self._apart_until = time.monotonic() + APART_S  # which of them fails, or is slow, is seen apart
                if isinstance(error, MeshError) and error.kind is Kind.UNAVAILABLE:
                    raise
            else:
                return [row["tenant_id"] for row in found if row["statement"] == statement.name]
        return [row["tenant_id"] for row in await self._database.read(statement)]

    async def _together(self, name: str) -> list[Record]:
        self._asked.add(name)
        if self._under_way is None:
            self._under_way = asyncio.get_running_loop().create_task(self._look())
            self._under_way.add_done_callback(_has_been_heard)
        return await asyncio.shield(self._under_way)

    async def _look(self) -> list[Record]:
        await asyncio.sleep(GATHER_S)
        asked, self._asked, self._under_way = sorted(self._asked), set(), None
        return await self._database.read(TOGETHER, asked)


def _has_been_heard(look: asyncio.Task[list[Record]]) -> None:
    """Who asked may have stopped to wait, or have been stopped: what the look failed of is nobody's business then."""
    if not look.cancelled():
        look.exception()
