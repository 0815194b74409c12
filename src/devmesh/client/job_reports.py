"""How attempts of jobs ended, told by the hundred, and again and again until somebody hears it.

What waits while a request is under way goes together in the next one. A job's slot is free when the answer has come.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from devmesh.client import jsons
from devmesh.client.asking import Requests
from devmesh.client.errors import MeshError, described, may_pass, unusable
from devmesh.client.job_context import Job
from devmesh.client.job_heart import JobHeart, Refused
from devmesh.client.lease import JobLease
from devmesh.core.errors import Kind

log = logging.getLogger("devmesh.client")

REPORTERS = 2  # requests under way at once
REPORTS_MAX = 1_000
REPORT_BYTES_MAX = 700_000  # of one request: a message has a limit
REPORT_TIMEOUT_S = 10.0
FEWER = 10  # times fewer go in one request after one that was not answered in time
PAUSE_S = 0.2
UNSENDABLE = frozenset({Kind.INVALID_PARAMS, Kind.TOO_LARGE})  # refusals of what a report says, and not of who says it


class Report(NamedTuple):
    """How an attempt ended: the operation that says so, and what it says."""

    verb: str
    text: bytes
    lease: JobLease
    is_retryable: bool = True  # of a failure
    is_instead: bool = False  # of one that was refused
    together_max: int = REPORTS_MAX  # how many go in one request: with more it was refused, or not heard in time

    @property
    def is_first_try(self) -> bool:
        return self.together_max == REPORTS_MAX


class _Told(msgspec.Struct):
    """The answer to a report. What was done is not looked at."""

    refused: list[Refused]


class JobReports:
    def __init__(self, heart: JobHeart, freed: Callable[[int], None]) -> None:
        """`freed` is called with a number of slots: their reports are heard, or nobody wants to hear them. `heart` keeps the
        leases until then.
        """
        self._heart, self._freed = heart, freed
        self._waiting: list[Report] = []
        self._has_some = asyncio.Event()
        self._telling = 0  # requests under way that were not made in vain before
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
                await self._tell(some)
            self._wake()

    def _wake(self) -> None:
        if self._waiting and not self._telling:
            self._has_some.set()

    def _next(self) -> list[Report]:
        """As many as one request takes."""
        some, size = list[Report](), 0
        for report in self._waiting:
            if some and (
                report.verb != some[0].verb
                or len(some) >= min(report.together_max, some[0].together_max)
                or size + len(report.text) > REPORT_BYTES_MAX
            ):
                break
            some.append(report)
            size += len(report.text)
        del self._waiting[: len(some)]
        return some

    async def _tell(self, reports: list[Report]) -> None:
        """Says how attempts ended, again and again while nobody hears it; then their slots are free."""
        error = await self._ask_first(reports)
        while error is not None and error.retryable:
            log.warning("%d reports could not be made yet: %s", len(reports), error.message)
            self._wake()  # what keeps these from being heard may be theirs alone
            await asyncio.sleep(PAUSE_S)
            if error.kind == Kind.TIMEOUT:  # one of them may take too long, and is to take no other with it
                fewer = max(1, len(reports) // FEWER)
                self._waiting += [report._replace(together_max=fewer) for report in reports]  # behind all others
                return
            error = await self._ask(reports)
        if error is None:
            self._free(reports)
        elif len(reports) > 1:  # one of them cannot be taken, and takes no other with it
            self._waiting[:0] = [report._replace(together_max=1) for report in reports]
        else:
            self._refused(reports[0], error)

    async def _ask_first(self, reports: list[Report]) -> MeshError | None:
        """Asks while others wait for the answer, unless these were not answered before."""
        if not reports[0].is_first_try:
            self._wake()
            return await self._ask(reports)
        self._telling += 1
        try:
            return await self._ask(reports)
        finally:
            self._telling -= 1

    async def _ask(self, reports: list[Report]) -> MeshError | None:
        jobs = msgspec.Raw(b"[" + b",".join(report.text for report in reports) + b"]")
        try:
            answer = await self._requests.request(
                f"job.{reports[0].verb}", {"jobs": jobs}, _Told, timeout_s=REPORT_TIMEOUT_S
            )
        except MeshError as error:
            return error
        for refused in answer.refused:
            log.warning("job %s: its report was refused: %s", refused.id, refused.message)
        return None

    def _refused(self, report: Report, error: MeshError) -> None:
        log.warning("job %s: %s was refused: %s", report.lease.job_id, report.verb, error.message)
        if may_pass(error) and report.lease.remaining_s > 0:
            report.lease.end()  # so that it is not renewed, and this not asked for ever
            asyncio.get_running_loop().call_later(PAUSE_S, self.say, report)
        elif error.kind in UNSENDABLE and (instead := _instead_of(report, error)) is not None:
            self.say(instead)
        else:
            self._free([report])

    def _free(self, reports: list[Report]) -> None:
        for report in reports:
            self._heart.release(report.lease)
        self._freed(len(reports))


def given_back(job: Job, lease: JobLease) -> Report:
    """Of a handler that was cancelled or has seen that it was to stop: its job was lost or cancelled, or this worker ends."""
    return Report("release", msgspec.json.encode({"job_id": job.id, "attempt": job.attempt}), lease)


def put_off(job: Job, lease: JobLease, delay_s: float) -> Report:
    said = {"job_id": job.id, "attempt": job.attempt, "delay_ms": round(delay_s * 1000)}
    return Report("snooze", msgspec.json.encode(said), lease)


def completed(job: Job, lease: JobLease, result: Any) -> Report:
    said = {"job_id": job.id, "attempt": job.attempt}
    if result is not None:  # null is what a job has that was given none
        said["result"] = result
    try:
        return Report("complete", jsons.encode(said), lease)
    except jsons.NO_JSON as problem:
        log.error("the result of job %s, attempt %d, is no JSON: %s", job.id, job.attempt, problem)
        return failed(job, lease, unusable(described(problem)["message"]), retryable=False)


def failed(job: Job, lease: JobLease, error: Any, *, retryable: bool = True) -> Report:
    try:
        return _failure(lease, error, is_retryable=retryable)
    except jsons.NO_JSON as problem:
        return _failure(lease, unusable(described(problem)["message"], "error"), is_retryable=retryable)


def _failure(lease: JobLease, error: Any, *, is_retryable: bool, is_instead: bool = False) -> Report:
    said = {"job_id": lease.job_id, "attempt": lease.attempt, "error": error, "retryable": is_retryable}
    return Report("fail", jsons.encode(said), lease, is_retryable, is_instead)


def _instead_of(report: Report, refusal: MeshError) -> Report | None:
    """What to say when that cannot be said; None when nothing would be better."""
    if report.is_instead or report.verb == "release":
        return None
    if report.verb == "complete":
        return _failure(report.lease, unusable(refusal.message), is_retryable=False, is_instead=True)
    error = unusable(refusal.message, "error")
    return _failure(report.lease, error, is_retryable=report.is_retryable, is_instead=True)
