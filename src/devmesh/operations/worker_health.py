"""The verbs of workers' health: their heartbeats, what these say of them, and how it will go on."""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from devmesh.core import errors, health
from devmesh.core.access import Scope
from devmesh.core.health import Recommendation, Sample, WorkerStatus
from devmesh.core.jobs import QueueName
from devmesh.core.names import Label, PageCursor, PageLimit, decode_page_cursor, page_cursor
from devmesh.operations.registry import Call, Mutation, Params, operation, subject_of
from devmesh.operations.task_views import LAST_ID
from devmesh.operations.work import Work
from devmesh.operations.worker_alerts import clear_alerts
from devmesh.operations.workers import SQL, ById, Worker, WorkerResult, refusal, require_worker, worker_from_row
from devmesh.store.database import Record

METRICS_MAX = 50
LOOKED_THROUGH_MAX = 10_000  # rows of a worker's log, for those that have metrics
LATENCY_METRIC = "latency_ms"
NEVER = datetime.datetime(9000, 1, 1, tzinfo=datetime.UTC)
Score = Annotated[float, Meta(ge=0, le=1)]
MetricValue = Annotated[float, Meta(ge=-1e15, le=1e15)]
Metrics = Annotated[dict[Label, MetricValue], Meta(max_length=METRICS_MAX)]


class Heartbeat(Mutation, kw_only=True):
    """`metrics` are numbers by name, such as `cpu_usage`; `latency_ms` counts for the score. A worker that knows itself to be
    worse than it looks gives a `health_score` of its own.
    """

    worker_id: uuid.UUID
    metrics: Metrics | None = None
    health_score: Score | None = None


@operation("worker.heartbeat", scope=Scope.WORKER, http="POST /workers/{worker_id}/heartbeat",
           subject=subject_of("worker_id"), in_hand=True)  # fmt: skip
async def heartbeat(work: Work, calls: Sequence[Call[Heartbeat]]) -> Sequence[WorkerResult | errors.MeshError]:
    """Say that a worker is there, and how it is. Its leases are renewed by `job.heartbeat`."""
    ids = [call.params.worker_id for call in calls]
    states = {row["worker_id"]: row for row in await work.tx.fetch(SQL.states, work.tenant_id, ids)}
    refused = {
        call.params.worker_id: error
        for call in calls
        if (error := refusal(call.caller, call.params.worker_id, states) or _unusable(call.params)) is not None
    }
    beats = [call.params for call in calls if call.params.worker_id not in refused]
    heard = [Heard(beat.worker_id, _score(beat, states[beat.worker_id]), _metrics(beat)) for beat in beats]
    await note_heard(work, heard, states)
    found = {row["worker_id"]: row for row in await work.tx.fetch(SQL.get_many, work.tenant_id, ids)}
    return [
        refused.get(call.params.worker_id) or WorkerResult(worker_from_row(found[call.params.worker_id]))
        for call in calls
    ]


def _unusable(beat: Heartbeat) -> errors.MeshError | None:
    if beat.metrics is not None and not all(math.isfinite(value) for value in beat.metrics.values()):
        return errors.invalid("metrics: expected finite numbers", "metrics")
    return None


class Heard(NamedTuple):
    """A sign of life of a worker: how well it is, and what it says of itself, as JSON."""

    worker_id: uuid.UUID
    score: float
    metrics: str | None


async def note_heard(work: Work, heard: Sequence[Heard], states: Mapping[uuid.UUID, Record]) -> None:
    """Writes what has become of workers that were heard of. `states` are their rows, locked."""
    if not heard:
        return
    now = [_status(states[one.worker_id], one.score) for one in heard]
    reasons = {
        one.worker_id: "" if status == WorkerStatus.ACTIVE else f"its health score came down to {one.score:.2f}"
        for one, status in zip(heard, now, strict=True)
        if status != states[one.worker_id]["status"]
    }
    back = [one.worker_id for one in heard if states[one.worker_id]["missed_beats"] or one.worker_id in reasons]
    kinds = ["recovered" if one.worker_id in back and status == "ACTIVE" else "heartbeat"
             for one, status in zip(heard, now, strict=True)]  # fmt: skip
    await work.tx.execute(
        SQL.heartbeat, work.tenant_id, [one.worker_id for one in heard], [one.score for one in heard], now, kinds,
        [one.metrics for one in heard], [reasons.get(one.worker_id) for one in heard],
    )  # fmt: skip
    if back:
        await clear_alerts(work, back)
    for one, status in zip(heard, now, strict=True):
        if one.worker_id in reasons:
            told = {"worker": {"id": one.worker_id, "status": status, "reason": reasons[one.worker_id]}}
            work.emit("worker.status", (f"worker:{one.worker_id}",), told)


def _metrics(beat: Heartbeat) -> str | None:
    return msgspec.json.encode(beat.metrics).decode() if beat.metrics else None


def _score(beat: Heartbeat, state: Record) -> float:
    latency_ms = (beat.metrics or {}).get(LATENCY_METRIC)
    return health.score(state["failure_level"], state["capacity"], latency_ms, beat.health_score)


def _status(state: Record, score: float) -> str:
    """What a sign of life makes of a worker. One that is being emptied stays so, and one that only its silence has degraded
    is as it was before that.
    """
    status = state["status"]
    was_silent = state["missed_beats"] and state["health_score"] >= health.DEGRADED_BELOW
    enough = health.DEGRADED_BELOW if was_silent else health.RECOVERED_FROM
    if status == WorkerStatus.FAILED or (status == WorkerStatus.DEGRADED and score >= enough):
        status = WorkerStatus.ACTIVE
    is_bad = status == WorkerStatus.ACTIVE and score < health.DEGRADED_BELOW
    return WorkerStatus.DEGRADED.value if is_bad else WorkerStatus(status).value


class LogEntry(msgspec.Struct):
    """`kind` is heartbeat, missed, failed or recovered."""

    at: datetime.datetime
    health_score: float
    kind: str
    metrics: dict[str, float] | None


class HealthResult(msgspec.Struct):
    """`log` is the latest part of the worker's log, the newest first."""

    worker: Worker
    log: list[LogEntry]


class Health(ById, kw_only=True):
    limit: PageLimit = 50


@operation("worker.health", scope=Scope.READ, http="GET /workers/{worker_id}/health", single=True)
async def show_health(work: Work, call: Call[Health]) -> HealthResult:
    """Show how well a worker is, and what was noted of it: each heartbeat, and each that was missed."""
    worker = await require_worker(work, call.params.worker_id)
    rows = await _log(work, worker.id, call.params.limit)
    return HealthResult(worker, [_entry(row) for row in rows])


class PredictionResult(msgspec.Struct):
    """`slope` is the change of the score from one sample to the next, over the last ten; `time_to_failure_s` is null where it
    does not fall.
    """

    worker_id: uuid.UUID
    health_score: float
    probability: float
    slope: float
    time_to_failure_s: float | None
    recommendation: Recommendation
    samples: int


@operation("worker.predict", scope=Scope.READ, http="GET /workers/{worker_id}/prediction", single=True)
async def predict(work: Work, call: Call[ById]) -> PredictionResult:
    """Say how likely it is that a worker fails: p = (1 - score) (1 + 2 |slope|), over its last ten scores."""
    worker = await require_worker(work, call.params.worker_id)
    rows = list(reversed(await _log(work, worker.id, health.PREDICTED_FROM)))
    samples = [Sample(row["at"].timestamp(), round(row["health_score"], health.PLACES)) for row in rows]
    found = health.predict(samples)
    score = samples[-1].score if samples else worker.health_score
    return PredictionResult(
        worker.id, score, round(found.probability, health.PLACES), round(found.slope, 6), found.failure_in_s,
        found.recommendation, len(samples),
    )  # fmt: skip


class Anomaly(msgspec.Struct):
    """`score` is by how many standard deviations `value` is away from the mean; `severity` is between 1 and 5."""

    metric: str
    value: float
    mean: float
    standard_deviation: float
    score: float
    severity: int


class AnomaliesResult(msgspec.Struct):
    worker_id: uuid.UUID
    anomalies: list[Anomaly]
    samples: int


@operation("worker.anomalies", scope=Scope.READ, http="GET /workers/{worker_id}/anomalies", single=True)
async def show_anomalies(work: Work, call: Call[ById]) -> AnomaliesResult:
    """Name the metrics, as they were last said, more than two standard deviations from the mean of the last hundred."""
    worker = await require_worker(work, call.params.worker_id)
    rows = await work.tx.fetch(SQL.latest_metrics, work.tenant_id, worker.id, LOOKED_THROUGH_MAX, health.ANOMALIES_FROM)
    samples = [msgspec.json.decode(row["metrics"], type=dict[str, float]) for row in reversed(rows)]
    found = [Anomaly(*each) for each in health.anomalies(samples)]
    return AnomaliesResult(worker.id, found, len(samples))


class Optimal(Params, kw_only=True):
    min_health: Score = health.RECOVERED_FROM
    max_load: Score = 1.0
    queue: QueueName | None = None
    limit: PageLimit = 10


class OptimalResult(msgspec.Struct):
    """`worker` is the first of `workers`, null when there is none."""

    worker: Worker | None
    workers: list[Worker]


@operation("worker.optimal", scope=Scope.READ, http="GET /workers/optimal", single=True)
async def optimal(work: Work, call: Call[Optimal]) -> OptimalResult:
    """Find ACTIVE workers that have room, are at least so healthy and at most so loaded (1 is full), the healthiest first."""
    asked = call.params
    rows = await work.tx.fetch(
        SQL.optimal, work.tenant_id, asked.min_health, asked.max_load, asked.queue, asked.limit, health.SCORE_A_MISSED_BEAT,
        health.PLACES,
    )  # fmt: skip
    found = [worker_from_row(row) for row in rows]
    return OptimalResult(found[0] if found else None, found)


class Alert(msgspec.Struct):
    """`kind` is MISSED_HEARTBEAT or WORKER_FAILED; `severity` is between 1 and 5. Open until `cleared_at`."""

    id: uuid.UUID
    worker_id: uuid.UUID
    kind: str
    severity: int
    message: str
    raised_at: datetime.datetime
    cleared_at: datetime.datetime | None


class ListAlerts(Params, kw_only=True):
    worker_id: uuid.UUID | None = None
    only_open: bool = False
    limit: PageLimit = 50
    cursor: PageCursor | None = None


class AlertsResult(msgspec.Struct):
    alerts: list[Alert]
    next_cursor: str | None = None


@operation("worker.alerts", scope=Scope.READ, http="GET /workers/alerts", single=True)
async def list_alerts(work: Work, call: Call[ListAlerts]) -> AlertsResult:
    """List alerts about workers, newest first; of one worker, or the open ones, if that is asked for."""
    asked = call.params
    if asked.worker_id is not None:
        await require_worker(work, asked.worker_id)
    below = decode_page_cursor(asked.cursor) or LAST_ID
    rows = await work.tx.fetch(SQL.alerts, work.tenant_id, below, asked.worker_id, asked.only_open, asked.limit)
    found = [Alert(*row) for row in rows]
    return AlertsResult(found, page_cursor([alert.id for alert in found], asked.limit))


async def _log(work: Work, worker_id: uuid.UUID, limit: int) -> list[Record]:
    return list(await work.tx.fetch(SQL.health_log, work.tenant_id, worker_id, NEVER, limit))


def _entry(row: Record) -> LogEntry:
    metrics: Any = msgspec.json.decode(row["metrics"]) if row["metrics"] is not None else None
    return LogEntry(row["at"], round(row["health_score"], health.PLACES), row["kind"], metrics)
