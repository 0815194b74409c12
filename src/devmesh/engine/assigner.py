"""The assigner: gives waiting tasks to agents with room, when the bell rings and at intervals anyway.

Any number of nodes may run it: each pass decides under the tenant's assignment lock.
"""

from __future__ import annotations

import uuid

from devmesh import telemetry
from devmesh.engine.loop import Loop
from devmesh.operations.assigning import ASSIGNMENTS_MAX, assign_ready
from devmesh.operations.work import WorkRunner
from devmesh.store.statements import load

TENANTS = load("tenants")


class Assigner(Loop):
    name = "assigner"

    def __init__(self, runner: WorkRunner, interval_s: float) -> None:
        super().__init__(interval_s)
        self._runner = runner
        self._rung: set[uuid.UUID] | None = None  # None: look at all tenants

    def heard(self, tenants: frozenset[uuid.UUID] | None) -> None:
        """The bell rang."""
        if tenants is None:
            self._rung = None
        elif self._rung is not None:
            self._rung |= tenants
        self.wake()

    async def run_once(self) -> bool:
        rung, self._rung = self._rung, set()
        if not rung:
            rows = await self._runner.database.read(TENANTS.with_pending)
            rung = {row["tenant_id"] for row in rows}
        await self.for_each(sorted(rung), self._assign)
        return bool(self._rung)

    async def _assign(self, tenant_id: uuid.UUID) -> None:
        assigned = await self._runner.run(tenant_id, assign_ready)
        telemetry.TASKS_ASSIGNED.inc(assigned)
        if assigned == ASSIGNMENTS_MAX and self._rung is not None:
            self._rung.add(tenant_id)
