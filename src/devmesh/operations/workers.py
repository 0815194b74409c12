"""The verbs of workers: they register, say that they are there, are emptied, and go."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from devmesh.core import errors, jobs
from devmesh.core.access import Caller, Scope
from devmesh.core.health import PLACES, WorkerStatus, score_in_silence, stale_after_s
from devmesh.core.ids import new_id
from devmesh.core.jobs import CAPACITY_MAX, Ending, Outcome, QueueName, Status
from devmesh.core.names import Name, PageCursor, PageLimit, Text, decode_page_cursor, page_cursor
from devmesh.core.tasks import AttemptNumber
from devmesh.operations.job_ending import HeldRow, end_held, jitter
from devmesh.operations.job_locking import lock_leases
from devmesh.operations.registry import Call, Mutation, Params, operation
from devmesh.operations.work import Work
from devmesh.operations.worker_alerts import clear_alerts
from devmesh.store.database import Record
from devmesh.store.jobs import SQL as JOBS
from devmesh.store.statements import load

SQL = load("workers")
CAPACITY_DEFAULT = 5
HEARTBEAT_INTERVAL_S_DEFAULT = 30.0


class Worker(msgspec.Struct):
    """`current_load` is how many jobs it holds. Only an ACTIVE one is given any. `health_score` is between 0 and 1;
    `failure_count` says how often it was given up, not having been heard of for `stale_after_s`.
    """

    id: uuid.UUID
    name: str
    queues: list[str]
    capacity: int
    current_load: int
    status: WorkerStatus
    reason: str
    heartbeat_interval_s: float
    stale_after_s: float
    heartbeat_at: datetime.datetime
    health_score: float
    missed_beats: int
    failure_count: int
    last_failure_at: datetime.datetime | None
    registered_at: datetime.datetime


class WorkerResult(msgspec.Struct):
    worker: Worker


class Register(Mutation, kw_only=True):
    name: Name
    queues: Annotated[list[QueueName], Meta(min_length=1, max_length=100)] = msgspec.field(
        default_factory=lambda: ["default"]
    )
    capacity: Annotated[int, Meta(ge=1, le=CAPACITY_MAX)] = CAPACITY_DEFAULT
    heartbeat_interval_s: Annotated[float, Meta(ge=0.1, le=3_600)] = HEARTBEAT_INTERVAL_S_DEFAULT
    stale_after_s: Annotated[float, Meta(ge=0.5, le=86_400)] | None = None
    """After how long without a heartbeat it is given up: six of its intervals, a minute at the most and never less than two
    intervals, unless it says so."""
    instance_id: uuid.UUID | None = None
    """The process, by an id of its own making: what another one of this name still holds has lost its lease."""


@operation("worker.register", scope=Scope.WORKER, http="POST /workers", single=True)
async def register(work: Work, call: Call[Register]) -> WorkerResult:
    """Register a worker, or update the one that this key registered under the same name.

    The answer's `worker.id` is what jobs are claimed with. Give the same name after a restart to be the same worker.
    """
    asked, caller = call.params, call.caller
    if asked.instance_id is not None:  # before the worker itself, as those lock them who end what it holds
        others = await work.tx.fetch(SQL.held_by_another, work.tenant_id, asked.name, asked.instance_id)
        await lock_leases(work, [row["job_id"] for row in others])
    before = await work.tx.fetch_row(SQL.instance, work.tenant_id, asked.name)
    row = await work.tx.fetch_row(
        SQL.register, work.tenant_id, new_id(), caller.owner_id, asked.name, list(dict.fromkeys(asked.queues)), asked.capacity,
        asked.heartbeat_interval_s, caller.is_admin, asked.stale_after_s or stale_after_s(asked.heartbeat_interval_s),
        asked.instance_id,
    )  # fmt: skip
    if row is None:
        raise errors.conflict("worker.name", "another key has registered a worker under this name")
    await clear_alerts(work, [row["worker_id"]])
    if before is not None:  # what was noted of the process before is not how this one is
        await work.tx.execute(SQL.note_registered, work.tenant_id, row["worker_id"])
    if (
        before is not None
        and None not in (before["instance_id"], asked.instance_id)
        and before["instance_id"] != asked.instance_id
    ):
        await give_up_jobs(work, row["worker_id"], "another process has registered under its name")
    worker = await require_worker(work, row["worker_id"])
    work.emit("worker.registered", (f"worker:{worker.id}",), {"worker": worker})
    return WorkerResult(worker)


class ById(Params, kw_only=True):
    worker_id: uuid.UUID


@operation("worker.get", scope=Scope.READ, http="GET /workers/{worker_id}", single=True)
async def get(work: Work, call: Call[ById]) -> WorkerResult:
    """Show a worker as it is now."""
    return WorkerResult(await require_worker(work, call.params.worker_id))


class ListWorkers(Params, kw_only=True):
    status: list[WorkerStatus] | None = None
    limit: PageLimit = 50
    cursor: PageCursor | None = None


class WorkersResult(msgspec.Struct):
    workers: list[Worker]
    next_cursor: str | None = None


@operation("worker.list", scope=Scope.READ, http="GET /workers", single=True)
async def list_workers(work: Work, call: Call[ListWorkers]) -> WorkersResult:
    """List workers, newest first, filtered by status."""
    asked = call.params
    rows = await work.tx.fetch(SQL.page, work.tenant_id, decode_page_cursor(asked.cursor), asked.limit, asked.status)
    found = [worker_from_row(row) for row in rows]
    return WorkersResult(found, page_cursor([worker.id for worker in found], asked.limit))


class OneWorker(Mutation, kw_only=True):
    worker_id: uuid.UUID


class Deregister(OneWorker, kw_only=True):
    instance_id: uuid.UUID | None = None
    """The process that leaves, as it registered: when another one goes by its name by now, that one stays."""
    holds_nothing: bool = False
    """All that this process held is reported: when leases of the worker are renewed, it stays for the processes that do so."""


class HeldJob(msgspec.Struct, forbid_unknown_fields=True):
    job_id: uuid.UUID
    attempt: AttemptNumber


class Reconcile(OneWorker, kw_only=True):
    """`jobs` are all that the worker knows to hold."""

    jobs: Annotated[list[HeldJob], Meta(max_length=CAPACITY_MAX)]
    instance_id: uuid.UUID | None = None
    """The process that says so, as it registered: of what another one of this name holds it knows nothing."""


class Evacuate(OneWorker, kw_only=True):
    reason: Text = ""


class EvacuatedResult(msgspec.Struct):
    """`released` counts the jobs that were taken from it and wait for others."""

    worker: Worker
    released: int


@operation("worker.reconcile", scope=Scope.WORKER, http="POST /workers/{worker_id}/reconcile", single=True)
async def reconcile(work: Work, call: Call[Reconcile]) -> EvacuatedResult:
    """Give back what a worker was given and has not heard of, such as by a claim whose answer was lost. It costs no retry.

    Not while another claim is under way, whose jobs it does not know of yet.
    """
    asked = call.params
    if (refused := refusal(call.caller, asked.worker_id, await owners_of(work, [asked.worker_id]))) is not None:
        raise refused
    # From here on a claim whose outcome was not known is over, and nobody who registers under this name gets a job.
    await work.tx.execute_spelled_out(SQL.lock_claims, str(work.tenant_id), str(asked.worker_id))
    await _require_instance(work, asked.worker_id, asked.instance_id)
    known = {(job.job_id, job.attempt) for job in asked.jobs}
    held = [row["job_id"] for row in await work.tx.fetch(SQL.held_jobs, work.tenant_id, asked.worker_id)]
    rows = await work.tx.fetch(JOBS.leases, work.tenant_id, held)
    unknown = [row["job_id"] for row in rows if (row["job_id"], row["attempt"]) not in known]

    def decide(row: HeldRow) -> Ending | None:
        is_ours = row.row["worker_id"] == asked.worker_id
        return jobs.handed_back(row.held, Outcome.RELEASED, work.now) if is_ours else None

    ended = await end_held(work, unknown, decide, {"message": "its worker has not heard that it was given it"})
    released = [each for each in ended if each.status is Status.PENDING]
    return EvacuatedResult(await require_worker(work, asked.worker_id), len(released))


@operation("worker.evacuate", scope=Scope.WORKER, http="POST /workers/{worker_id}/evacuate", single=True)
async def evacuate(work: Work, call: Call[Evacuate]) -> EvacuatedResult:
    """Give a worker no more jobs, and give those that it holds to others at once: it is DRAINING until it registers again."""
    return await _leave(work, call, WorkerStatus.DRAINING, call.params.reason)


@operation("worker.deregister", scope=Scope.WORKER, http="DELETE /workers/{worker_id}", single=True)
async def deregister(work: Work, call: Call[Deregister]) -> EvacuatedResult:
    """End a worker for good. What it holds is given to others, and its name is free.

    One of several processes of its name (`holds_nothing`) leaves without it when the others hold jobs: it stays as it is.
    """
    asked = call.params
    if asked.holds_nothing and (stays := await _leave_to_others(work, call)) is not None:
        return stays
    left = await _leave(work, call, WorkerStatus.TERMINATED, "it left")
    # Looked at after its row was written: from then on nobody else registers until this is committed.
    await _require_instance(work, asked.worker_id, asked.instance_id, or_nobody=asked.holds_nothing)
    await clear_alerts(work, [asked.worker_id])
    return left


async def _leave_to_others(work: Work, call: Call[Deregister]) -> EvacuatedResult | None:
    """The worker as it stays for other processes; None when none is known of.

    What was given out in answer to a claim and not heard of is never renewed.
    """
    asked = call.params
    if (refused := refusal(call.caller, asked.worker_id, await owners_of(work, [asked.worker_id]))) is not None:
        raise refused
    if not await work.tx.fetch_value(SQL.is_being_renewed, work.tenant_id, asked.worker_id):
        return None
    await work.tx.execute(SQL.forget_instance, work.tenant_id, asked.worker_id, asked.instance_id)
    return EvacuatedResult(await require_worker(work, asked.worker_id), 0)


async def _leave(
    work: Work, call: Call[Evacuate] | Call[Deregister], status: WorkerStatus, reason: str
) -> EvacuatedResult:
    worker_id = call.params.worker_id
    if (refused := refusal(call.caller, worker_id, await owners_of(work, [worker_id]))) is not None:
        raise refused
    await work.tx.execute_spelled_out(SQL.lock_claims, str(work.tenant_id), str(worker_id))
    held = [row["job_id"] for row in await work.tx.fetch(SQL.held_jobs, work.tenant_id, worker_id)]

    def decide(row: HeldRow) -> Ending | None:
        is_its_own = row.row["worker_id"] == worker_id  # or another was given it since it was looked for
        return jobs.handed_back(row.held, Outcome.RELEASED, work.now) if is_its_own else None

    # Leases before the worker, as those take them who end attempts. No claim comes between: it would wait for the lock above.
    ended = await end_held(work, held, decide, {"message": f"evacuated: {reason}"})
    released = [each for each in ended if each.status is Status.PENDING]
    if await work.tx.fetch(SQL.set_status, work.tenant_id, worker_id, status.value, reason):
        told = {"id": worker_id, "status": status, "reason": reason}
        work.emit("worker.status", (f"worker:{worker_id}",), {"worker": told})
    return EvacuatedResult(await require_worker(work, worker_id), len(released))


async def _require_instance(
    work: Work, worker_id: uuid.UUID, instance_id: uuid.UUID | None, *, or_nobody: bool = False
) -> None:
    """Raises conflict when a process speaks for a worker that is another's by now, or `or_nobody`'s known."""
    if instance_id is None:
        return
    known = (await owners_of(work, [worker_id])).get(worker_id)
    if known is None or known["instance_id"] not in ((instance_id, None) if or_nobody else (instance_id,)):
        raise errors.conflict("worker.instance", "another process has registered under this worker's name, and goes on")


async def give_up_jobs(work: Work, worker_id: uuid.UUID, why: str, some: Sequence[uuid.UUID] | None = None) -> None:
    """What a worker holds, or `some` of it, has lost its lease, though that may last: nobody is there to work on it."""
    held = some
    if held is None:
        held = [row["job_id"] for row in await work.tx.fetch(SQL.held_jobs, work.tenant_id, worker_id)]

    def decide(row: HeldRow) -> Ending | None:
        if row.row["worker_id"] != worker_id:
            return None
        return jobs.after_failure(row.held, Outcome.LEASE_LOST, is_retryable=True, now=work.now, jitter=jitter())

    if held:
        await end_held(work, held, decide, {"message": f"its worker {worker_id} was given up: {why}"})


async def owners_of(work: Work, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Record]:
    rows = await work.tx.fetch(SQL.owners, work.tenant_id, list(ids))
    return {row["worker_id"]: row for row in rows}


def refusal(caller: Caller, worker_id: uuid.UUID, owners: dict[uuid.UUID, Record]) -> errors.MeshError | None:
    """Why a caller may not act as a worker: only who registered it may, and administrators."""
    known = owners.get(worker_id)
    if known is None or (known["owner_id"] != caller.owner_id and not caller.is_admin):
        return errors.not_found("worker", worker_id)
    if known["status"] == WorkerStatus.TERMINATED:
        return errors.conflict("worker.terminated", "this worker has left for good; register it again")
    return None


async def require_worker(work: Work, worker_id: uuid.UUID) -> Worker:
    row = await work.tx.fetch_row(SQL.get_many, work.tenant_id, [worker_id])
    if row is None:
        raise errors.not_found("worker", worker_id)
    return worker_from_row(row)


def worker_from_row(row: Record) -> Worker:
    score = score_in_silence(row["health_score"], row["missed_beats"])
    return Worker(
        id=row["worker_id"], name=row["name"], queues=row["queues"], capacity=row["capacity"], current_load=row["current_load"],
        status=WorkerStatus(row["status"]), reason=row["reason"], heartbeat_interval_s=row["heartbeat_interval_s"],
        stale_after_s=row["stale_after_s"], heartbeat_at=row["heartbeat_at"], health_score=round(score, PLACES),
        missed_beats=row["missed_beats"], failure_count=row["failure_count"], last_failure_at=row["last_failure_at"],
        registered_at=row["registered_at"],
    )  # fmt: skip
