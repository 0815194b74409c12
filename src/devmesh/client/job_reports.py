"""How attempts of jobs ended, told by the hundred, and again and again until somebody hears it.

What waits while a request is under way goes together in the next one. A job's slot is free when the answer has come.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from devmesh.client.asking import Requests
from devmesh.client.errors import MeshError, described
from devmesh.client.job_context import Job
from devmesh.client.job_heart import Refused
from devmesh.client.lease import JobLease

log = logging.getLogger("devmesh.client")

REPORTERS = 2  # requests under way at once
REPORTS_MAX = 1_000
REPORT_BYTES_MAX = 700_000  # of one request: a message has a limit
REPORT_TIMEOUT_S = 10.0
PAUSE_S = 0.2


class Report(NamedTuple):
    """How an attempt ended: the operation that says so, and what it says."""

    verb: str
    text: bytes
    lease: JobLease


class _Told(msgspec.Struct):
    """The answer to a report: what was done is counted, and not looked at."""

    jobs: list[msgspec.Raw]
    refused: list[Refused]


class JobReports:
    def __init__(self, let_go: Callable[[Sequence[Report]], None]) -> None:
        """`let_go` is called with reports that are heard, or that nobody wants to hear."""
        self._let_go = let_go
        self._waiting: list[Report] = []
        self._has_some = asyncio.Event()
        self._telling = 0
        self._reporters: list[asyncio.Task[None]] = []

    def start(self, requests: Requests) -> None:
        self._requests = requests
        self._reporters = [asyncio.create_task(self._report_all()) for _ in range(REPORTERS)]

    def stop(self) -> None:
        for reporter in self._reporters:
            reporter.cancel()

    def say(self, report: Report) -> None:
        self._waiting.append(report)
        if not self._telling or len(self._waiting) >= REPORTS_MAX:  # a few wait for the request that is under way
            self._has_some.set()

    async def _report_all(self) -> None:
        while True:
            await self._has_some.wait()
            some = self._next()
            if len(self._waiting) < REPORTS_MAX:
                self._has_some.clear()
            if some:
                self._telling += 1
                try:
                    await self._tell(some[0].verb, some)
                finally:
                    self._telling -= 1
            if self._waiting and not self._telling:
                self._has_some.set()

    def _next(self) -> list[Report]:
        """As many as one request takes."""
        some, size = list[Report](), 0
        for report in self._waiting:
            if some and (
                report.verb != some[0].verb or len(some) == REPORTS_MAX or size + len(report.text) > REPORT_BYTES_MAX
            ):
                break
            some.append(report)
            size += len(report.text)
        del self._waiting[: len(some)]
        return some

    async def _tell(self, verb: str, reports: list[Report]) -> None:
        """Says how attempts ended, again and again while nobody hears it; then their slots are free."""
        jobs = msgspec.Raw(b"[" + b",".join(report.text for report in reports) + b"]")
        while True:
            try:
                answer = await self._requests.request(f"job.{verb}", {"jobs": jobs}, _Told, timeout_s=REPORT_TIMEOUT_S)
                for refused in answer.refused:
                    log.warning("job %s: its report was refused: %s", refused.id, refused.message)
                break
            except MeshError as error:
                if not error.retryable:
                    if len(reports) > 1:  # one of them cannot be taken, and takes no other with it
                        for report in reports:
                            await self._tell(verb, [report])
                        return
                    if (instead := _instead_of(reports[0], error)) is None:
                        break
                    self.say(instead)
                    return
                log.warning("%d reports could not be made yet: %s", len(reports), error.message)
            await asyncio.sleep(PAUSE_S)
        self._let_go(reports)


def given_back(job: Job, lease: JobLease) -> Report:
    """Of a handler that was cancelled, because its job was lost or cancelled, or because this worker ends."""
    return Report("release", msgspec.json.encode({"job_id": job.id, "attempt": job.attempt}), lease)


def completed(job: Job, lease: JobLease, result: Any) -> Report:
    said = {"job_id": job.id, "attempt": job.attempt}
    if result is not None:  # null is what a job has that was given none
        said["result"] = result
    try:
        return Report("complete", msgspec.json.encode(said), lease)
    except (TypeError, ValueError, OverflowError, RecursionError) as unusable:
        log.error("the result of job %s, attempt %d, is no JSON: %s", job.id, job.attempt, unusable)
        return failed(job, lease, _unusable(unusable), retryable=False)


def failed(job: Job, lease: JobLease, error: Any, *, retryable: bool = True) -> Report:
    said = {"job_id": job.id, "attempt": job.attempt, "error": error, "retryable": retryable}
    try:
        return Report("fail", msgspec.json.encode(said), lease)
    except (TypeError, ValueError, OverflowError, RecursionError) as unusable:
        return failed(job, lease, described(unusable), retryable=retryable)


def _instead_of(report: Report, error: MeshError) -> Report | None:
    """What to say when that was refused; None when nothing would be better."""
    log.warning("job %s: %s was refused: %s", report.lease.job_id, report.verb, error.message)
    if report.verb != "complete" or error.reason == "job.stale_attempt":
        return None
    lease, failure = report.lease, _unusable(error.message)
    said = {"job_id": lease.job_id, "attempt": lease.attempt, "error": failure, "retryable": False}
    return Report("fail", msgspec.json.encode(said), lease)


def _unusable(why: object) -> dict[str, str]:
    return {"type": "UnusableResult", "message": f"the handler's result cannot be sent: {why}"}
