"""What a restore compares, reports and leaves right: capacity, limits, pauses, schedules, the history, and odd characters."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

from tests.harness import eventually
from tests.scenarios.archive import TABLES, Archive, Bystander
from tests.scenarios.jobs import Bench, held, register
from tests.wire import WireError

JOB_TABLES = ("jobs", "jobs_ready", "jobs_limited", "jobs_leased", "job_slots", "job_limits", "job_executions")


def firing_times(jobs: list[dict[str, Any]]) -> list[str]:
    return sorted(tag for job in jobs for tag in job["tags"] if tag.startswith("scheduled_at:"))


async def test_no_time_of_a_schedule_that_is_put_back_has_its_job_twice(archive: Archive, bench: Bench) -> None:
    about = {"interval_s": 1, "missed": "all", "job": {"type": "t", "queue": bench.queue}}
    schedule = (await bench.wire.call("schedule.create", name=uuid.uuid4().hex, **about))["schedule"]

    async def has_fired(count: int) -> bool:
        found = (await bench.wire.call("schedule.get", schedule_id=schedule["id"]))["schedule"]
        return bool(found["fired_count"] >= count)

    await eventually(lambda: has_fired(1), "it has fired")
    snapshot = await archive.take()
    await eventually(lambda: has_fired(3), "it has fired since")
    await bench.wire.call("schedule.pause", schedule_id=schedule["id"])
    before = len((await bench.wire.call("job.list", queue=bench.queue))["jobs"])
    await archive.restore(snapshot, "overwrite")
    await eventually(lambda: has_fired(before + 1), "it goes on")
    times = firing_times((await bench.wire.call("job.list", queue=bench.queue))["jobs"])
    assert len(times) == len(set(times))


@pytest.mark.parametrize("changed", [{}, {"cron": "0 0 1 1 *"}], ids=["paused", "timed otherwise"])
async def test_a_schedule_that_is_put_back_makes_nothing_up_for_when_it_was_paused_or_had_other_times(
    archive: Archive, bench: Bench, changed: dict[str, Any]
) -> None:
    about = {"interval_s": 3_600, "missed": "all", "job": {"type": "t", "queue": bench.queue}}
    schedule = (await bench.wire.call("schedule.create", name=uuid.uuid4().hex, **about))["schedule"]
    archive.run("update mcp.schedules set starts_at = starts_at - interval '1 day' where tenant_id = $1")
    snapshot = await archive.take()
    verb = "schedule.update" if changed else "schedule.pause"
    await bench.wire.call(verb, schedule_id=schedule["id"], **changed)
    # As if the snapshot were five hours old: what it says of the next time is over.
    archive.run("update mcp.state_snapshot_rows set \"row\" = (\"row\"::jsonb || jsonb_build_object('next_fire_at',"
                " now() - interval '5 h'))::json where tenant_id = $1 and noun = 'schedules'")  # fmt: skip
    assert (await archive.restore(snapshot, "overwrite"))["restored"]["schedules"] == 1
    found = await bench.wire.call("schedule.get", schedule_id=schedule["id"])
    assert (found["schedule"]["interval_s"], found["schedule"]["paused_at"]) == (3_600, None)
    assert (found["schedule"]["next_fire_at"], found["schedule"]["fired_count"]) == (found["upcoming"][0], 0)


async def test_a_schedule_in_a_time_zone_that_is_not_known_here_is_put_back_with_the_rest(
    archive: Archive, bench: Bench
) -> None:
    about = {"cron": "0 0 1 1 *", "job": {"type": "t"}}
    schedule = (await bench.wire.call("schedule.create", name=uuid.uuid4().hex, **about))["schedule"]
    archive.run("update mcp.schedules set time_zone = 'Europe/Atlantis' where tenant_id = $1")
    snapshot = await archive.take()
    archive.run("update mcp.schedules set last_fired_at = next_fire_at, next_fire_at = next_fire_at + interval '1 year',"
                " missed = 'all' where tenant_id = $1")  # fmt: skip
    assert (await archive.restore(snapshot, "overwrite"))["restored"]["schedules"] == 1
    found = (await bench.wire.call("schedule.get", schedule_id=schedule["id"]))["schedule"]
    assert (found["missed"], found["next_fire_at"] > schedule["next_fire_at"]) == (schedule["missed"], True)

    await bench.wire.call("schedule.pause", schedule_id=schedule["id"])
    assert (await archive.restore(snapshot, "overwrite"))["restored"]["schedules"] == 1
    found = (await bench.wire.call("schedule.get", schedule_id=schedule["id"]))["schedule"]
    assert found["paused_at"] is not None, "it would never fire, and nobody would see why"
    with pytest.raises(WireError) as refused:
        await bench.wire.call("schedule.resume", schedule_id=schedule["id"])
    assert refused.value.data["field"] == "time_zone"
    archive.run("update mcp.schedules set time_zone = 'UTC' where tenant_id = $1")
    resumed = (await bench.wire.call("schedule.resume", schedule_id=schedule["id"]))["schedule"]
    assert resumed["next_fire_at"] > schedule["next_fire_at"]


async def test_whatever_would_be_put_back_is_compared_and_told(archive: Archive, bench: Bench) -> None:
    queue, call = bench.queue, bench.wire.call
    await call("queue.limit", queue=queue, rate_per_s=10, burst=5)
    about = {"cron": "0 0 1 1 *", "time_zone": "Europe/Berlin", "missed": "skip", "job": {"type": "t"}}
    schedule = (await call("schedule.create", name=uuid.uuid4().hex, **about))["schedule"]
    job = await bench.enqueue()
    snapshot = await archive.take()
    assert (await archive.restore(snapshot))["conflicts"] == []
    await call("job.cancel", job_id=job["id"])
    [conflict] = (await archive.restore(snapshot))["conflicts"]
    assert json.loads(conflict["snapshot_value"]) == {"status": "PENDING", "attempt": 0}
    assert json.loads(conflict["current_value"]) == {"status": "CANCELLED", "attempt": 1}
    snapshot = await archive.take()
    changes: list[tuple[str, dict[str, Any], str, Any, Any]] = [
        ("queue.limit", {"queue": queue, "rate_per_s": 10, "burst": 7}, "burst", 5, 7),
        ("queue.pause", {"queue": queue, "reason": "r"}, "is_paused", False, True),
        ("schedule.update", {"time_zone": "Asia/Tokyo"}, "time_zone", "Europe/Berlin", "Asia/Tokyo"),
        ("schedule.update", {"missed": "all"}, "missed", "skip", "all"),
        ("schedule.update", {"name": "other"}, "name", schedule["name"], "other"),
        ("schedule.update", {"cron": "0 0 2 1 *"}, "cron", "0 0 1 1 *", "0 0 2 1 *"),
        ("schedule.update", {"ends_at": "2999-01-01T00:00:00Z"}, "ends_at", None, "2999-01-01T00:00:00+00:00"),
        ("schedule.update", {"job": {"type": "u"}}, "job", ..., ...),
    ]  # fmt: skip
    for name, asked, member, was, is_now in changes:
        await call(name, **asked, **({"schedule_id": schedule["id"]} if name == "schedule.update" else {}))
        [conflict] = (await archive.restore(snapshot))["conflicts"]
        assert conflict["resolution"] == "PRESERVED_CURRENT"
        values = [json.loads(conflict[side])[member] for side in ("snapshot_value", "current_value")]
        assert values == [was, is_now] or (was is ... and values[0] != values[1])
        [conflict] = (await archive.restore(snapshot, "overwrite"))["conflicts"]
        assert conflict["resolution"] == "RESTORED_SNAPSHOT"
        assert (await archive.restore(snapshot, "fail"))["conflict_count"] == 0, f"{name} {asked} was undone"


async def test_what_another_has_the_name_of_by_now_is_told_and_stays(archive: Archive, bench: Bench) -> None:
    name = uuid.uuid4().hex
    about = {"name": name, "cron": "0 0 1 1 *", "job": {"type": "t"}}
    schedule = (await bench.wire.call("schedule.create", **about))["schedule"]
    worker = (await bench.wire.call("worker.register", name=name))["worker"]
    snapshot = await archive.take()
    await bench.wire.call("schedule.delete", schedule_id=schedule["id"])
    await bench.wire.call("worker.deregister", worker_id=worker["id"])
    others = (
        (await bench.wire.call("schedule.create", **about))["schedule"]["id"],
        (await bench.wire.call("worker.register", name=name))["worker"]["id"],
    )
    with pytest.raises(WireError) as refused:
        await archive.restore(snapshot, "fail")
    assert refused.value.data["reason"] == "snapshot.conflicts"
    for on_conflict in ("preserve", "overwrite"):
        answer = await archive.restore(snapshot, on_conflict)
        told = {(conflict["id"], conflict["resolution"]) for conflict in answer["conflicts"]}
        assert told == {(schedule["id"], "PRESERVED_CURRENT"), (worker["id"], "PRESERVED_CURRENT")}
        assert {json.loads(conflict["current_value"])["name_is_of"] for conflict in answer["conflicts"]} == set(others)
        assert (answer["restored"]["schedules"], answer["restored"]["workers"]) == (0, 0)


async def test_a_dry_run_tells_of_every_conflict_and_changes_nothing(archive: Archive, bench: Bench) -> None:
    spec = {"type": "t", "queue": bench.queue}
    jobs = [job for _ in range(2) for job in (await bench.wire.call("job.enqueue_many", jobs=[spec] * 505))["jobs"]]
    snapshot = await archive.take()
    await bench.wire.call("queue.purge", queue=bench.queue)
    told: list[dict[str, Any]] = []
    cursor: str | None = None
    while cursor is not None or not told:
        about = {"on_conflict": "overwrite", "dry_run": True, "cursor": cursor}
        answer = await archive.call("restore", snapshot_id=snapshot["id"], **about)
        assert answer["conflict_count"] == len(jobs)
        assert not any(answer["restored"].values())
        told += answer["conflicts"]
        cursor = answer["next_cursor"]
    assert {conflict["id"] for conflict in told} == {job["id"] for job in jobs}
    assert len(told) == len(jobs)
    assert {conflict["resolution"] for conflict in told} == {"RESTORED_SNAPSHOT"}
    assert await bench.claim() == []
    with pytest.raises(WireError) as refused:
        await archive.call("restore", snapshot_id=snapshot["id"], cursor="00")
    assert (refused.value.kind, refused.value.data["field"]) == ("invalid_params", "cursor")


async def test_thousands_of_jobs_are_put_back_within_the_deadline_of_a_transaction(
    archive: Archive, bench: Bench
) -> None:
    for _ in range(12):
        await bench.wire.call("job.enqueue_many", jobs=[{"type": "t", "queue": bench.queue}] * 500)
    snapshot = await archive.take()
    archive.lose("jobs", "jobs_ready")
    assert (await archive.restore(snapshot))["restored"]["jobs"] == 6_000
    assert (await archive.restore(snapshot))["restored"]["jobs"] == 0


async def test_a_lease_that_is_put_back_counts_at_once_against_its_worker_s_capacity(
    archive: Archive, bench: Bench
) -> None:
    worker_id = await register(bench.wire, capacity=1)
    await bench.enqueue()
    assert len(await bench.claim(worker_id=worker_id)) == 1
    archive.run("update mcp.jobs_leased set started_at = started_at - interval '1 min' where tenant_id = $1")
    snapshot = await archive.take()
    archive.lose(*JOB_TABLES)
    for _ in range(3):  # the first look is at everything, and so is one of the next
        assert await bench.claim(worker_id=worker_id) == []
    await archive.restore(snapshot)
    await bench.enqueue()
    assert await bench.claim(worker_id=worker_id) == []


async def test_a_claim_waits_for_what_is_being_put_back_into_its_worker_s_hands(
    archive: Archive, bench: Bench, bystander: Bystander
) -> None:
    worker_id = await register(bench.wire, capacity=1)
    await bench.enqueue()
    assert len(await bench.claim(worker_id=worker_id)) == 1
    snapshot = await archive.take()
    archive.lose(*JOB_TABLES)
    another = await bench.enqueue()
    # A restore appends its events last.
    await bystander.begin("select pg_advisory_xact_lock(hashtextextended($1, 7))", str(archive.tenant_id))
    restoring = asyncio.create_task(archive.restore(snapshot))
    await bystander.are_held_up(1)
    claiming = asyncio.create_task(bench.claim(worker_id=worker_id))
    await bystander.are_held_up(2)
    await bystander.commit()
    assert (await restoring)["restored"]["processing"] == 1
    assert await claiming == []
    assert [job["id"] for job in await bench.claim()] == [another["id"]]


async def test_a_limit_is_as_high_as_it_was(archive: Archive, bench: Bench) -> None:
    for _ in range(2):
        await bench.enqueue(concurrency_key="k", concurrency_limit=2)
    first, _ = await bench.claim()
    snapshot = await archive.take()
    archive.lose()
    await archive.restore(snapshot)
    assert await archive.broken_rules() == []
    await bench.wire.call("job.complete", jobs=[held(first)])
    assert archive.run("select concurrency_limit from mcp.job_limits where tenant_id = $1") == "2"


async def test_a_job_whose_place_another_has_by_now_waits_for_one(archive: Archive, bench: Bench) -> None:
    await bench.enqueue(concurrency_key="k")
    [former] = await bench.claim()
    snapshot = await archive.take()
    archive.lose(*JOB_TABLES)
    other = await bench.enqueue(concurrency_key="k")
    answer = await archive.restore(snapshot)
    assert (answer["restored"]["jobs"], answer["restored"]["processing"]) == (1, 0)
    assert await archive.broken_rules() == []
    [now] = await bench.claim()
    assert now["id"] == other["id"]
    with pytest.raises(WireError) as refused:
        await bench.wire.call("job.complete", jobs=[held(former)])
    assert refused.value.data["reason"] == "job.stale_attempt"
    await bench.wire.call("job.complete", jobs=[held(now)])
    [again] = await bench.claim()
    assert (again["id"], again["attempt"]) == (former["id"], former["attempt"] + 1)
    assert await archive.broken_rules() == []


async def test_the_history_of_what_was_lost_and_put_back_is_whole(archive: Archive, bench: Bench) -> None:
    for name in ("held", "waiting", "dead"):
        await bench.enqueue(type=name, backoff_ms=0, max_retries=1)
    for job in await bench.claim():
        await bench.wire.call("job.fail", jobs=[held(job, error="no")])
    for job in await bench.claim():
        if job["type"] != "held":
            about = {} if job["type"] == "waiting" else {"error": "no"}
            await bench.wire.call("job.fail" if about else "job.release", jobs=[held(job, **about)])
    snapshot = await archive.take()
    for lost in (JOB_TABLES, TABLES, (*TABLES, "events")):
        if "events" in lost:
            archive.run(
                "update mcp.tenants set stream_floor = (select max(sequence) from mcp.events where tenant_id = $1)"
                " where tenant_id = $1"
            )
        archive.lose(*lost)
        await archive.restore(snapshot)
        assert await archive.broken_rules() == []
    for job in await bench.claim():
        await bench.wire.call("job.complete", jobs=[held(job)])
    assert await archive.broken_rules() == []


@pytest.mark.parametrize("lost", [(), JOB_TABLES])
async def test_a_pause_that_is_put_back_accuses_nothing_that_was_begun_before(
    archive: Archive, bench: Bench, lost: tuple[str, ...]
) -> None:
    await bench.enqueue()
    await bench.claim()
    await bench.enqueue()
    await bench.wire.call("queue.pause", queue=bench.queue)
    archive.run("update mcp.queues set paused_at = paused_at - interval '1 h' where tenant_id = $1")
    archive.run("update mcp.jobs_leased set started_at = started_at - interval '2 h' where tenant_id = $1")
    archive.run(
        "update mcp.jobs set run_at = run_at - interval '3 h'"
        " where tenant_id = $1 and job_id in (select job_id from mcp.jobs_leased)"
    )
    snapshot = await archive.take()
    if lost:
        archive.lose(*lost)
    else:
        await bench.wire.call("queue.resume", queue=bench.queue)
        assert len(await bench.claim()) == 1
    await archive.restore(snapshot, "overwrite")
    assert archive.run("select paused_at is not null from mcp.queues where tenant_id = $1") == "t"
    assert await archive.broken_rules() == []


async def test_text_comes_back_as_it_was_whatever_it_looks_like(archive: Archive, bench: Bench) -> None:
    literal = r"a\u0000\\u0000\ufdd0"
    everything = {"\ufdd0": ["\u0000\u0000", "\ufdd0", literal, "\\", "\\\u0000"], "\ufdd1": "\ufdd2"}
    job = await bench.enqueue(payload=everything, unique_key=literal, concurrency_key=literal, delay_ms=3_600_000)
    plain = await bench.enqueue(payload={"a": "\ufdd0", "b": literal}, delay_ms=3_600_000)
    await bench.wire.call("queue.pause", queue=bench.queue, reason=literal)
    before = [await bench.get(each) for each in (job, plain)]
    snapshot = await archive.take()
    archive.lose()
    await archive.restore(snapshot)
    for was, is_now in zip(before, [await bench.get(each) for each in (job, plain)], strict=True):
        assert {**is_now, "run_at": None} == {**was, "run_at": None}
    assert archive.run("select reason from mcp.queues where tenant_id = $1") == literal
    assert (await archive.restore(snapshot, "fail"))["conflict_count"] == 0


@pytest.mark.parametrize("loses", [False, True])
async def test_it_is_told_how_often_a_job_has_failed_and_how_urgent_it_is_again(
    archive: Archive, bench: Bench, *, loses: bool
) -> None:
    failing, running, dead = [await bench.enqueue(max_retries=retries, backoff_ms=0) for retries in (3, 3, 0)]
    claimed = {job["id"]: job for job in await bench.claim()}
    await bench.wire.call("job.fail", jobs=[held(claimed[dead["id"]], error="no")])
    blocked = await bench.enqueue(depends_on=[running["id"]], priority=1)
    snapshot = await archive.take()
    await bench.wire.call("job.fail", jobs=[held(claimed[running["id"]], error="no")])
    await bench.wire.call("job.fail", jobs=[held(claimed[failing["id"]], error="no")])
    [first] = await bench.claim(limit=1)
    await bench.wire.call("job.retry", job_id=dead["id"])
    await bench.wire.call("job.depend", job_id=blocked["id"], depends_on=[(await bench.enqueue(priority=5))["id"]])
    await bench.wire.call("job.cancel", job_id=blocked["id"])
    if loses:
        archive.lose("jobs", "jobs_ready", "jobs_blocked", "jobs_leased", "job_executions", "dead_letter_queue")
    await bench.wire.call("subscribe", topics=["tenant"])
    await archive.restore(snapshot, "overwrite")
    assert first["retry_count"] == 1
    told: dict[str, dict[str, Any]] = {}
    while set(told) < {job["id"] for job in (failing, running, dead, blocked)}:
        event = await bench.wire.next_event("job.restored")
        told |= {job["id"]: {**job, "status": event["data"]["status"]} for job in event["data"]["jobs"]}
    for job in (failing, running, dead, blocked):
        now = await bench.get(job)
        assert told[job["id"]].items() >= {name: now[name] for name in ("status", "retry_count", "priority")}.items()
