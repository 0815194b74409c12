"""How attempts end when the mesh does not hear of it at once: what was done is not undone, and what is in hand is not lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio

from devmesh.client import Fail, JobContext, MeshError, Snooze
from devmesh.core.errors import Kind
from tests.client.disturbing import Bench, internal, new_bench
from tests.harness import Mesh, eventually

LEASE_S = 20.0  # longer than any test waits for: nothing here is mended by the end of a lease


@pytest_asyncio.fixture
async def bench(mesh: Mesh, tenant: str) -> AsyncIterator[Bench]:
    async with new_bench(mesh, tenant, capacity=10, lease_s=LEASE_S) as made:
        yield made


async def test_a_job_that_is_done_stays_so_though_its_report_meets_a_fault_of_the_server(bench: Bench) -> None:
    @bench.job
    async def well(job: JobContext) -> str:
        return "well"

    bench.disturbed.refuse("job.complete", internal(), internal(), internal())
    async with bench.at_work():
        jobs = [await bench.enqueue("well", max_retries=0) for _ in range(3)]
        for job_id in jobs:
            await eventually(lambda: bench.is_over(job_id), "it is told", 10)  # noqa: B023
            assert ((await bench.get(job_id))["status"], await bench.outcomes(job_id)) == ("COMPLETED", ["COMPLETED"])


async def test_a_report_that_always_meets_a_fault_keeps_its_slot_no_longer_than_its_lease(
    mesh: Mesh, tenant: str
) -> None:
    async with new_bench(mesh, tenant, capacity=1, lease_s=1.0) as bench:

        @bench.job
        async def odd(job: JobContext) -> str:
            return f"attempt {job.attempt}"

        def refuse(params: Mapping[str, Any]) -> None:
            if b"attempt 1" in bytes(params["jobs"]):
                raise internal()

        bench.disturbed.disturb["job.complete"] = refuse
        async with bench.at_work():
            job_id = await bench.enqueue("odd")
            await eventually(lambda: bench.is_over(job_id), "another attempt is made")
            assert await bench.outcomes(job_id) == ["LEASE_LOST", "COMPLETED"]


@pytest.mark.parametrize("retryable", [True, False])
@pytest.mark.parametrize("error", ["x" * 3_000_000, None], ids=["large", "deep"])
async def test_an_error_that_cannot_be_sent_is_told_in_other_words(
    bench: Bench, error: Any, *, retryable: bool
) -> None:
    if error is None:
        for _ in range(400):
            error = [error]

    @bench.job
    async def fails(job: JobContext) -> None:
        raise Fail(error, retryable=retryable)

    async with bench.at_work():
        job_id = await bench.enqueue("fails", max_retries=1)
        await eventually(lambda: bench.is_over(job_id), "it is told", 10)
    job = await bench.get(job_id)
    assert (job["status"], job["error"]["type"]) == ("FAILED", "UnusableError")
    assert await bench.outcomes(job_id) == ["FAILED"] * (2 if retryable else 1)


NUMBERS = [float("nan"), [1, None, float("inf")], {"deep": [{"er": (float("-inf"),)}]}]


@pytest.mark.parametrize("result", NUMBERS, ids=repr)
async def test_a_number_that_json_has_not_is_no_null(bench: Bench, result: Any) -> None:
    @bench.job
    async def counts(job: JobContext) -> Any:
        if job.payload == "fail":
            raise Fail(result, retryable=False)
        return result

    async with bench.at_work():
        for ending, unusable in (("return", "result"), ("fail", "error")):
            job_id = await bench.enqueue("counts", ending)
            await eventually(lambda: bench.is_over(job_id), "it is told", 10)  # noqa: B023
            error = (await bench.get(job_id))["error"]
            assert error["type"] == f"Unusable{unusable.title()}"
            assert error["message"].startswith(f"the handler's {unusable} cannot be sent: it holds ")
            assert await bench.outcomes(job_id) == ["FAILED"]


async def test_words_that_no_message_can_carry_are_told_as_far_as_they_can_be(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "devmesh.client")  # nor can pytest

    @bench.job
    async def odd(job: JobContext) -> None:
        raise OSError("no file \udc80")

    async with bench.at_work():
        job_id = await bench.enqueue("odd", max_retries=0)
        await eventually(lambda: bench.is_over(job_id), "it is told")
    assert (await bench.get(job_id))["error"] == {"type": "OSError", "message": "no file ?"}


class BareFail(Fail):
    def __init__(self) -> None: ...


class BareSnooze(Snooze):
    def __init__(self) -> None: ...


class Unsure:
    def __bool__(self) -> bool:
        raise ArithmeticError("neither")


RAISED: list[tuple[BaseException, str]] = [
    (BareFail(), "AttributeError"),
    (BareSnooze(), "AttributeError"),
    (Fail("odd", retryable=Unsure()), "ArithmeticError"),  # type: ignore[arg-type]
    (Fail({"type": "Odd"}, retryable=None), "Odd"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("raised", "told"), RAISED, ids=lambda value: value if isinstance(value, str) else None)
async def test_what_a_handler_raises_half_made_fails_its_attempt(
    bench: Bench, raised: BaseException, told: str
) -> None:
    @bench.job
    async def odd(job: JobContext) -> None:
        raise raised

    async with bench.at_work():
        job_id = await bench.enqueue("odd", max_retries=0)
        await eventually(lambda: bench.is_over(job_id), "it is told", 10)
        assert (await bench.get(job_id))["error"]["type"] == told
        assert await bench.outcomes(job_id) == ["FAILED"]


async def test_a_handler_that_cancels_itself_has_failed(bench: Bench) -> None:
    @bench.job
    async def odd(job: JobContext) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel("by its own hand")
        await asyncio.Event().wait()

    async with bench.at_work():
        job_id = await bench.enqueue("odd", max_retries=1)
        await eventually(lambda: bench.is_over(job_id), "it is told", 10)
    assert await bench.outcomes(job_id) == ["FAILED"] * 2
    assert (await bench.get(job_id))["error"] == {"type": "CancelledError", "message": "by its own hand"}


async def test_a_claim_that_meets_a_fault_of_the_server_is_asked_again(bench: Bench) -> None:
    @bench.job
    async def well(job: JobContext) -> str:
        return "well"

    bench.disturbed.refuse("job.claim", internal())
    async with bench.at_work():
        job_id = await bench.enqueue("well")
        await eventually(lambda: bench.is_over(job_id), "it is done", 10)


async def test_a_worker_that_may_not_go_on_reports_what_it_has_in_hand_first(bench: Bench) -> None:
    may_end, refused = asyncio.Event(), asyncio.Event()

    def refuse(_: Mapping[str, Any]) -> None:
        refused.set()
        raise MeshError(Kind.FORBIDDEN, "no more")

    @bench.job
    async def patient(job: JobContext) -> str:
        await may_end.wait()
        return "after all"

    async with bench.at_work() as running:
        job_id = await bench.enqueue("patient", max_retries=0)
        await eventually(lambda: bench.is_held(job_id), "it runs")
        bench.disturbed.disturb["job.claim"] = refuse
        await asyncio.wait_for(refused.wait(), 30)
        assert not running.done()
        may_end.set()
        with pytest.raises(MeshError, match="no more"):
            await asyncio.wait_for(running, 10)
    assert await bench.outcomes(job_id) == ["COMPLETED"]


async def test_reports_that_cannot_be_made_yet_hold_up_no_others(bench: Bench) -> None:
    @bench.job
    async def named(job: JobContext) -> str:
        return str(job.payload)

    def refuse(params: Mapping[str, Any]) -> None:
        if b"stuck" in bytes(params["jobs"]):
            raise MeshError(Kind.UNAVAILABLE, "not now")

    bench.disturbed.disturb["job.complete"] = refuse
    async with bench.at_work():
        stuck = await bench.enqueue("named", "stuck")
        await eventually(lambda: bench.disturbed.asked["job.complete"] >= 2, "it is told in vain")
        others = [await bench.enqueue("named", str(number)) for number in range(20)]  # twice what it holds at once
        for job_id in others:
            await eventually(lambda: bench.is_over(job_id), "the others are told", 10)  # noqa: B023
        assert await bench.is_held(stuck)
        bench.disturbed.disturb.clear()
        await eventually(lambda: bench.is_over(stuck), "it is told, too", 10)


async def test_a_report_that_takes_too_long_takes_no_other_with_it(bench: Bench) -> None:
    may_end, running = asyncio.Event(), set[Any]()

    @bench.job
    async def named(job: JobContext) -> str:
        running.add(job.payload)
        await may_end.wait()
        return str(job.payload)

    asked_together = set[int]()

    def refuse(params: Mapping[str, Any]) -> None:
        if b"slow" in bytes(params["jobs"]):
            asked_together.add(bytes(params["jobs"]).count(b"job_id"))
            raise MeshError(Kind.TIMEOUT, "the request took too long and was stopped; try again")

    bench.disturbed.disturb["job.complete"] = refuse
    async with bench.at_work():
        slow = await bench.enqueue("named", "slow")
        others = [await bench.enqueue("named", f"{number}") for number in range(9)]
        await eventually(lambda: len(running) == 10, "all run")
        may_end.set()
        for job_id in others:
            await eventually(lambda: bench.is_over(job_id), "the others are told", 10)  # noqa: B023
        await eventually(lambda: asked_together == {10, 1}, "all were told together at first, and then it by itself")
        others = [await bench.enqueue("named", f"{number}") for number in range(20)]  # twice what it holds at once
        for job_id in others:
            await eventually(lambda: bench.is_over(job_id), "it lets others by", 10)  # noqa: B023
        assert await bench.is_held(slow)
        bench.disturbed.disturb.clear()
        await eventually(lambda: bench.is_over(slow), "it is told, too", 10)


async def test_jobs_of_a_claim_whose_outcome_is_unknown_are_given_out_again_at_once(bench: Bench) -> None:
    may_end = asyncio.Event()

    @bench.job
    async def well(job: JobContext) -> str:
        return "well"

    @bench.job
    async def patient(job: JobContext) -> str:
        await may_end.wait()
        return "well"

    async with bench.at_work():
        in_hand = await bench.enqueue("patient", max_retries=0)
        await eventually(lambda: bench.is_held(in_hand), "it runs")
        bench.disturbed.loses["job.claim"] = lambda answer: bool(answer.jobs)
        unheard = [await bench.enqueue("well", max_retries=0) for _ in range(3)]
        for job_id in unheard:
            await eventually(lambda: bench.is_over(job_id), "it is done", 10)  # noqa: B023
        may_end.set()
        await eventually(lambda: bench.is_over(in_hand), "what was in hand goes on")
    assert await bench.outcomes(in_hand) == ["COMPLETED"]
    outcomes = [await bench.outcomes(job_id) for job_id in unheard]
    assert outcomes[0] == ["RELEASED", "COMPLETED"]
    assert {each[-1] for each in outcomes} == {"COMPLETED"}
