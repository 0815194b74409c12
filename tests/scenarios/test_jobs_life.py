"""J1 to J7, J15, J44 and their kin: the life of a job through the wire, and who may not interfere with it."""

from __future__ import annotations

import asyncio
import datetime
import uuid
from typing import Any

import msgspec
import pytest

from devmesh.operations.job_adding import JobSpec
from tests.harness import Mesh, eventually
from tests.scenarios.jobs import Bench, held, register
from tests.wire import Wire, WireError


async def test_j01_a_job_is_enqueued_claimed_and_completed(bench: Bench) -> None:
    assert (await bench.wire.call("worker.get", worker_id=bench.worker_id))["worker"]["status"] == "ACTIVE"
    job = await bench.enqueue(payload={"n": [1, None, "ü"]}, tags=["a", "b"])
    assert (job["status"], job["attempt"], job["worker_id"]) == ("PENDING", 0, None)
    assert await bench.get(job) == job
    [claimed] = await bench.claim()
    assert (claimed["id"], claimed["attempt"], claimed["payload"]) == (job["id"], 1, {"n": [1, None, "ü"]})
    running = await bench.get(job)
    assert (running["status"], running["worker_id"]) == ("PROCESSING", bench.worker_id)
    assert (await bench.wire.call("worker.get", worker_id=bench.worker_id))["worker"]["current_load"] == 1
    answer = await bench.wire.call("job.complete", jobs=[held(claimed, result={"sum": 3})])
    assert answer == {"jobs": [{"id": job["id"], "attempt": 1, "status": "COMPLETED", "run_at": None}], "refused": []}
    done = await bench.get(job)
    assert (done["status"], done["result"], done["worker_id"]) == ("COMPLETED", {"sum": 3}, bench.worker_id)
    [execution] = await bench.executions(job)
    assert (execution["outcome"], execution["attempt"]) == ("COMPLETED", 1)
    assert execution["duration_ms"] > 0


async def test_j02_jobs_are_shared_among_workers_and_none_holds_more_than_its_capacity(bench: Bench) -> None:
    jobs = [await bench.enqueue() for _ in range(6)]
    workers = [await register(bench.wire, capacity=2) for _ in range(3)]
    given = [await bench.claim(limit=5, worker_id=worker) for worker in workers]
    assert [len(each) for each in given] == [2, 2, 2]
    assert {job["id"] for each in given for job in each} == {job["id"] for job in jobs}
    assert await bench.claim(worker_id=workers[0]) == []
    await bench.wire.call("job.complete", jobs=[held(job) for each in given for job in each])
    assert {await bench.status(job) for job in jobs} == {"COMPLETED"}


async def test_j02_claims_of_one_worker_in_one_moment_share_its_capacity(mesh: Mesh, tenant: str, bench: Bench) -> None:
    await bench.wire.call("job.enqueue_many", jobs=[{"type": "t", "queue": bench.queue}] * 50)
    worker = await register(bench.wire, capacity=7)
    async with await Wire.connect(mesh.ws_url, tenant) as other:
        for _ in range(5):
            asked = {"worker_id": worker, "queues": [bench.queue], "limit": 3}
            answers = await asyncio.gather(*(wire.call("job.claim", **asked) for wire in [bench.wire, other] * 4))
            given = [job for answer in answers for job in answer["jobs"]]
            assert len({job["id"] for job in given}) == len(given) == 7
            await bench.wire.call("job.complete", jobs=[held(job) for job in given])


async def test_j03_a_job_that_fails_each_time_is_a_dead_letter_in_the_end(bench: Bench) -> None:
    job = await bench.enqueue(max_retries=2, backoff_ms=1)
    for attempt in (1, 2, 3):
        claimed: list[dict[str, Any]] = []
        while not claimed:
            claimed = await bench.claim(wait_ms=2_000)
        assert claimed[0]["attempt"] == attempt
        await bench.wire.call("job.fail", jobs=[held(claimed[0], error={"message": f"no {attempt}"})])
    failed = await bench.get(job)
    assert (failed["status"], failed["retry_count"], failed["error"]) == ("FAILED", 2, {"message": "no 3"})
    [letter] = await bench.dead_letters()
    assert (letter["job_id"], letter["retry_count"], letter["error"]) == (job["id"], 2, {"message": "no 3"})
    assert [each["outcome"] for each in await bench.executions(job)] == ["FAILED"] * 3


async def test_j03_what_is_not_retryable_fails_at_once(bench: Bench) -> None:
    job = await bench.enqueue()
    [claimed] = await bench.claim()
    await bench.wire.call("job.fail", jobs=[held(claimed, error="broken", retryable=False)])
    assert await bench.status(job) == "FAILED"
    assert len(await bench.dead_letters()) == 1


async def test_j04_the_second_delay_is_longer_than_the_first(bench: Bench) -> None:
    job = await bench.enqueue(backoff_ms=200)
    delays = []
    for _ in range(3):
        claimed: list[dict[str, Any]] = []
        while not claimed:
            claimed = await bench.claim(wait_ms=5_000)
        await bench.wire.call("job.fail", jobs=[held(claimed[0], error="again")])
        last = (await bench.executions(job))[-1]
        finished, follows = (datetime.datetime.fromisoformat(last[name]) for name in ("finished_at", "next_run_at"))
        delays.append((follows - finished).total_seconds())
        assert (await bench.get(job))["status"] == "PENDING"
    assert delays == sorted(delays)
    assert delays[2] > 2 * delays[0]


async def test_j05_and_j06_higher_priorities_come_first_and_equal_ones_in_their_order(bench: Bench) -> None:
    priorities = [5, 1, 3, 3, 1, 5, 4, 2, 3, 3]
    jobs = [await bench.enqueue(priority=priority) for priority in priorities]
    expected = [job["id"] for job in sorted(jobs, key=lambda job: -job["priority"])]
    assert [(await bench.claim(limit=1))[0]["id"] for _ in range(4)] == expected[:4]
    assert [job["id"] for job in await bench.claim()] == expected[4:]


async def test_j05_of_several_queues_as_well(bench: Bench) -> None:
    queues = [f"q{uuid.uuid4().hex}" for _ in range(3)]
    jobs = [
        await bench.enqueue(queue=queues[number % 3], priority=priority)
        for number, priority in enumerate([3, 5, 1, 3, 3, 5, 1, 1, 4])
    ]
    expected = [job["id"] for job in sorted(jobs, key=lambda job: -job["priority"])]
    first = await bench.claim(limit=4, queues=queues)
    rest = await bench.claim(limit=50, queues=queues)
    assert [job["id"] for job in first + rest] == expected


async def test_j07_a_job_that_runs_too_long_has_failed(bench: Bench) -> None:
    job = await bench.enqueue(timeout_ms=1_000, max_retries=0)
    [claimed] = await bench.claim()
    await eventually(lambda: bench.is_now(job, "FAILED"), "it has failed", 5.0)
    assert "timeout" in (await bench.get(job))["error"]["message"]
    assert [each["outcome"] for each in await bench.executions(job)] == ["TIMED_OUT"]
    with pytest.raises(WireError) as refused:
        await bench.wire.call("job.complete", jobs=[held(claimed)])
    assert (refused.value.kind, refused.value.reason) == ("conflict", "job.stale_attempt")


async def test_a_lease_that_ends_gives_the_job_to_another_and_the_first_cannot_write_any_more(bench: Bench) -> None:
    job = await bench.enqueue(backoff_ms=0)
    [lost] = await bench.claim(lease_s=0.5)
    other = await register(bench.wire)
    [again] = await bench.claim(worker_id=other, wait_ms=10_000)
    assert (again["id"], again["attempt"], again["retry_count"]) == (job["id"], 2, 1)
    needed: dict[str, dict[str, Any]] = {"fail": {"error": 1}, "snooze": {"delay_ms": 1}, "progress": {"progress": 1}}
    for verb in ("complete", "fail", "heartbeat", "progress", "release", "snooze"):
        with pytest.raises(WireError) as refused:
            await bench.wire.call(f"job.{verb}", jobs=[held(lost, **needed.get(verb, {}))])
        assert refused.value.reason == "job.stale_attempt", verb
    assert (await bench.get(job))["attempt"] == 2
    await bench.wire.call("job.complete", jobs=[held(again)])
    assert [each["outcome"] for each in await bench.executions(job)] == ["LEASE_LOST", "COMPLETED"]


async def test_heartbeats_keep_a_lease_and_tell_of_a_cancellation(bench: Bench) -> None:
    job = await bench.enqueue()
    [claimed] = await bench.claim(lease_s=1.0)
    for _ in range(8):
        await asyncio.sleep(0.25)  # the lease itself is what is waited for
        answer = await bench.wire.call("job.heartbeat", jobs=[held(claimed, progress=0.5, message="half")])
        assert answer["jobs"][0]["is_cancel_requested"] is False
    running = await bench.get(job)
    assert (running["status"], running["progress"], running["progress_message"]) == ("PROCESSING", 0.5, "half")
    asked = (await bench.wire.call("job.cancel", job_id=job["id"], reason="no need"))["job"]
    assert (asked["status"], asked["is_cancel_requested"]) == ("PROCESSING", True)
    answer = await bench.wire.call("job.heartbeat", jobs=[held(claimed)])
    assert answer["jobs"][0]["is_cancel_requested"] is True
    await bench.wire.call("job.release", jobs=[held(claimed)])
    cancelled = await bench.get(job)
    assert (cancelled["status"], cancelled["error"]) == ("CANCELLED", {"message": "no need"})


async def test_the_greatest_values_that_may_be_given_are_kept(bench: Bench) -> None:
    page = msgspec.json.schema(JobSpec)["$defs"]["JobSpec"]["properties"]
    given = {
        name: page[name]["maximum"]
        for name in ("priority", "max_retries", "timeout_ms", "backoff_ms", "concurrency_limit")
    }
    job = await bench.enqueue(**given, concurrency_key="漢" * 200, unique_key="ü" * 200)
    [claimed] = await bench.claim()
    shown = await bench.get(job)
    assert {name: shown[name] for name in given} == given
    assert claimed["timeout_ms"] == given["timeout_ms"]
    with pytest.raises(WireError) as refused:
        await bench.enqueue(timeout_ms=given["timeout_ms"] + 1)
    assert (refused.value.kind, refused.value.data["field"]) == ("invalid_params", "timeout_ms")


async def test_progress_is_told_with_or_without_words_and_renews_the_lease(bench: Bench) -> None:
    job = await bench.enqueue()
    await bench.wire.call("subscribe", topics=[f"queue:{bench.queue}"])
    [claimed] = await bench.claim()
    steps: list[tuple[str, dict[str, Any], tuple[float | None, str | None]]] = [
        ("heartbeat", {"message": "begun"}, (None, "begun")), ("progress", {"progress": 0.25}, (0.25, "begun")),
        ("progress", {"progress": 0.6, "message": "half"}, (0.6, "half")), ("heartbeat", {"message": "still"}, (0.6, "still")),
    ]  # fmt: skip
    until = claimed["lease_until"]
    for verb, said, shown in steps:
        [lease] = (await bench.wire.call(f"job.{verb}", jobs=[held(claimed, **said)]))["jobs"]
        assert lease["lease_until"] > until
        until = lease["lease_until"]
        [told] = (await bench.wire.next_event("job.progress"))["data"]["jobs"]
        assert told == {
            "id": job["id"], "attempt": 1,
            **{"progress_message" if name == "message" else name: value for name, value in said.items()},
        }  # fmt: skip
        now = await bench.get(job)
        assert (now["progress"], now["progress_message"]) == shown
    for wrong in ({}, {"progress": 1.5}, {"progress": None}):
        with pytest.raises(WireError) as refused:
            await bench.wire.call("job.progress", jobs=[held(claimed, **wrong)])
        assert refused.value.kind == "invalid_params"


async def test_what_is_said_of_one_attempt_at_once_is_all_kept(bench: Bench) -> None:
    job = await bench.enqueue()
    [claimed] = await bench.claim()
    await bench.wire.call(
        "job.heartbeat", jobs=[held(claimed, progress=0.5), held(claimed, message="half"), held(claimed)]
    )
    now = await bench.get(job)
    assert (now["progress"], now["progress_message"]) == (0.5, "half")
    await bench.wire.call(
        "job.progress", jobs=[held(claimed, progress=0.6, message="more"), held(claimed, progress=0.7)]
    )
    now = await bench.get(job)
    assert (now["progress"], now["progress_message"]) == (0.7, "more")


@pytest.mark.parametrize("how", ["lease", "evacuate"])
async def test_why_a_job_was_cancelled_is_kept_whoever_ends_its_attempt(bench: Bench, how: str) -> None:
    job = await bench.enqueue()
    await bench.claim(lease_s=0.5 if how == "lease" else 60)
    await bench.wire.call("job.cancel", job_id=job["id"], reason="no need")
    if how == "evacuate":
        await bench.wire.call("worker.evacuate", worker_id=bench.worker_id)
    await eventually(lambda: bench.is_now(job, "CANCELLED"), "it is over", 5.0)
    assert (await bench.get(job))["error"] == {"message": "no need"}


async def test_a_waiting_job_is_cancelled_at_once_and_one_that_is_over_is_not(bench: Bench) -> None:
    job = await bench.enqueue(delay_ms=60_000)
    assert (await bench.wire.call("job.cancel", job_id=job["id"]))["job"]["status"] == "CANCELLED"
    assert await bench.claim() == []
    done = await bench.enqueue()
    await bench.wire.call("job.complete", jobs=[held(claimed) for claimed in await bench.claim()])
    with pytest.raises(WireError) as refused:
        await bench.wire.call("job.cancel", job_id=done["id"])
    assert refused.value.reason == "job.state"


async def test_snoozed_and_released_jobs_cost_no_retry(bench: Bench) -> None:
    job = await bench.enqueue()
    [claimed] = await bench.claim()
    await bench.wire.call("job.release", jobs=[held(claimed)])
    [claimed] = await bench.claim()
    answer = await bench.wire.call("job.snooze", jobs=[held(claimed, delay_ms=60_000)])
    assert answer["jobs"][0]["status"] == "PENDING"
    assert await bench.claim() == []
    snoozed = await bench.get(job)
    assert (snoozed["status"], snoozed["attempt"], snoozed["retry_count"]) == ("PENDING", 2, 0)
    assert [each["outcome"] for each in await bench.executions(job)] == ["RELEASED", "SNOOZED"]


async def test_j15_what_was_to_be_cancelled_is_when_its_worker_leaves(bench: Bench) -> None:
    for verb in ("evacuate", "deregister"):
        asked, other = await bench.enqueue(), await bench.enqueue()
        worker_id = await register(bench.wire)
        assert len(await bench.claim(worker_id=worker_id)) == 2
        cancelled = (await bench.wire.call("job.cancel", job_id=asked["id"]))["job"]
        assert (cancelled["status"], cancelled["is_cancel_requested"]) == ("PROCESSING", True)
        assert (await bench.wire.call(f"worker.{verb}", worker_id=worker_id))["released"] == 1
        assert [await bench.status(job) for job in (asked, other)] == ["CANCELLED", "PENDING"]
        assert [job["id"] for job in await bench.claim()] == [other["id"]]


async def test_a_job_that_is_moved_about_is_cancelled_all_the_same(mesh: Mesh, bench: Bench, tenant: str) -> None:
    """Given back, it is in its queue again between two looks for it."""
    async with await Wire.connect(mesh.ws_url, tenant) as other:
        for _ in range(40):
            job = await bench.enqueue()
            [claimed] = await bench.claim()
            await asyncio.gather(
                bench.wire.call("job.release", jobs=[held(claimed)]), other.call("job.cancel", job_id=job["id"])
            )
            assert await bench.status(job) == "CANCELLED"


async def test_j15_an_evacuated_worker_loses_its_jobs_to_others_at_once(bench: Bench) -> None:
    jobs = [await bench.enqueue() for _ in range(5)]
    mine = await bench.claim(limit=3)
    left = await bench.wire.call("worker.evacuate", worker_id=bench.worker_id, reason="maintenance")
    assert (left["released"], left["worker"]["status"], left["worker"]["reason"]) == (3, "DRAINING", "maintenance")
    assert left["worker"]["current_load"] == 0
    with pytest.raises(WireError) as refused:
        await bench.claim()
    assert refused.value.reason == "worker.state"
    other = await register(bench.wire)
    given = await bench.claim(worker_id=other)
    assert {job["id"] for job in given} == {job["id"] for job in jobs}
    with pytest.raises(WireError):
        await bench.wire.call("job.complete", jobs=[held(mine[0])])
    await bench.wire.call("job.complete", jobs=[held(job) for job in given])
    assert {await bench.status(job) for job in jobs} == {"COMPLETED"}


async def test_j44_a_paused_queue_gives_nothing_until_it_is_resumed(bench: Bench) -> None:
    job = await bench.enqueue()
    paused = (await bench.wire.call("queue.pause", queue=bench.queue, reason="deploy"))["queue"]
    assert (paused["waiting"], paused["reason"]) == (1, "deploy")
    assert await bench.claim() == []
    explained = (await bench.wire.call("job.explain", job_id=job["id"]))["explanation"]
    assert explained["reason"] == "queue_paused"
    await bench.wire.call("queue.resume", queue=bench.queue)
    assert [claimed["id"] for claimed in await bench.claim()] == [job["id"]]


async def test_dead_letters_are_replayed_with_their_history_or_discarded(bench: Bench) -> None:
    jobs = [await bench.enqueue(max_retries=0) for _ in range(3)]
    await bench.wire.call("job.fail", jobs=[held(job, error="poison") for job in await bench.claim()])
    assert len(await bench.dead_letters()) == 3
    one = await bench.wire.call("dead_letter.replay", job_ids=[jobs[0]["id"]])
    assert one == {"job_ids": [jobs[0]["id"]], "up_to": None, "after": None, "refused": []}
    [again] = await bench.claim()
    assert (again["id"], again["attempt"], again["retry_count"]) == (jobs[0]["id"], 2, 0)
    await bench.wire.call("job.fail", jobs=[held(again, error="still poison")])
    assert [each["error"] for each in await bench.executions(jobs[0])] == ["poison", "still poison"]
    assert len((await bench.wire.call("dead_letter.replay", all=True, queue=bench.queue))["job_ids"]) == 3
    await bench.wire.call("job.fail", jobs=[held(job, error="poison") for job in await bench.claim()])
    assert len((await bench.wire.call("dead_letter.discard", all=True, queue=bench.queue))["job_ids"]) == 3
    assert await bench.dead_letters() == []
    assert {await bench.status(job) for job in jobs} == {"FAILED"}


@pytest.mark.parametrize("verb", ["replay", "discard"])
async def test_what_fails_while_dead_letters_are_replayed_in_steps_is_left(bench: Bench, verb: str) -> None:
    async def fail_all() -> None:
        await bench.wire.call("job.fail", jobs=[held(job, error="poison") for job in await bench.claim()])

    asked = {"all": True, "queue": bench.queue, "limit": 2}
    nothing = await bench.wire.call(f"dead_letter.{verb}", **asked)
    assert (nothing["job_ids"], nothing["up_to"]) == ([], None)
    jobs = [await bench.enqueue(max_retries=0) for _ in range(5)]
    await fail_all()
    first = await bench.wire.call(f"dead_letter.{verb}", **asked)
    assert len(first["job_ids"]) == 2
    later = await bench.enqueue(max_retries=0)
    await fail_all()
    steps = [await bench.wire.call(f"dead_letter.{verb}", **asked, up_to=first["up_to"]) for _ in range(3)]
    assert [len(step["job_ids"]) for step in steps] == [2, 1, 0]
    assert [step["after"] is not None for step in (first, *steps)] == [True, True, False, False]
    assert {step["up_to"] for step in steps} == {first["up_to"]}
    done = [job_id for step in (first, *steps) for job_id in step["job_ids"]]
    assert sorted(done) == sorted(job["id"] for job in jobs)
    assert later["id"] in [letter["job_id"] for letter in await bench.dead_letters()]
    for field in ("up_to", "after"):
        with pytest.raises(WireError, match="cursor") as refused:
            await bench.wire.call(f"dead_letter.{verb}", **asked, **{field: "here"})
        assert refused.value.data["field"] == field


async def test_one_stale_report_among_many_is_named_and_the_others_are_done(bench: Bench) -> None:
    jobs = [await bench.enqueue() for _ in range(3)]
    claimed = await bench.claim()
    nowhere = {"job_id": str(uuid.uuid4()), "attempt": 1}
    stale = {**held(claimed[1]), "attempt": 7}
    answer = await bench.wire.call("job.complete", jobs=[held(claimed[0]), stale, nowhere, held(claimed[2])])
    assert [job["id"] for job in answer["jobs"]] == [claimed[0]["id"], claimed[2]["id"]]
    assert [(each["id"], each["kind"], each["reason"]) for each in answer["refused"]] == [
        (claimed[1]["id"], "conflict", "job.stale_attempt"),
        (nowhere["job_id"], "not_found", ""),
    ]
    assert [await bench.status(job) for job in jobs] == ["COMPLETED", "PROCESSING", "COMPLETED"]


@pytest.mark.parametrize("verb", ["complete", "fail", "snooze", "release", "heartbeat", "progress"])
async def test_an_attempt_that_is_to_come_is_refused_as_one_that_has_not_begun(bench: Bench, verb: str) -> None:
    required: dict[str, dict[str, Any]] = {
        "fail": {"error": "x"},
        "snooze": {"delay_ms": 0},
        "progress": {"progress": 1},
    }
    says = required.get(verb, {})

    async def refused(job: dict[str, Any], attempt: int) -> str:
        answer = await bench.wire.ask(f"job.{verb}", {"jobs": [{"job_id": job["id"], "attempt": attempt, **says}]})
        assert answer["error"]["data"]["reason"] == "job.stale_attempt"
        return str(answer["error"]["message"])

    job = await bench.enqueue()
    assert await refused(job, 1) == "attempt 1 has not begun; the job is not held"
    await bench.wire.call("job.release", jobs=[held(each) for each in await bench.claim()])
    assert await refused(job, 1) == "attempt 1 is over; the job is not held any more"
    await bench.claim()
    assert await refused(job, 1) == "attempt 1 is over; the job is held in attempt 2"
    assert await refused(job, 3) == "attempt 3 has not begun; the job is held in attempt 2"
    found = await bench.get(job)
    assert (found["status"], found["attempt"], found["progress"]) == ("PROCESSING", 2, None)


@pytest.mark.parametrize("verb", ["complete", "fail", "snooze", "release"])
async def test_an_attempt_that_is_named_twice_in_one_call_ends_once(bench: Bench, verb: str) -> None:
    job = await bench.enqueue()
    [claimed] = await bench.claim()
    says: dict[str, list[dict[str, Any]]] = {
        "complete": [{"result": 1}, {"result": 2}],
        "fail": [{"error": "first", "retryable": False}, {"error": "second", "retryable": False}],
        "snooze": [{"delay_ms": 60_000}, {"delay_ms": 1}],
        "release": [{}, {}],
    }
    stale = {**held(claimed, **says[verb][1]), "attempt": 7}
    reports = [stale, *(held(claimed, **more) for more in says[verb])]
    answer = await bench.wire.call(f"job.{verb}", jobs=reports)
    assert [each["id"] for each in answer["jobs"]] == [job["id"]]
    assert [each["reason"] for each in answer["refused"]] == ["job.stale_attempt"] * 2
    [execution] = await bench.executions(job)
    assert (execution["attempt"], execution["result"], execution["error"]) == (
        1, 1 if verb == "complete" else None, "first" if verb == "fail" else None,
    )  # fmt: skip


async def test_reports_of_one_job_in_one_moment_are_told_apart_by_their_attempts(
    mesh: Mesh, tenant: str, bench: Bench
) -> None:
    """A report that is repeated while the first one waits, and a zombie's, come into one batch with the right one."""
    jobs = [await bench.enqueue() for _ in range(20)]
    first = await bench.claim(limit=20)
    await bench.wire.call("job.release", jobs=[held(job) for job in first])
    second = await bench.claim(limit=20)
    async with await Wire.connect(mesh.ws_url, tenant) as other:
        for verb, good in (("heartbeat", 2), ("complete", 1)):
            asked = [
                wire.ask(f"job.{verb}", {"jobs": [held(job)]})
                for job in second
                for wire, job in (
                    (other, {**job, "attempt": 1}),
                    (bench.wire, job),
                    (other, job),
                    (other, {**job, "attempt": 1}),
                )
            ]
            answers = await asyncio.gather(*asked)
            for number in range(20):
                mine = answers[4 * number : 4 * number + 4]
                refusals = [answer["error"]["data"]["reason"] for answer in mine if "error" in answer]
                assert refusals == ["job.stale_attempt"] * (4 - good)
    for job in jobs:
        outcomes = [(each["attempt"], each["outcome"]) for each in await bench.executions(job)]
        assert outcomes == [(1, "RELEASED"), (2, "COMPLETED")]


async def test_many_are_enqueued_at_once_or_none(bench: Bench) -> None:
    specs = [{"type": "t", "queue": bench.queue, "payload": number} for number in range(500)]
    made = (await bench.wire.call("job.enqueue_many", jobs=specs))["jobs"]
    with pytest.raises(WireError) as refused:
        await bench.wire.call("job.enqueue_many", jobs=[*specs, {"type": "t", "queue": bench.queue, "priority": 9}])
    assert refused.value.data["field"] == "jobs[500].priority"
    stats = (await bench.wire.call("job.stats"))["queues"]
    assert [each["waiting"] for each in stats if each["queue"] == bench.queue] == [500]
    big = await register(bench.wire, capacity=1_000)
    claimed = await bench.claim(limit=1_000, worker_id=big)
    assert [(job["id"], job["payload"]) for job in claimed] == [(job["id"], n) for n, job in enumerate(made)]


async def test_a_job_is_counted_once_wherever_it_moves_meanwhile(mesh: Mesh, tenant: str, bench: Bench) -> None:
    await bench.wire.call("job.enqueue_many", jobs=[{"type": "t", "queue": bench.queue}] * 60)

    async def move_all() -> None:
        while claimed := await bench.claim(limit=1):
            await bench.wire.call("job.snooze", jobs=[held(job, delay_ms=60_000) for job in claimed])

    async with await Wire.connect(mesh.ws_url, tenant) as looking, asyncio.TaskGroup() as group:
        moving = group.create_task(move_all())
        while not moving.done():
            stats = (await looking.call("job.stats"))["queues"]
            assert [each["waiting"] + each["processing"] for each in stats if each["queue"] == bench.queue] == [60]


async def test_whoever_listens_to_a_job_or_a_queue_is_told_of_every_step(mesh: Mesh, tenant: str, bench: Bench) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as of_job, await Wire.connect(mesh.ws_url, tenant) as of_queue:
        await of_queue.call("subscribe", topics=[f"queue:{bench.queue}"])
        made = await bench.wire.call("job.enqueue_many", jobs=[{"type": "t", "queue": bench.queue}] * 3)
        job_id = made["jobs"][1]["id"]
        await of_job.call("subscribe", topics=[f"job:{job_id}"], since=of_job.initialized["cursor"])
        await bench.wire.call("job.complete", jobs=[held(job) for job in await bench.claim()])
        expected = ["job.enqueued", "job.claimed", "job.completed"]
        for listener in (of_job, of_queue):
            await listener.until_events(3)
            assert [event["type"] for event in listener.events] == expected
            assert all(job_id in [job["id"] for job in event["data"]["jobs"]] for event in listener.events)
        assert of_queue.events[2]["data"]["status"] == "COMPLETED"


async def test_what_a_worker_does_not_know_that_it_holds_goes_back(bench: Bench) -> None:
    jobs = [await bench.enqueue(max_retries=0) for _ in range(4)]
    heard, unheard = await bench.claim(limit=2), await bench.claim(limit=2)
    await bench.wire.call("job.cancel", job_id=unheard[1]["id"])
    told = await bench.wire.call(
        "worker.reconcile", worker_id=bench.worker_id, jobs=[held(job) for job in heard] + [{**held(unheard[0]), "attempt": 7}]
    )  # fmt: skip
    assert (told["released"], told["worker"]["status"], told["worker"]["current_load"]) == (1, "ACTIVE", 2)
    assert [await bench.status(job) for job in (*heard, *unheard)] == ["PROCESSING"] * 2 + ["PENDING", "CANCELLED"]
    [again] = await bench.claim(limit=4)
    assert (again["id"], again["retry_count"], again["attempt"]) == (unheard[0]["id"], 0, 2)
    await bench.wire.call("job.complete", jobs=[held(job) for job in (*heard, again)])
    assert {job["id"] for job in jobs} == {job["id"] for job in (*heard, *unheard)}


async def test_a_process_knows_nothing_of_what_another_of_its_name_holds(bench: Bench) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    name = f"w{uuid.uuid4().hex}"
    for instance in (first, second):
        await bench.wire.call("worker.register", name=name, queues=[bench.queue], instance_id=instance)
    answer = await bench.wire.call("worker.register", name=name, queues=[bench.queue], instance_id=second)
    job, worker_id = await bench.enqueue(), answer["worker"]["id"]
    await bench.claim(worker_id=worker_id)
    with pytest.raises(WireError) as refused:
        await bench.wire.call("worker.reconcile", worker_id=worker_id, jobs=[], instance_id=first)
    assert (refused.value.reason, await bench.status(job)) == ("worker.instance", "PROCESSING")


async def test_another_owner_s_worker_is_not_there(mesh: Mesh, tenant: str, bench: Bench) -> None:
    other = await bench.wire.call("key.create", kind="worker")
    async with await Wire.connect(mesh.ws_url, other["secret"]) as stranger:
        for method in ("job.claim", "worker.heartbeat", "worker.reconcile", "worker.evacuate", "worker.deregister"):
            more: dict[str, Any] = {"jobs": []} if method == "worker.reconcile" else {}
            with pytest.raises(WireError) as refused:
                await stranger.call(method, worker_id=bench.worker_id, **more)
            assert refused.value.kind == "not_found", method


async def test_explain_names_what_a_job_waits_for(bench: Bench) -> None:
    async def reason(job: dict[str, Any]) -> str:
        return str((await bench.wire.call("job.explain", job_id=job["id"]))["explanation"]["reason"])

    job = await bench.enqueue()
    assert await reason(job) == "no_worker"
    assert await reason(await bench.enqueue(delay_ms=60_000)) == "not_due"
    small = await register(bench.wire, capacity=1, queues=[bench.queue])
    assert await reason(job) == "next"
    assert await reason(await bench.enqueue()) == "others_first"
    [claimed] = await bench.claim(limit=1, worker_id=small)
    assert await reason(claimed) == "running"
    assert await reason(await bench.enqueue(priority=5)) == "workers_busy"
    await bench.wire.call("job.fail", jobs=[held(claimed, error="x")])
    assert await reason(claimed) == "backing_off"
