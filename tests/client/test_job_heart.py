"""The leases of jobs: what is renewed whatever else is slow, and what a handler hears of one that has run out."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from devmesh.client import BlockingJobContext, JobContext, LeaseLost, MeshError, Snooze
from devmesh.client.job_heart import JobHeart
from devmesh.core.errors import Kind
from devmesh.core.jobs import DELAY_MS_MAX, LEASE_S_MAX, LEASE_S_MIN
from devmesh.operations.workers import Register
from tests.client.disturbing import Bench, internal, new_bench
from tests.harness import Mesh, eventually


@pytest_asyncio.fixture
async def bench(mesh: Mesh, tenant: str) -> AsyncIterator[Bench]:
    async with new_bench(mesh, tenant, lease_s=1.0) as made:
        yield made


async def test_a_handler_is_cancelled_when_its_lease_runs_out_while_nobody_answers(bench: Bench) -> None:
    told, is_cut_off = [], asyncio.Event()

    def answer(_: Mapping[str, Any]) -> None:
        if is_cut_off.is_set():
            raise MeshError(Kind.UNAVAILABLE, "the wire is cut")

    @bench.job
    async def endless(job: JobContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            told.append(job.lost_reason)

    bench.heart_disturb["job.heartbeat"] = answer
    async with bench.at_work():
        job_id = await bench.enqueue("endless", max_retries=0)
        await eventually(lambda: bench.is_held(job_id), "it runs")
        is_cut_off.set()
        await eventually(lambda: told, "the handler is told", 5)
    assert told[0] == "it was not renewed within its 1 s"


@pytest.mark.parametrize("lease_s", [LEASE_S_MIN, 30.0, LEASE_S_MAX])
def test_a_heart_beats_as_often_as_its_worker_can_promise_however_long_leases_last(lease_s: float) -> None:
    """Or the worker would be given up between two heartbeats, with all that it holds."""
    interval_s = JobHeart(pytest.fail, lease_s).interval_s
    assert interval_s <= lease_s / 3
    assert msgspec.convert({"name": "w", "heartbeat_interval_s": interval_s}, Register).stale_after_s is None


async def test_a_lease_whose_renewal_meets_a_fault_of_the_server_is_not_lost(bench: Bench) -> None:
    may_end, faults = asyncio.Event(), list[MeshError]()

    def fail_once(_: Mapping[str, Any]) -> None:
        if faults:
            may_end.set()
        else:
            faults.append(internal())
            raise faults[0]

    @bench.job
    async def patient(_: JobContext) -> str:
        await may_end.wait()
        return "done"

    bench.heart_disturb["job.heartbeat"] = fail_once
    async with bench.at_work():
        job_id = await bench.enqueue("patient", max_retries=0)
        await eventually(lambda: bench.is_over(job_id), "it ends")
        assert await bench.outcomes(job_id) == ["COMPLETED"]


async def test_an_attempt_that_ran_out_of_time_is_told_when_its_worker_is_given_the_next(
    mesh: Mesh, tenant: str
) -> None:
    """Long before a renewal would tell it."""
    told, is_asked = [], threading.Event()
    async with new_bench(mesh, tenant, lease_s=3_000.0) as bench:

        @bench.job
        async def hangs(job: JobContext) -> int:
            if job.attempt == 1:
                try:
                    await asyncio.Event().wait()
                finally:
                    told.append(job.lost_reason)
            return job.attempt

        @bench.job
        def hangs_in_a_thread(job: BlockingJobContext) -> int:
            while job.attempt == 1 and not job.is_lost and not is_asked.wait(0.01):
                pass
            told.extend([job.lost_reason] if job.attempt == 1 else [])
            return job.attempt

        try:
            async with bench.at_work():
                for number, job_type in enumerate(("hangs", "hangs_in_a_thread"), 1):
                    job_id = await bench.enqueue(job_type, timeout_ms=300, max_retries=1)
                    await eventually(lambda: bench.is_over(job_id), "it is done again")  # noqa: B023
                    assert await bench.outcomes(job_id) == ["TIMED_OUT", "COMPLETED"]
                    await eventually(lambda: len(told) == number, "the first attempt is told", 5)  # noqa: B023
        finally:
            is_asked.set()
    assert told == ["attempt 2 of it has begun"] * 2


async def test_a_handler_that_goes_on_though_its_job_is_lost_is_told_of(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    may_end = threading.Event()

    @bench.job
    def deaf(job: BlockingJobContext) -> None:
        may_end.wait()

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if "its handler goes on" in record.getMessage()]

    try:
        async with bench.at_work():
            lost = await bench.enqueue("deaf", timeout_ms=300, max_retries=1)
            await eventually(lambda: bench.is_over(lost), "it has failed")
            await eventually(lambda: len(told()) == 2, "it is told of both attempts", 10)
            may_end.set()
    finally:
        may_end.set()
    for attempt, words in enumerate(sorted(told()), 1):
        assert words.startswith(f"job {lost}, attempt {attempt}, is not this worker's any more: ")
        assert words.endswith("; its handler goes on, and keeps its slot")


async def test_leases_are_renewed_though_the_worker_s_own_heartbeat_has_no_answer(bench: Bench) -> None:
    @bench.job
    async def slow(job: JobContext) -> int:
        await asyncio.sleep(3.0)  # three leases
        return job.attempt

    bench.heart_disturb["worker.heartbeat"] = lambda _: asyncio.Event().wait()
    async with bench.at_work():
        job_id = await bench.enqueue("slow", max_retries=0)
        await eventually(lambda: bench.is_over(job_id), "it ends")
        job = await bench.get(job_id)
    assert (job["status"], job["result"]) == ("COMPLETED", 1)


async def test_progress_of_a_job_that_is_lost_says_so_of_a_job(bench: Bench) -> None:
    told: list[LeaseLost] = []

    @bench.job
    async def stubborn(job: JobContext) -> None:
        await bench.client.call("job.cancel", job_id=job.id)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
        try:
            await job.progress(0.5)
        except LeaseLost as lost:
            told.append(lost)

    async with bench.at_work():
        await bench.enqueue("stubborn")
        await eventually(lambda: told, "the handler is told")
    assert (told[0].reason, told[0].message) == ("job.lease_lost", "it was cancelled")


async def test_who_says_how_far_it_is_hears_in_answer_that_its_job_was_cancelled(mesh: Mesh, tenant: str) -> None:
    """Long before a heartbeat would tell it."""
    async with new_bench(mesh, tenant, lease_s=3_000.0) as bench:

        @bench.job
        def goes_on(job: BlockingJobContext) -> str:
            ends_at = time.monotonic() + 10
            while time.monotonic() < ends_at:
                job.progress(0.5)
            return "nobody has told it"

        async with bench.at_work():
            job_id = await bench.enqueue("goes_on")
            await eventually(lambda: bench.is_held(job_id), "it runs")
            await bench.client.call("job.cancel", job_id=job_id, reason="no need")
            await eventually(lambda: bench.is_over(job_id), "it ends")
            job = await bench.get(job_id)
    assert (job["status"], job["result"], job["error"]) == ("CANCELLED", None, {"message": "no need"})


async def test_what_a_handler_says_of_its_job_is_said_again_while_nobody_hears_it(bench: Bench) -> None:
    """As beside a database that is being restarted."""

    @bench.job
    async def tells(job: JobContext) -> list[str]:
        await job.progress(0.5)
        return [str(await job.remember("what it has learned", tags=[bench.queue])) for _ in range(2)]

    bench.disturbed.refuse("job.heartbeat", *[MeshError(Kind.UNAVAILABLE, "the database is away")] * 2)
    bench.disturbed.refuse("context.store", MeshError(Kind.RATE_LIMITED, "not so fast", retry_after_ms=10))
    bench.disturbed.loses["context.store"] = lambda _: True
    async with bench.at_work():
        job_id = await bench.enqueue("tells", max_retries=0)
        await eventually(lambda: bench.is_over(job_id), "it ends")
    job = await bench.get(job_id)
    assert job["status"] == "COMPLETED", job["error"]
    kept = (await bench.client.call("context.list", job_id=job_id))["contexts"]
    assert sorted(each["id"] for each in kept) == sorted(job["result"])


@pytest.mark.parametrize("is_blocking", [True, False])
async def test_a_handler_whose_job_is_lost_while_nobody_hears_it_has_not_failed(
    bench: Bench, *, is_blocking: bool
) -> None:
    is_cut_off = asyncio.Event()

    def answer(_: Mapping[str, Any]) -> None:
        if is_cut_off.is_set():
            raise MeshError(Kind.UNAVAILABLE, "the wire is cut")

    async def tells(job: JobContext) -> int:
        while job.attempt == 1:
            await job.progress(0.5)
        return job.attempt

    def tells_in_a_thread(job: BlockingJobContext) -> int:
        while job.attempt == 1:
            job.progress(0.5)
        return job.attempt

    bench.job(tells_in_a_thread if is_blocking else tells)
    bench.disturbed.disturb["job.heartbeat"] = bench.heart_disturb["job.heartbeat"] = answer
    async with bench.at_work():
        job_id = await bench.enqueue("tells_in_a_thread" if is_blocking else "tells", max_retries=1)
        await eventually(lambda: bench.is_held(job_id), "it runs")
        is_cut_off.set()
        await eventually(lambda: bench.is_over(job_id), "another attempt does it")
        assert (await bench.outcomes(job_id))[0] in ("LEASE_LOST", "RELEASED")
        assert (await bench.get(job_id))["status"] == "COMPLETED"


async def test_a_handler_puts_its_job_off_which_costs_no_retry(bench: Bench) -> None:
    began_at_s: list[float] = []

    @bench.job
    async def later(job: JobContext) -> int:
        began_at_s.append(time.monotonic())
        if job.attempt == 1:
            raise Snooze(0.5)
        return job.retry_count

    async with bench.at_work():
        job_id = await bench.enqueue("later", max_retries=0)
        await eventually(lambda: bench.is_over(job_id), "it ends")
        job = await bench.get(job_id)
        ends = (await bench.client.call("job.executions", job_id=job_id))["executions"]
    assert (job["status"], job["result"]) == ("COMPLETED", 0)
    assert [each["outcome"] for each in ends] == ["SNOOZED", "COMPLETED"]
    first_s, second_s = began_at_s
    assert second_s - first_s >= 0.5
    for delay_s in (-1, DELAY_MS_MAX / 1_000 + 0.001, math.inf, math.nan):
        with pytest.raises(ValueError, match="put off by 0 to 31,622,400 s"):
            Snooze(delay_s)
    assert Snooze(DELAY_MS_MAX / 1_000).delay_s == 31_622_400


def returns(job: BlockingJobContext) -> str:
    while not job.is_lost:
        time.sleep(0.01)
    return "what there was"


def reports(job: BlockingJobContext) -> None:
    while True:
        job.progress(0.5)


@pytest.mark.parametrize("handler", [returns, reports], ids=lambda handler: handler.__name__)
async def test_a_plain_function_that_stops_because_it_is_told_to_has_not_done_its_job(
    bench: Bench, handler: Callable[[BlockingJobContext], object], caplog: pytest.LogCaptureFixture
) -> None:
    bench.job(handler)
    async with bench.at_work():
        job_id = await bench.enqueue(handler.__name__)
        await eventually(lambda: bench.is_held(job_id), "it runs")
        await bench.client.call("job.cancel", job_id=job_id, reason="no need")
        await eventually(lambda: bench.is_over(job_id), "it ends")
        job = await bench.get(job_id)
    assert (job["status"], job["result"], job["error"]) == ("CANCELLED", None, {"message": "no need"})
    assert "failed" not in caplog.text


async def test_one_that_does_its_job_to_the_end_without_asking_has_done_it(bench: Bench) -> None:
    may_end = threading.Event()

    @bench.job
    def deaf(_: BlockingJobContext) -> str:
        assert may_end.wait(20)
        return "done"

    async with bench.at_work():
        job_id = await bench.enqueue("deaf")
        await eventually(lambda: bench.is_held(job_id), "it runs")
        await bench.client.call("job.cancel", job_id=job_id)
        may_end.set()
        await eventually(lambda: bench.is_over(job_id), "it ends")
        job = await bench.get(job_id)
    assert (job["status"], job["result"]) == ("COMPLETED", "done")


async def test_heartbeats_tell_how_long_handlers_took(bench: Bench) -> None:
    beats = []

    @bench.job
    async def quick(job: JobContext) -> None:
        await asyncio.sleep(0.05)

    bench.heart_disturb["worker.heartbeat"] = lambda beat: beats.append(dict(beat["metrics"]))
    async with bench.at_work():
        await bench.enqueue("quick")
        await eventually(lambda: any("latency_ms" in beat for beat in beats), "it is told")
        told = len(beats)
        await eventually(lambda: len(beats) > told, "another heartbeat follows")
    assert [50 <= beat["latency_ms"] < 5_000 for beat in beats if "latency_ms" in beat] == [True]
