"""Takes snapshots of tenants at the intervals that they wish for, and forgets those that are more than are kept."""

from __future__ import annotations

from devmesh.core.snapshots import SnapshotKind
from devmesh.engine.reaper import OverdueLoop
from devmesh.operations.snapshots import SQL, forget, take
from devmesh.operations.work import Work, WorkRunner


class Snapshotter(OverdueLoop):
    name = "snapshotter"

    def __init__(self, runner: WorkRunner, interval_s: float) -> None:
        super().__init__(runner, interval_s, SQL.with_due_policies, take_due)


async def take_due(work: Work) -> int:
    """One pass over a tenant: whether a snapshot was taken."""
    keep = await work.tx.fetch_value(SQL.take_due, work.tenant_id)
    if keep is None:  # another node was first
        return 0
    for row in await work.tx.fetch(SQL.surplus, work.tenant_id, keep - 1):
        await forget(work, row["snapshot_id"])
    await take(work, SnapshotKind.AUTO, None, "at its interval", None)
    return 1
