"""The promoter: raises the priority of jobs that have waited for long, so that none starves behind more urgent ones."""

from __future__ import annotations

import functools
import random

from devmesh.core.jobs import Status
from devmesh.engine.looks import Looks
from devmesh.engine.reaper import OverdueLoop
from devmesh.operations.job_events import patch, tell
from devmesh.operations.work import Work, WorkRunner
from devmesh.store.jobs import SQL
from devmesh.store.statements import load

LIMITS, TENANTS = load("job_limits"), load("tenants")
PROMOTED_MAX = 400  # jobs in one transaction: of each queue and priority, and of each priority that wait for a place
PROMOTED_TOGETHER_MAX = 2_000  # of all queues and priorities


class JobPromoter(OverdueLoop):
    name = "job-promoter"

    def __init__(
        self, runner: WorkRunner, looks: Looks, interval_s: float, low_after_s: float, medium_after_s: float
    ) -> None:
        """After how long a job of priority 1 is promoted to 2, and one of 2 or 3 to 4; 0: it is not."""
        body = functools.partial(promote, low_after_s=low_after_s, medium_after_s=medium_after_s)
        super().__init__(runner, looks, interval_s, TENANTS.with_waiting_jobs, body, PROMOTED_MAX)


async def promote(work: Work, *, low_after_s: float, medium_after_s: float) -> int:
    """One pass over a tenant: how many jobs were promoted."""
    queues = [row["queue"] for row in await work.tx.fetch(SQL.queues_waiting, work.tenant_id)]
    random.shuffle(queues)  # there may be no room for all of them, and none is to be the last each time
    limits = PROMOTED_MAX, PROMOTED_TOGETHER_MAX
    rows = [
        *await work.tx.fetch(SQL.promote, work.tenant_id, queues, low_after_s, medium_after_s, *limits),
        *await work.tx.fetch(LIMITS.promote, work.tenant_id, low_after_s, medium_after_s, PROMOTED_MAX),
    ]
    for priority in (2, 4):
        moved = [
            (row["queue"], patch(row["job_id"], row["attempt"], priority=priority))
            for row in rows
            if row["priority"] == priority
        ]
        tell(work, "job.promoted", moved, Status.PENDING)
    return len(rows)
