"""The scheduler: enqueues the jobs of schedules that are due, by the database's clock.

Every worker has one, and each firing is done by one of them. A schedule that cannot fire keeps no other from it.
"""

from __future__ import annotations

import functools
import uuid

import structlog

from devmesh.core.errors import Kind, MeshError
from devmesh.engine.looks import Looks
from devmesh.engine.reaper import OverdueLoop
from devmesh.operations.schedule_firing import FIRED_MAX, due_ids, fire_alone, fire_due
from devmesh.operations.work import WorkRunner
from devmesh.store.statements import load

log = structlog.get_logger(__name__)
TENANTS = load("tenants")


class Scheduler(OverdueLoop):
    name = "scheduler"

    def __init__(self, runner: WorkRunner, looks: Looks, interval_s: float, grace_s: float) -> None:
        body = functools.partial(fire_due, grace_s=grace_s)
        super().__init__(runner, looks, interval_s, TENANTS.with_due_schedules, body, FIRED_MAX)
        self._grace_s = grace_s

    async def _work_through(self, tenant_id: uuid.UUID) -> None:
        try:
            await super()._work_through(tenant_id)
        except MeshError as error:
            if error.kind is Kind.UNAVAILABLE:
                raise
            await self._fire_apart(tenant_id)

    async def _fire_apart(self, tenant_id: uuid.UUID) -> None:
        """Together they did not fire: each by itself, and the pass fails if one still does not."""
        failed: MeshError | None = None
        for schedule_id in await self._runner.run(tenant_id, due_ids):
            body = functools.partial(fire_alone, schedule_id=schedule_id, grace_s=self._grace_s)
            try:
                await self._runner.run(tenant_id, body)
            except MeshError as error:
                if error.kind is Kind.UNAVAILABLE:
                    raise
                log.warning("a schedule does not fire", schedule_id=str(schedule_id), error=error.message)
                failed = error
        if failed is not None:
            raise failed
