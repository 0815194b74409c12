"""Heartbeats of a worker's jobs, on a thread and a connection of their own: one request for all that it holds.

A handler that keeps its event loop or the processor busy for minutes still keeps its lease, and so do all others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from devmesh.client.asking import Requests
from devmesh.client.errors import MeshError, may_pass
from devmesh.client.job_context import CANCELLED
from devmesh.client.lease import JobLease
from devmesh.client.vitals import Vitals

log = logging.getLogger("devmesh.client")

RENEWALS_PER_LEASE = 3
INTERVAL_S_MAX = 3_600.0  # between heartbeats, as a worker may promise them
LOOKS_PER_INTERVAL = 10  # for leases that have run out
JOBS_PER_REQUEST = 1_000
STOP_LIMIT_S = 10.0
OpenRequests = Callable[[], AbstractAsyncContextManager[Requests]]


class _Lease(msgspec.Struct):
    id: uuid.UUID
    is_cancel_requested: bool = False


class Refused(msgspec.Struct):
    """A job of a request about many that nothing could be done about."""

    id: uuid.UUID
    message: str


class _Leases(msgspec.Struct):
    jobs: list[_Lease]
    refused: list[Refused]


class JobHeart:
    def __init__(self, open_requests: OpenRequests, lease_s: float) -> None:
        self._open_requests, self._lease_s = open_requests, lease_s
        self._held: dict[int, JobLease] = {}  # by the job's number: a UUID is slow to hash
        self._former: set[JobLease] = set()  # that others of the same jobs have followed
        self._worker_id: uuid.UUID | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._beat()), name="devmesh job heart", daemon=True)
        self._stop = threading.Event()
        self.vitals = Vitals()

    @property
    def interval_s(self) -> float:
        """How often it beats, also while leases last for longer: who is not heard of for two intervals is given up."""
        return min(self._lease_s / RENEWALS_PER_LEASE, INTERVAL_S_MAX)

    def start(self, worker_id: uuid.UUID) -> None:
        self.stand_for(worker_id)
        self._thread.start()

    def stand_for(self, worker_id: uuid.UUID) -> None:
        """From now on it beats for this worker."""
        self._worker_id = worker_id

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(STOP_LIMIT_S)

    @property
    def held(self) -> list[JobLease]:
        return list(self._held.copy().values())

    def hold(self, lease: JobLease) -> None:
        former = self._held.get(lease.job_id.int)
        self._held[lease.job_id.int] = lease
        if former is not None:  # that it ran out of time, for one, was to be heard with the next renewal
            former.lose(f"attempt {lease.attempt} of it has begun")
            self._former.add(former)

    def release(self, lease: JobLease) -> None:
        if self._held.get(lease.job_id.int) is lease:
            del self._held[lease.job_id.int]

    async def _beat(self) -> None:
        """The thread's whole life, whatever becomes of its connection."""
        watching = asyncio.create_task(self._watch())
        while not self._stop.is_set():
            try:
                async with self._open_requests() as requests:
                    await self._beat_by(requests)
            except Exception as error:
                log.warning("the heart of worker %s begins again: %s", self._worker_id, error)
                await asyncio.to_thread(self._stop.wait, self.interval_s)
        watching.cancel()

    async def _beat_by(self, requests: Requests) -> None:
        while not await asyncio.to_thread(self._stop.wait, self.interval_s):
            held = [lease for lease in self.held if not lease.is_over]
            for begin in range(0, len(held), JOBS_PER_REQUEST):
                await self._renew(requests, held[begin : begin + JOBS_PER_REQUEST])
            with contextlib.suppress(MeshError):  # the leases say how that stands, and must not wait for it
                beat = {"worker_id": self._worker_id, "metrics": self.vitals.measure()}
                await requests.request("worker.heartbeat", beat, dict[str, Any], timeout_s=self.interval_s / 2)

    async def _watch(self) -> None:
        """Tells handlers that their leases have run out, also while nobody answers."""
        while True:
            await asyncio.sleep(self.interval_s / LOOKS_PER_INTERVAL)
            held = self.held
            for lease in held:
                lease.look()
            self._tell_of_deaf(held)

    def _tell_of_deaf(self, held: list[JobLease]) -> None:
        """Of handlers that go on long after their jobs were lost. Each keeps a slot, which nothing else shows."""
        for lease in list(self._former):
            if lease.task is None or lease.task.done():
                self._former.discard(lease)
        lost_before = time.monotonic() - self._lease_s
        for lease in [*held, *self._former]:
            if lease.lost_at < lost_before and not (lease.is_told_of or lease.task is None or lease.task.done()):
                lease.is_told_of = True
                log.warning(
                    "job %s, attempt %d, is not this worker's any more: %s; its handler goes on, and keeps its slot",
                    lease.job_id, lease.attempt, lease.lost_reason,
                )  # fmt: skip

    async def _renew(self, requests: Requests, held: list[JobLease]) -> None:
        asked_at = time.monotonic()
        by_id = {hold.job_id: hold for hold in held}
        reports = [{"job_id": hold.job_id, "attempt": hold.attempt} for hold in held]
        try:
            answer = await requests.request("job.heartbeat", {"jobs": reports}, _Leases, timeout_s=self._lease_s)
        except MeshError as error:
            if len(held) == 1 and not may_pass(error):
                held[0].lose(error.message)
            else:
                log.warning("the leases of %d jobs could not be renewed yet: %s", len(held), error.message)
            return
        for lease in answer.jobs:
            by_id[lease.id].renewed(asked_at)
            if lease.is_cancel_requested:
                by_id[lease.id].lose(CANCELLED)
        for refused in answer.refused:
            by_id[refused.id].lose(refused.message)
