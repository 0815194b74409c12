"""What a handler of jobs is given: the job, the right to work on it, and the little that it may say while it does."""

from __future__ import annotations

import asyncio
import datetime
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from devmesh.client.asking import Requests
from devmesh.client.errors import LeaseLost, MeshError
from devmesh.core.errors import Kind


class Job(msgspec.Struct):
    """A job as a worker is given it."""

    id: uuid.UUID
    queue: str
    type: str
    payload: Any
    priority: int
    attempt: int
    retry_count: int
    max_retries: int
    timeout_ms: int
    tags: list[str]
    created_at: datetime.datetime
    lease_until: datetime.datetime


class Hold:
    """The right to work on one attempt, as this process knows it. The heart's thread writes it, any thread may read it."""

    __slots__ = ("_lock", "_on_lost", "_renewed_at", "attempt", "job_id", "lease_s", "lost_reason")

    def __init__(self, job: Job, lease_s: float, asked_at: float) -> None:
        """`asked_at`: this process's monotonic time just before it asked for the job; the server began the lease later."""
        self.job_id, self.attempt, self.lease_s = job.id, job.attempt, lease_s
        self._renewed_at = asked_at
        self._lock = threading.Lock()
        self._on_lost: Callable[[], object] | None = None
        self.lost_reason: str | None = None

    @property
    def is_lost(self) -> bool:
        if self.lost_reason is None and time.monotonic() > self._renewed_at + self.lease_s:
            self.lose(f"it was not renewed within its {self.lease_s:g} s")
        return self.lost_reason is not None

    def renewed(self, asked_at: float) -> None:
        self._renewed_at = max(self._renewed_at, asked_at)

    def watch(self, on_lost: Callable[[], object]) -> None:
        """Has this called when it is lost, at once if it is already; from whichever thread finds it out."""
        with self._lock:
            self._on_lost = on_lost
        if self.lost_reason is not None:
            on_lost()

    def lose(self, reason: str) -> None:
        with self._lock:
            if self.lost_reason is not None:
                return
            self.lost_reason = reason
            on_lost = self._on_lost
        if on_lost is not None:
            on_lost()


class HeldJob:
    """A job in the hands of a handler.

    `attempt` is the fencing token: it rises each time the job is given out anew. Pass it on to whatever you write to, so that
    an attempt that was given up for dead cannot overwrite its successor's work.
    """

    __slots__ = ("_hold", "_requests", "job")

    def __init__(self, job: Job, hold: Hold, requests: Requests) -> None:
        self.job, self._hold, self._requests = job, hold, requests

    def __repr__(self) -> str:
        return f"<job {self.job.id} {self.job.type}, attempt {self.job.attempt}>"

    @property
    def id(self) -> uuid.UUID:
        return self.job.id

    @property
    def type(self) -> str:
        return self.job.type

    @property
    def payload(self) -> Any:
        return self.job.payload

    @property
    def attempt(self) -> int:
        return self.job.attempt

    @property
    def retry_count(self) -> int:
        return self.job.retry_count

    @property
    def is_lost(self) -> bool:
        """Whether the job is not this handler's any more. Safe and cheap to ask from any thread."""
        return self._hold.is_lost

    @property
    def lost_reason(self) -> str | None:
        return self._hold.lost_reason

    async def _progress(self, fraction: float, message: str | None) -> None:
        if self.is_lost:
            raise LeaseLost(self._hold.lost_reason or "it is lost")
        report = {"job_id": self.id, "attempt": self.attempt, "progress": fraction, "message": message}
        asked_at = time.monotonic()
        try:
            await self._requests.request("job.heartbeat", {"jobs": [report]}, dict[str, Any])
            self._hold.renewed(asked_at)
        except MeshError as error:
            if error.kind not in (Kind.CONFLICT, Kind.NOT_FOUND):
                raise
            self._hold.lose(error.message)
            raise LeaseLost(error.message) from error


class JobContext(HeldJob):
    """What a coroutine handler is given. When the job is lost or cancelled, the handler is cancelled as well."""

    async def progress(self, fraction: float, message: str | None = None) -> None:
        """Report how far the job is, 0-1. It renews the lease. Raises LeaseLost when that is gone."""
        await self._progress(fraction, message)


class BlockingJobContext(HeldJob):
    """What a plain function is given. Nobody can stop a thread: ask `is_lost` now and then when the work is long."""

    __slots__ = ("_loop",)

    def __init__(self, job: Job, hold: Hold, requests: Requests, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(job, hold, requests)
        self._loop = loop

    def progress(self, fraction: float, message: str | None = None) -> None:
        """Report how far the job is, 0-1. It renews the lease. Raises LeaseLost when that is gone."""
        asyncio.run_coroutine_threadsafe(self._progress(fraction, message), self._loop).result()
