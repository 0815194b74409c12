"""The reaper: takes tasks back whose lease has ended, and ends those whose time is over, by the database's clock.

An agent that leaves for good gives away a part of what waits for it; the reaper does the rest.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable

from devmesh import telemetry
from devmesh.core import tasks
from devmesh.core.tasks import Move, Task
from devmesh.engine.looks import Looks
from devmesh.engine.loop import Loop
from devmesh.operations.agents import free_tasks_left_behind
from devmesh.operations.task_moving import settle
from devmesh.operations.work import Work, WorkRunner
from devmesh.store.statements import Statement, load
from devmesh.store.tasks import SQL, LockedTasks

TENANTS = load("tenants")
IDEMPOTENCY = load("idempotency")
KEYS = load("keys")
REAPED_MAX = 500  # tasks, or jobs, that one transaction takes back
FORGOTTEN_MAX = 20_000  # idempotency keys that one look removes
FORGET_INTERVAL_S = 5.0
FREE_INTERVAL_S = 5.0  # between looks for tasks of agents that have left, unless there may be more at once
LOOK_SHARE = 1 / 10  # of the time that looks may take
LOOK_INTERVAL_S_MAX = 5.0  # however long one took: it may only have waited for a connection


class OverdueLoop(Loop):
    """Looks which tenants have something overdue, and works through each of them."""

    def __init__(
        self,
        runner: WorkRunner,
        looks: Looks,
        interval_s: float,
        tenants: Statement,
        reap: Callable[[Work], Awaitable[int]],
        part: int = REAPED_MAX,
    ) -> None:
        """`tenants` gives those that have something; `reap` does a part of one's in its transaction, and says how much.

        As much as `part` means that there may be more.
        """
        super().__init__(interval_s)
        self._usual_interval_s = interval_s
        self._runner, self._looks = runner, looks
        self._tenants, self._reap, self._part = tenants, reap, part
        self._is_more = False

    async def run_once(self) -> bool:
        self._is_more = False
        began_s = time.monotonic()
        tenants = await self._looks.tenants(self._tenants)
        # What is gone may have to be walked through for as long as somebody holds an old transaction open.
        spared_s = min((time.monotonic() - began_s) / LOOK_SHARE, LOOK_INTERVAL_S_MAX)
        self._interval_s = max(self._usual_interval_s, spared_s)
        await self.for_each(tenants, self._work_through)
        return self._is_more

    def pause_s(self) -> float:
        return self._looks.pause_s(self._interval_s)

    async def _work_through(self, tenant_id: uuid.UUID) -> None:
        if await self._runner.run(tenant_id, self._reap) >= self._part:
            self._is_more = True


class Reaper(OverdueLoop):
    name = "reaper"

    def __init__(self, runner: WorkRunner, looks: Looks, interval_s: float, idempotency_ttl_s: float) -> None:
        super().__init__(runner, looks, interval_s, TENANTS.with_overdue, reap)
        self._idempotency_ttl_s = float(idempotency_ttl_s)
        self._forgets_at = self._frees_at = 0.0

    async def run_once(self) -> bool:
        await super().run_once()
        if time.monotonic() >= self._forgets_at:
            self._forgets_at = time.monotonic() + FORGET_INTERVAL_S
            await self._runner.database.read(IDEMPOTENCY.forget, self._idempotency_ttl_s, FORGOTTEN_MAX)
            await self._runner.database.read(KEYS.forget_failures)
        if time.monotonic() >= self._frees_at:
            self._frees_at = time.monotonic() + FREE_INTERVAL_S
            rows = await self._runner.database.read(TENANTS.with_tasks_left_behind)
            await self.for_each([row["tenant_id"] for row in rows], self._free)
        return self._is_more

    async def _free(self, tenant_id: uuid.UUID) -> None:
        if await self._runner.run(tenant_id, lambda work: free_tasks_left_behind(work, REAPED_MAX)) >= REAPED_MAX:
            self._frees_at = 0.0
            self._is_more = True


async def reap(work: Work) -> int:
    """One pass over a tenant: how many tasks were moved."""
    rows = await work.tx.fetch(SQL.overdue_ids, work.tenant_id, REAPED_MAX)
    if not rows:
        return 0
    locked = LockedTasks(work)
    await locked.lock([row["task_id"] for row in rows], whole=False)
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
