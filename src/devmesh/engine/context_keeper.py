"""Forgets contexts that are older than they are to be kept."""

from __future__ import annotations

import datetime
import uuid

from devmesh.core.ids import first_id_at
from devmesh.engine.loop import Loop
from devmesh.operations.contexts import forget
from devmesh.operations.work import Work, WorkRunner
from devmesh.store.statements import load

TENANTS = load("tenants")
SQL = load("contexts")
DAY_S = 86_400.0
FORGOTTEN_MAX = 500  # of a tenant in one transaction


class ContextKeeper(Loop):
    name = "context-keeper"

    def __init__(self, runner: WorkRunner, interval_s: float, days_kept: float) -> None:
        """Nothing is forgotten with 0 days."""
        super().__init__(interval_s)
        self._runner, self._days_kept = runner, days_kept
        self._is_more = False

    async def run_once(self) -> bool:
        self._is_more = False
        if self._days_kept:
            rows = await self._runner.database.read(TENANTS.with_old_contexts, self._days_kept * DAY_S)
            await self.for_each([row["tenant_id"] for row in rows], self._forget)
        return self._is_more

    async def _forget(self, tenant_id: uuid.UUID) -> None:
        async def forget_old(work: Work) -> int:
            before = work.now - datetime.timedelta(days=self._days_kept)
            rows = await work.tx.fetch(SQL.older, tenant_id, first_id_at(before.timestamp()), FORGOTTEN_MAX)
            return len(await forget(work, [row["context_id"] for row in rows]))

        self._is_more |= await self._runner.run(tenant_id, forget_old) == FORGOTTEN_MAX
