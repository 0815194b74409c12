"""How much work waits and is held, in all tenants together: counted now and then, for health and for metrics."""

from __future__ import annotations

from typing import Any

from devmesh import telemetry
from devmesh.engine.loop import Loop
from devmesh.store.database import Database
from devmesh.store.statements import load

TENANTS = load("tenants")
COUNTED_MAX = 100_000  # of each: beyond it nobody needs to know better


class QueueDepths(Loop):
    name = "queue-depths"

    def __init__(self, database: Database, interval_s: float) -> None:
        super().__init__(interval_s)
        self._database = database
        self.tasks: dict[str, Any] = {"pending": None, "held": None, "counted_max": COUNTED_MAX}
        self.jobs: dict[str, Any] = {"counted_max": COUNTED_MAX}

    async def run_once(self) -> bool:
        counted = ((TENANTS.task_depths, self.tasks, telemetry.TASKS), (TENANTS.job_depths, self.jobs, telemetry.JOBS))
        for statement, depths, metric in counted:
            [row] = await self._database.read(statement, COUNTED_MAX)
            for state, count in row.items():
                depths[state] = count
                metric.labels(state).set(count)
        return False
