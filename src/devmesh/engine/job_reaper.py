"""The reaper of jobs: ends the attempts whose lease has ended or whose time is over, by the database's clock."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Sequence

from devmesh import telemetry
from devmesh.core import jobs
from devmesh.core.errors import Kind, MeshError
from devmesh.core.jobs import Ending, Outcome
from devmesh.engine.apart import ApartLoop
from devmesh.engine.looks import Looks
from devmesh.engine.reaper import REAPED_MAX
from devmesh.operations.job_ending import HeldRow, jitter, lock_held, write_endings
from devmesh.operations.work import Work, WorkRunner
from devmesh.store.jobs import SQL, json_text
from devmesh.store.statements import load

TENANTS = load("tenants")


class JobReaper(ApartLoop):
    """An attempt may take too long to end by itself, as of a job that very many wait for: it holds up no others."""

    name = "job-reaper"

    def __init__(self, runner: WorkRunner, looks: Looks, interval_s: float) -> None:
        super().__init__(runner, looks, interval_s, TENANTS.with_overdue_jobs, reap)

    def _goes_apart(self, error: MeshError) -> bool:
        return error.kind is Kind.TIMEOUT

    async def _pieces(self, tenant_id: uuid.UUID) -> list[uuid.UUID]:
        return [row["job_id"] for row in await self._runner.database.read(SQL.overdue_ids, tenant_id, REAPED_MAX)]

    async def _do(self, tenant_id: uuid.UUID, piece: uuid.UUID) -> bool:
        await self._runner.run(tenant_id, functools.partial(reap_these, ids=[piece]))
        return True


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
