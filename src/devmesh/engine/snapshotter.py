"""Takes snapshots of tenants at the intervals that they wish for, and forgets those that are more than are kept."""

from __future__ import annotations

import uuid

from devmesh.core.snapshots import SnapshotKind
from devmesh.engine.looks import Looks
from devmesh.engine.reaper import OverdueLoop
from devmesh.operations.snapshots import SQL, dependents, forget, take
from devmesh.operations.work import Work, WorkRunner

AGAIN_S = 300.0  # after which one that has failed is tried again, unless its interval is shorter


class Snapshotter(OverdueLoop):
    name = "snapshotter"

    def __init__(self, runner: WorkRunner, looks: Looks, interval_s: float) -> None:
        super().__init__(runner, looks, interval_s, SQL.with_due_policies, take_due)

    async def _work_through(self, tenant_id: uuid.UUID) -> None:
        """In two transactions: a tenant that is too large, or has too many already, is not tried again with each pass."""
        if await self._runner.run(tenant_id, take_due):
            await self._runner.run(tenant_id, take_next)


async def take_due(work: Work) -> int:
    """Whether a snapshot of a tenant is due, and nobody else takes it. If nothing comes of it, it is due again later."""
    return int(await work.tx.fetch_value(SQL.take_due, work.tenant_id, AGAIN_S) is not None)


async def take_next(work: Work) -> None:
    keep = await work.tx.fetch_value(SQL.postpone, work.tenant_id)
    if keep is None:  # no more are wished for
        return
    for row in await work.tx.fetch(SQL.surplus, work.tenant_id, keep - 1):
        if not await dependents(work, row["snapshot_id"]):  # somebody may have come to stand on it before it was locked
            await forget(work, row["snapshot_id"])
    await take(work, SnapshotKind.AUTO, None, "at its interval", None)
