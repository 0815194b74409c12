"""What a handler of jobs is given: the job, the right to work on it, and the little that it may say while it does."""

from __future__ import annotations

import asyncio
import datetime
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from devmesh.client.asking import Requests
from devmesh.client.errors import LeaseLost, MeshError
from devmesh.client.lease import JobLease
from devmesh.core.errors import Kind

PAUSE_S = 0.2
CANCELLED = "it was cancelled"


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


class HeldJob:
    """A job in the hands of a handler.

    `attempt` is the fencing token: it rises each time the job is given out anew. Pass it on to whatever you write to, so that
    an attempt that was given up for dead cannot overwrite its successor's work.
    """

    __slots__ = ("_lease", "_requests", "job")

    def __init__(self, job: Job, lease: JobLease, requests: Requests) -> None:
        self.job, self._lease, self._requests = job, lease, requests

    def __repr__(self) -> str:
        return f"<job {self.job.id} {self.job.type}, attempt {self.job.attempt}>"

    @property
    def id(self) -> uuid.UUID:
        return self.job.id

    @property
    def type(self) -> str:
        return self.job.type

    @property
    def queue(self) -> str:
        return self.job.queue

    @property
    def payload(self) -> Any:
        return self.job.payload

    @property
    def attempt(self) -> int:
        return self.job.attempt

    @property
    def tags(self) -> list[str]:
        return self.job.tags

    @property
    def priority(self) -> int:
        return self.job.priority

    @property
    def retry_count(self) -> int:
        return self.job.retry_count

    @property
    def max_retries(self) -> int:
        return self.job.max_retries

    @property
    def is_lost(self) -> bool:
        """Whether the job is not this handler's any more. Safe and cheap to ask from any thread."""
        return self.lost_reason is not None

    @property
    def lost_reason(self) -> str | None:
        reason = self._lease.lost_reason
        if reason is not None:
            self._lease.is_known_lost = True
        return reason

    async def _remember(self, text: str, about: dict[str, Any]) -> uuid.UUID:
        told = {"type": self.type, "text": text, "job_id": self.id, "attempt": self.attempt, **about}
        answer = await self._once("context.store", told)
        return uuid.UUID(answer["context"]["id"])

    async def _enqueue(self, type_: str, asked: dict[str, Any]) -> uuid.UUID:
        answer = await self._once("job.enqueue", {"type": type_, **asked})
        return uuid.UUID(answer["job"]["id"])

    async def _enqueue_many(self, jobs: Sequence[Mapping[str, Any]], asked: dict[str, Any]) -> list[uuid.UUID]:
        answer = await self._once("job.enqueue_many", {"jobs": jobs, **asked})
        return [uuid.UUID(job["id"]) for job in answer["jobs"]]

    async def _progress(self, fraction: float, message: str | None) -> None:
        if (reason := self.lost_reason) is not None:
            raise LeaseLost(reason, "job")
        report = {"job_id": self.id, "attempt": self.attempt, "progress": fraction, "message": message}
        asked_at = time.monotonic()
        try:
            answer = await self._insist("job.heartbeat", {"jobs": [report]})
        except MeshError as error:
            if error.kind not in (Kind.CONFLICT, Kind.NOT_FOUND):
                raise
            self._lease.lose(error.message)
            raise LeaseLost(error.message, "job") from error
        self._lease.renewed(asked_at)
        if answer["jobs"][0]["is_cancel_requested"]:
            self._lease.lose(CANCELLED)
            raise LeaseLost(CANCELLED, "job")

    async def _once(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Insists on what is to be done once, however often it is asked."""
        return await self._insist(method, {"idempotency_key": uuid.uuid4().hex, **params})

    async def _insist(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Asks again while nobody can hear it, as long as the job is held: that is no failure of the handler's.

        Raises LeaseLost when it is not any more.
        """
        while True:
            try:
                return await self._requests.request(method, params, dict[str, Any])
            except MeshError as error:
                if not error.retryable:
                    raise
                if (reason := self.lost_reason) is not None:
                    raise LeaseLost(reason, "job") from error
                pause_s = (error.retry_after_ms or 0) / 1000
            await asyncio.sleep(max(PAUSE_S, pause_s))


class JobContext(HeldJob):
    """What a coroutine handler is given. When the job is lost or cancelled, the handler is cancelled as well."""

    async def progress(self, fraction: float, message: str | None = None) -> None:
        """Report how far the job is, 0-1. It renews the lease. Raises LeaseLost when that is gone, or the job cancelled."""
        await self._progress(fraction, message)

    async def remember(self, text: str, **about: Any) -> uuid.UUID:
        """Keep what was learned, for executions that do something alike. Takes what `context.store` takes, gives its id."""
        return await self._remember(text, about)

    async def enqueue(self, type_: str, /, **asked: Any) -> uuid.UUID:
        """Enqueue another job: `queue`, `payload` and the rest of what `job.enqueue` takes. Gives its id.

        An attempt that is made again enqueues again, unless a `unique_key` or an `idempotency_key` says that it is the same.
        """
        return await self._enqueue(type_, asked)

    async def enqueue_many(self, jobs: Sequence[Mapping[str, Any]], **asked: Any) -> list[uuid.UUID]:
        """Enqueue up to 10,000 jobs at once, or none: each as `job.enqueue_many` takes it, with its `type`. Gives their ids."""
        return await self._enqueue_many(jobs, asked)


class BlockingJobContext(HeldJob):
    """What a plain function is given. Nobody can stop a thread: ask `is_lost` now and then when the work is long.

    A function that returns after it was told so has let go of its job, whatever it returns: it has not done it.
    """

    __slots__ = ("_loop",)

    def __init__(self, job: Job, lease: JobLease, requests: Requests, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(job, lease, requests)
        self._loop = loop

    def progress(self, fraction: float, message: str | None = None) -> None:
        """Report how far the job is, 0-1. It renews the lease. Raises LeaseLost when that is gone, or the job cancelled."""
        asyncio.run_coroutine_threadsafe(self._progress(fraction, message), self._loop).result()

    def remember(self, text: str, **about: Any) -> uuid.UUID:
        """Keep what was learned, for executions that do something alike. Takes what `context.store` takes, gives its id."""
        return asyncio.run_coroutine_threadsafe(self._remember(text, about), self._loop).result()

    def enqueue(self, type_: str, /, **asked: Any) -> uuid.UUID:
        """Enqueue another job: `queue`, `payload` and the rest of what `job.enqueue` takes. Gives its id.

        An attempt that is made again enqueues again, unless a `unique_key` or an `idempotency_key` says that it is the same.
        """
        return asyncio.run_coroutine_threadsafe(self._enqueue(type_, asked), self._loop).result()

    def enqueue_many(self, jobs: Sequence[Mapping[str, Any]], **asked: Any) -> list[uuid.UUID]:
        """Enqueue up to 10,000 jobs at once, or none: each as `job.enqueue_many` takes it, with its `type`. Gives their ids."""
        return asyncio.run_coroutine_threadsafe(self._enqueue_many(jobs, asked), self._loop).result()
