"""Gives places to jobs with a concurrency key whose time has come, and forgets unique keys of jobs that are not kept."""

from __future__ import annotations

import functools
import time

from devmesh.engine.looks import Looks
from devmesh.engine.reaper import FORGET_INTERVAL_S, FORGOTTEN_MAX, REAPED_MAX, OverdueLoop
from devmesh.operations.job_limits import come_due
from devmesh.operations.job_uniqueness import SQL as UNIQUENESS
from devmesh.operations.work import WorkRunner
from devmesh.store.statements import load

TENANTS = load("tenants")


class JobLimitsKeeper(OverdueLoop):
    name = "job-limits-keeper"

    def __init__(self, runner: WorkRunner, looks: Looks, interval_s: float, unique_keys_kept_days: int) -> None:
        body = functools.partial(come_due, count_max=REAPED_MAX)
        super().__init__(runner, looks, interval_s, TENANTS.with_due_limited_jobs, body)
        self._unique_keys_kept_days = unique_keys_kept_days
        self._forgets_at = 0.0

    async def run_once(self) -> bool:
        is_more = await super().run_once()
        if time.monotonic() >= self._forgets_at:
            self._forgets_at = time.monotonic() + FORGET_INTERVAL_S
            await self._runner.database.read(UNIQUENESS.forget, self._unique_keys_kept_days, FORGOTTEN_MAX)
        return is_more
