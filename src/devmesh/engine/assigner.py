"""The assigner: gives waiting tasks to agents with room, when the bell rings and at intervals anyway.

Any number of nodes may run it: each pass decides under the tenant's assignment lock.
"""

from __future__ import annotations

import uuid

from devmesh import telemetry
from devmesh.engine.looks import Looks
from devmesh.engine.ring_loop import RingLoop
from devmesh.operations.assigning import assign_ready
from devmesh.operations.work import WorkRunner
from devmesh.store.statements import load

TENANTS = load("tenants")


class Assigner(RingLoop):
    name = "assigner"

    def __init__(self, runner: WorkRunner, looks: Looks, interval_s: float) -> None:
        super().__init__(interval_s)
        self._runner, self._looks = runner, looks

    async def run_once(self) -> bool:
        tenants = self.take_rung()
        if tenants is None:  # a round finds the tasks whose wait is over, which nothing rings for
            tenants = set(await self._looks.tenants(TENANTS.with_pending))
        await self.for_each(self.in_turn(sorted(tenants)), self._assign)
        return bool(self._rung)

    def pause_s(self) -> float:
        return self._looks.pause_s(self._interval_s)

    async def _assign(self, tenant_id: uuid.UUID) -> None:
        given = await self._runner.run(tenant_id, assign_ready)
        telemetry.TASKS_ASSIGNED.inc(len(given.pairs))
        if given.is_more:
            self._rung.add(tenant_id)
