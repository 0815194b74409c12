"""The scheduler: enqueues the jobs of schedules that are due, by the database's clock.

Every worker has one, and each firing is done by one of them.
"""

from __future__ import annotations

import functools

from devmesh.engine.looks import Looks
from devmesh.engine.reaper import OverdueLoop
from devmesh.operations.schedule_firing import FIRED_MAX, fire_due
from devmesh.operations.work import WorkRunner
from devmesh.store.statements import load

TENANTS = load("tenants")


class Scheduler(OverdueLoop):
    name = "scheduler"

    def __init__(self, runner: WorkRunner, looks: Looks, interval_s: float, grace_s: float) -> None:
        body = functools.partial(fire_due, grace_s=grace_s)
        super().__init__(runner, looks, interval_s, TENANTS.with_due_schedules, body, FIRED_MAX)
