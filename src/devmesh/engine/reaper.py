"""The reaper: takes tasks back whose lease has ended, and ends those whose time is over, by the database's clock."""

from __future__ import annotations

from devmesh import telemetry
from devmesh.core import tasks
from devmesh.core.tasks import Move, Task
from devmesh.engine.loop import Loop
from devmesh.operations.task_moving import settle
from devmesh.operations.work import Work, WorkRunner
from devmesh.store.statements import load
from devmesh.store.tasks import SQL, LockedTasks

TENANTS = load("tenants")
IDEMPOTENCY = load("idempotency")
KEYS = load("keys")
REAPED_MAX = 500  # tasks that one transaction takes back
FORGOTTEN_MAX = 5_000


class Reaper(Loop):
    name = "reaper"

    def __init__(self, runner: WorkRunner, interval_s: float, idempotency_ttl_s: float) -> None:
        super().__init__(interval_s)
        self._runner, self._idempotency_ttl_s = runner, float(idempotency_ttl_s)

    async def run_once(self) -> bool:
        is_more = False
        for row in await self._runner.database.read(TENANTS.all_active):
            reaped = await self._runner.run(row["tenant_id"], reap)
            forgotten = await self._runner.run(row["tenant_id"], self._forget_keys)
            is_more |= reaped >= REAPED_MAX or forgotten >= FORGOTTEN_MAX
        await self._runner.database.read(KEYS.forget_failures)
        return is_more

    async def _forget_keys(self, work: Work) -> int:
        return await work.tx.execute(IDEMPOTENCY.forget, work.tenant_id, self._idempotency_ttl_s, FORGOTTEN_MAX)


async def reap(work: Work) -> int:
    """One pass over a tenant: how many tasks were moved."""
    rows = await work.tx.fetch(SQL.overdue_ids, work.tenant_id, REAPED_MAX)
    if not rows:
        return 0
    locked = LockedTasks(work)
    await locked.lock([row["task_id"] for row in rows])
    reaped = 0
    for row in rows:
        task = locked[row["task_id"]]
        move = overdue_move(task, work)
        if move is not None:
            reaped += 1
            locked.move(task.id, move)
            telemetry.TASKS_REAPED.labels(move.event).inc()
    await settle(work, locked)
    await locked.save()
    return reaped


def overdue_move(task: Task, work: Work) -> Move | None:
    """What is due for a task, now that it is locked; None when it was saved in the last moment."""
    if task.status in tasks.FINISHED:
        return None
    if task.deadline is not None and task.deadline < work.now:
        return tasks.time_out(task, f"the deadline {task.deadline.isoformat()} passed", work.now)
    if task.timeout_at is not None and task.timeout_at < work.now:
        return tasks.time_out(task, f"it ran longer than its timeout of {task.timeout_s} s", work.now)
    if task.lease_until is not None and task.lease_until < work.now:
        return tasks.expire(task, work.now)
    return None
