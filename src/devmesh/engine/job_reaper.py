"""The reaper of jobs: ends the attempts whose lease has ended or whose time is over, by the database's clock."""

from __future__ import annotations

import functools
import random
import time
import uuid
from collections.abc import Sequence

from devmesh import telemetry
from devmesh.core import jobs
from devmesh.core.errors import Kind, MeshError
from devmesh.core.jobs import Ending, Outcome
from devmesh.engine.looks import Looks
from devmesh.engine.reaper import REAPED_MAX, OverdueLoop
from devmesh.operations.job_ending import HeldRow, jitter, lock_held, write_endings
from devmesh.operations.work import Work, WorkRunner
from devmesh.store.jobs import SQL, json_text
from devmesh.store.statements import load

TENANTS = load("tenants")
APART_S = 8.0  # for which attempts of a tenant are ended apart in one pass
APART_FAILURES_MAX = 3  # of those that are ended apart in one pass: what fails may be nobody's own


class JobReaper(OverdueLoop):
    name = "job-reaper"

    def __init__(self, runner: WorkRunner, looks: Looks, interval_s: float) -> None:
        super().__init__(runner, looks, interval_s, TENANTS.with_overdue_jobs, reap)
        self._apart = set[uuid.UUID]()  # tenants whose attempts cannot be ended together for the moment

    async def _work_through(self, tenant_id: uuid.UUID) -> None:
        if tenant_id not in self._apart:
            try:
                await super()._work_through(tenant_id)
            except MeshError as error:
                if error.kind is not Kind.TIMEOUT:
                    raise
                self._apart.add(tenant_id)
        if tenant_id in self._apart:
            await self._reap_apart(tenant_id)

    async def _reap_apart(self, tenant_id: uuid.UUID) -> None:
        """Together they took too long. One may do so by itself, as one that very many wait for: it holds up no others, and all
        of them no other tenant.
        """
        rows = await self._runner.database.read(SQL.overdue_ids, tenant_id, REAPED_MAX)
        random.shuffle(rows)  # those that fail are not always the first
        failures, ends_at = list[MeshError](), time.monotonic() + APART_S
        for count, row in enumerate(rows):
            if count and time.monotonic() >= ends_at:
                self._is_more = True
                break
            try:
                await self._runner.run(tenant_id, functools.partial(reap_these, ids=[row["job_id"]]))
            except MeshError as error:
                failures.append(error)
                if error.kind is Kind.UNAVAILABLE or len(failures) == APART_FAILURES_MAX:
                    break
        else:
            if not failures:
                self._apart.discard(tenant_id)
        if failures:
            raise failures[-1]


async def reap(work: Work) -> int:
    """One pass over a tenant: how many attempts were ended."""
    rows = await work.tx.fetch(SQL.overdue_ids, work.tenant_id, REAPED_MAX)
    return await reap_these(work, [row["job_id"] for row in rows]) if rows else 0


async def reap_these(work: Work, ids: Sequence[uuid.UUID]) -> int:
    locked = await lock_held(work, ids)
    endings: dict[uuid.UUID, Ending] = {}
    errors: dict[uuid.UUID, str | None] = {}
    for job_id, held in locked.items():
        if (due := _due(work, held)) is None:
            continue  # its worker was heard of in the last moment
        outcome, message = due
        failed = jobs.after_failure(held.held, outcome, is_retryable=True, now=work.now, jitter=jitter())
        endings[job_id] = held.unless_cancelled(failed)
        errors[job_id] = held.error_text(json_text({"message": message}))
        telemetry.JOBS_REAPED.labels(outcome.value).inc()
    await write_endings(work, locked, endings, errors)
    return len(endings)


def _due(work: Work, held: HeldRow) -> tuple[Outcome, str] | None:
    """How an attempt ends that is over by now, and why."""
    if held.row["timeout_at"] <= work.now:
        allowed = (held.row["timeout_at"] - held.row["started_at"]).total_seconds()
        return Outcome.TIMED_OUT, f"timeout: it ran longer than the {allowed:g} s that it has"
    if held.row["lease_until"] <= work.now:
        return Outcome.LEASE_LOST, f"its worker {held.row['worker_id']} was not heard of within its lease"
    return None
