"""Watches workers: notes heartbeats that were missed, and gives up those that are silent for too long, by the database's clock.

What such a worker holds is taken from it at once: its attempts have lost their lease, and others follow. Whoever has missed
heartbeats and has claimed or renewed a lease since is as well as it was before. If it sends none and only renews, it misses
none more for as long as its leases last: they are renewed less often than heartbeats come.
"""

from __future__ import annotations

import functools
import math
import random
import time
import uuid
from collections.abc import Awaitable, Sequence

from devmesh import telemetry
from devmesh.core import health
from devmesh.core.errors import Kind, MeshError
from devmesh.core.health import WorkerStatus
from devmesh.core.ids import FIRST_ID
from devmesh.engine.apart import ApartLoop
from devmesh.engine.looks import Looks
from devmesh.engine.reaper import FORGOTTEN_MAX, REAPED_MAX
from devmesh.operations.job_locking import lock_leases, take_in_hand
from devmesh.operations.work import Work, WorkRunner
from devmesh.operations.worker_alerts import NewAlert, forget_workers, raise_alerts
from devmesh.operations.worker_health import Heard, note_heard
from devmesh.operations.workers import SQL, give_up_jobs
from devmesh.store.database import Record
from devmesh.store.statements import load

TENANTS = load("tenants")
COUNT_INTERVAL_S = 5.0
GAP_S = 5.0  # beyond the interval between passes, after which it begins to watch anew
ALERTS_KEPT_DAYS = 90
# Of a tenant's workers that are looked at apart: how many in a pass; for how long each at a time, and with what is taken from
# it at once.
APART_MAX, SLICE_S, PART_S = 10_000, 2.0, 0.5


class WorkerWatch(ApartLoop):
    name = "worker-watch"

    def __init__(self, runner: WorkRunner, looks: Looks, interval_s: float, health_days_kept: int) -> None:
        super().__init__(runner, looks, interval_s, TENANTS.with_late_workers, self._look)
        self._health_days_kept = health_days_kept
        self._counts_at = 0.0
        self._began_at = self._passed_at = -math.inf  # when it began to watch without a gap, and when it last did

    async def run_once(self) -> bool:
        """While the database was away nobody could be heard of: from then on a worker has the time of a heartbeat."""
        if time.monotonic() - self._passed_at >= 2 * self._interval_s + GAP_S:
            self._began_at = time.monotonic()
        try:
            is_more = await super().run_once()
        except MeshError as error:
            if error.kind is not Kind.UNAVAILABLE:  # one tenant's trouble: all the others were looked at
                self._passed_at = time.monotonic()
            raise
        self._passed_at = time.monotonic()
        if time.monotonic() >= self._counts_at:
            self._counts_at = time.monotonic() + COUNT_INTERVAL_S
            database = self._runner.database
            counts = {row["status"]: row["count"] for row in await database.read(TENANTS.workers_by_status)}
            for status in WorkerStatus:
                telemetry.WORKERS.labels(status).set(counts.get(status, 0))
            await database.read(SQL.forget_health, self._health_days_kept, FORGOTTEN_MAX)
            await database.read(SQL.forget_alerts, ALERTS_KEPT_DAYS, FORGOTTEN_MAX)
            rows = await database.read(TENANTS.with_old_workers, self._health_days_kept)
            await self.for_each([row["tenant_id"] for row in rows], self._forget_workers)
        return is_more

    def _goes_apart(self, error: MeshError) -> bool:
        return error.kind is not Kind.UNAVAILABLE

    async def _pieces(self, tenant_id: uuid.UUID) -> list[uuid.UUID]:
        """The workers of which there is news."""
        rows = await self._runner.database.read(SQL.late, tenant_id, APART_MAX, FIRST_ID)
        return [row["worker_id"] for row in rows if _is_news(row, self._watched_s) or _is_heard_again(row)]

    async def _do(self, tenant_id: uuid.UUID, piece: uuid.UUID) -> bool:
        """Takes from a worker that is to be given up what it holds, for a while; whether that was all, and is noted."""
        held = [row["job_id"] for row in await self._runner.database.read(SQL.held_jobs, tenant_id, piece)]
        random.shuffle(held)
        failure, count, ends_at = None, 1, time.monotonic() + SLICE_S
        while held and time.monotonic() < ends_at:
            part, began_s = held[:count], time.monotonic()
            give_up = functools.partial(give_up_some, worker_id=piece, held=part, watched_s=self._watched_s)
            try:
                if not await self._runner.run(tenant_id, give_up):
                    held = []
            except MeshError as error:
                if error.kind is not Kind.TIMEOUT:
                    raise
                if count > 1:  # one of them may take so long: the others do not wait for it
                    count = 1
                    continue
                failure = error
            held = held[count:]
            count = 2 * count if time.monotonic() - began_s < PART_S else max(count // 2, 1)
        if failure is not None:
            raise failure
        if not held:
            await self._runner.run(tenant_id, functools.partial(look_at, worker_id=piece, watched_s=self._watched_s))
        return not held

    async def _forget_workers(self, tenant_id: uuid.UUID) -> None:
        def forget(work: Work) -> Awaitable[int]:
            return forget_workers(work, self._health_days_kept, REAPED_MAX)

        if await self._runner.run(tenant_id, forget) >= REAPED_MAX:
            self._counts_at = 0.0

    async def _look(self, work: Work) -> int:
        return await look(work, self._watched_s)

    @property
    def _watched_s(self) -> float:
        return time.monotonic() - self._began_at


async def look(work: Work, watched_s: float) -> int:
    """One pass over a tenant, which has been watched for so long: of how many workers there is something new.

    Those of whom there is nothing new are passed over in the same pass, however many they are.
    """
    count, after = 0, FIRST_ID
    while count < REAPED_MAX:
        held = await work.tx.fetch(SQL.held_by_silent, work.tenant_id, REAPED_MAX, after)
        await lock_leases(work, [row["job_id"] for row in held])  # before the workers, as those do who end what is held
        rows = await work.tx.fetch(SQL.late, work.tenant_id, REAPED_MAX, after)
        count += await _note(work, rows, watched_s)
        if len(rows) < REAPED_MAX:
            break
        after = rows[-1]["worker_id"]
    return count


async def look_at(work: Work, worker_id: uuid.UUID, watched_s: float) -> int:
    """The same pass over one worker."""
    held = await work.tx.fetch(SQL.held_jobs, work.tenant_id, worker_id)
    await lock_leases(work, [row["job_id"] for row in held])
    return await _note(work, await _late(work, worker_id), watched_s)


async def give_up_some(work: Work, worker_id: uuid.UUID, held: Sequence[uuid.UUID], watched_s: float) -> bool:
    """Takes some of its jobs from a worker, if it is to be given up: whether it is. That is noted when it has none left: until
    then whoever looks finds it as it was, and goes on with it.
    """
    await lock_leases(work, held)
    stale = [row for row in await _late(work, worker_id) if _is_stale(row) and _is_watched(row, watched_s)]
    for row in stale:
        await give_up_jobs(work, worker_id, _silence(row), held)
    return bool(stale)


async def _late(work: Work, worker_id: uuid.UUID) -> list[Record]:
    """The worker, locked, if it is one of those that are late."""
    rows = await work.tx.fetch(SQL.late, work.tenant_id, 1, uuid.UUID(int=worker_id.int - 1))
    return [row for row in rows if row["worker_id"] == worker_id]


async def _note(work: Work, late: Sequence[Record], watched_s: float) -> int:
    return await _note_recovered(work, late) + await _note_missed(work, late, watched_s)


async def _note_recovered(work: Work, late: Sequence[Record]) -> int:
    """A claim notes that a worker was there, the renewal of a lease only that of the lease: the rest is done here."""
    heard = [row for row in late if _is_heard_again(row)]
    signs = [Heard(row["worker_id"], row["health_score"], None) for row in heard]
    await note_heard(work, signs, {row["worker_id"]: row for row in heard})
    return len(heard)


async def _note_missed(work: Work, late: Sequence[Record], watched_s: float) -> int:
    news = [row for row in late if _is_news(row, watched_s)]
    if not news:
        return 0
    missed = {row["worker_id"]: _missed(row) for row in news}
    scores = [health.score_in_silence(row["health_score"], missed[row["worker_id"]]) for row in news]
    statuses = [_status(row, score) for row, score in zip(news, scores, strict=True)]
    changed = await work.tx.fetch(
        SQL.note_missed, work.tenant_id, [row["worker_id"] for row in news], [missed[row["worker_id"]] for row in news], scores,
        [status.value for status in statuses],
        [_silence(row) if status != row["status"] else None for row, status in zip(news, statuses, strict=True)],
    )  # fmt: skip
    await _raise_alerts(work, news, missed)
    before = {row["worker_id"]: row["status"] for row in news}
    for row in changed:
        if row["status"] != before[row["worker_id"]]:
            told = {name: row[name] for name in ("status", "reason", "failure_count", "last_failure_at")}
            work.emit("worker.status", (f"worker:{row['worker_id']}",), {"worker": {"id": row["worker_id"], **told}})
    failed = [row for row, status in zip(news, statuses, strict=True) if status is WorkerStatus.FAILED]
    if len(failed) > 1:
        # What follows from the end of all that they hold is locked at once, and not of one after the other.
        held = [await work.tx.fetch(SQL.held_jobs, work.tenant_id, row["worker_id"]) for row in failed]
        await take_in_hand(work, [row["job_id"] for rows in held for row in rows])
    for row in failed:
        await give_up_jobs(work, row["worker_id"], _silence(row))
    return len(news)


def _missed(row: Record) -> int:
    if row["is_heard_by_leases"] and not _is_stale(row):
        return 0
    return health.missed_beats(row["silent_s"], row["heartbeat_interval_s"])


def _is_news(row: Record, watched_s: float) -> bool:
    """Whether it has missed more than is noted."""
    return _is_watched(row, watched_s) and (_missed(row) > row["missed_beats"] or _is_stale(row))


def _is_watched(row: Record, watched_s: float) -> bool:
    return watched_s >= health.patience_s(row["heartbeat_interval_s"], row["stale_after_s"])


def _is_heard_again(row: Record) -> bool:
    return bool(row["missed_beats"]) and not _missed(row) and not _is_stale(row)


def _is_stale(row: Record) -> bool:
    return bool(row["silent_s"] > row["stale_after_s"])


def _status(row: Record, score: float) -> WorkerStatus:
    if _is_stale(row):
        return WorkerStatus.FAILED
    if row["status"] == WorkerStatus.ACTIVE and score < health.DEGRADED_BELOW:
        return WorkerStatus.DEGRADED
    return WorkerStatus(row["status"])


def _silence(row: Record) -> str:
    return f"it was not heard of for {row['silent_s']:.1f} s"


async def _raise_alerts(work: Work, news: list[Record], missed: dict[object, int]) -> None:
    alerts = [
        (row, "MISSED_HEARTBEAT", health.severity_of_missed(missed[row["worker_id"]]))
        for row in news
        if missed[row["worker_id"]]
    ] + [(row, "WORKER_FAILED", 5) for row in news if _is_stale(row)]
    await raise_alerts(
        work, [NewAlert(row["worker_id"], kind, severity, _silence(row)) for row, kind, severity in alerts]
    )
