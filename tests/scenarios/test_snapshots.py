"""J16 to J19, J23, J24: what is under way is written down, lost, and put back."""

from __future__ import annotations

import asyncio
import datetime
import uuid
from typing import Any

import pytest

from tests.harness import Mesh, eventually
from tests.scenarios.archive import Archive, Bystander
from tests.scenarios.jobs import Bench, held, reason
from tests.wire import Wire, WireError


async def test_j16_a_full_snapshot_has_everything(archive: Archive, bench: Bench) -> None:
    for _ in range(3):
        await bench.enqueue()
    [running] = await bench.claim(limit=1)
    snapshot = await archive.take(reason="before the upgrade")
    assert (snapshot["kind"], snapshot["base_id"], snapshot["reason"]) == ("FULL", None, "before the upgrade")
    counts = {name: snapshot["counts"][name] for name in ("workers", "jobs", "pending", "processing")}
    assert counts == {"workers": 1, "jobs": 3, "pending": 2, "processing": 1}
    assert (await archive.call("get", snapshot_id=snapshot["id"]))["snapshot"] == snapshot
    assert (await archive.jobs(snapshot))[running["id"]] == "PROCESSING"


async def test_j17_j18_an_incremental_one_has_what_changed_and_both_bring_everything_back(
    archive: Archive, bench: Bench
) -> None:
    low, urgent, done = [await bench.enqueue(priority=priority) for priority in (1, 5, 4)]
    await bench.enqueue(priority=3, delay_ms=3_600_000, concurrency_key="k")
    full = await archive.take()
    taken = {job["id"]: job for job in await bench.claim(limit=2)}
    await bench.wire.call("job.complete", jobs=[held(taken[done["id"]])])
    part = await archive.take(kind="INCREMENTAL")
    assert part["base_id"] == full["id"], "J17"
    changed = await archive.jobs(part)
    assert changed == {done["id"]: "COMPLETED", urgent["id"]: "PROCESSING"}
    assert {name: part["counts"][name] for name in ("jobs", "ended", "gone")} == {"jobs": 1, "ended": 1, "gone": 1}

    archive.lose()
    assert (await bench.wire.call("job.list", queue=bench.queue))["jobs"] == []
    answer = await archive.call("restore", snapshot_id=part["id"])
    assert answer["restored"] | {"queues": 0} == {
        "jobs": 3, "processing": 1, "dead_letters": 0, "workers": 1, "queues": 0, "schedules": 0,
    }  # fmt: skip
    assert (answer["conflicts"], answer["conflict_count"]) == ([], 0)
    jobs = (await bench.wire.call("job.list", queue=bench.queue))["jobs"]
    assert {job["id"]: job["status"] for job in jobs if job["concurrency_key"] is None} == {
        low["id"]: "PENDING", urgent["id"]: "PROCESSING"
    }  # fmt: skip
    worker = (await bench.wire.call("worker.get", worker_id=bench.worker_id))["worker"]
    assert (worker["status"], worker["current_load"]) == ("ACTIVE", 1)
    await bench.wire.call("job.complete", jobs=[held(taken[urgent["id"]], result=5)])
    [claimed] = await bench.claim()
    assert claimed["id"] == low["id"]
    await bench.wire.call("job.complete", jobs=[held(claimed)])
    assert [await bench.status(job) for job in (urgent, low)] == ["COMPLETED", "COMPLETED"]


async def test_j18_priorities_come_back_and_a_lease_whose_worker_is_gone_runs_out(
    archive: Archive, bench: Bench
) -> None:
    jobs = [await bench.enqueue(priority=priority, backoff_ms=1) for priority in (1, 5, 3)]
    [claimed] = await bench.claim(limit=1, lease_s=0.5)
    assert claimed["id"] == jobs[1]["id"]
    snapshot = await archive.take()
    archive.lose()
    await archive.call("restore", snapshot_id=snapshot["id"])
    given = [job["id"] for job in await bench.claim()]
    assert given == [jobs[2]["id"], jobs[0]["id"]]
    [again] = await bench.claim(wait_ms=5_000)
    assert (again["id"], again["attempt"]) == (jobs[1]["id"], 2)
    with pytest.raises(WireError) as refused:
        await bench.wire.call("job.complete", jobs=[held(claimed)])
    assert refused.value.data["reason"] == "job.stale_attempt"


async def test_what_json_may_say_and_a_text_may_not_hold_comes_back_as_it_was(archive: Archive, bench: Bench) -> None:
    odd = {"a\u0000b": ["\u0000", "\\u0000", "\ufdd1"]}
    waiting = await bench.enqueue(payload=odd, delay_ms=3_600_000)
    brief = await bench.enqueue(payload="a\u0000b", delay_ms=3_600_000)
    dead = await bench.enqueue(payload=odd, max_retries=0)
    await bench.wire.call("job.fail", jobs=[held(job, error=odd) for job in await bench.claim()])
    about = {"name": uuid.uuid4().hex, "cron": "0 0 1 1 *", "job": {"type": "t", "payload": odd}}
    schedule = (await bench.wire.call("schedule.create", **about))["schedule"]
    snapshot = await archive.take()
    for on_conflict, lost in (("preserve", True), ("overwrite", False)):
        if lost:
            archive.lose()
        answer = await archive.call("restore", snapshot_id=snapshot["id"], on_conflict=on_conflict)
        assert answer["conflicts"] == []
        assert (await bench.get(waiting))["payload"] == odd
        assert (await bench.get(brief))["payload"] == "a\u0000b"
        assert (await bench.get(dead))["error"] == odd
        [letter] = await bench.dead_letters()
        assert letter["error"] == odd
        found = (await bench.wire.call("schedule.get", schedule_id=schedule["id"]))["schedule"]
        assert found["job"]["payload"] == odd


async def test_j23_who_had_a_job_that_waits_for_others_again_cannot_end_its_next_attempt(
    archive: Archive, bench: Bench
) -> None:
    parent = await bench.enqueue(queue=f"{bench.queue}-parent")
    child = await bench.enqueue(depends_on=[parent["id"]])
    snapshot = await archive.take()

    async def parent_done() -> None:
        [claimed] = await bench.claim(queues=[f"{bench.queue}-parent"])
        await bench.wire.call("job.complete", jobs=[held(claimed)])

    await parent_done()
    [former] = await bench.claim()
    assert former["id"] == child["id"]
    await archive.call("restore", snapshot_id=snapshot["id"], on_conflict="overwrite")
    assert await bench.status(child) == "PENDING"
    await parent_done()
    [again] = await bench.claim()
    assert again["attempt"] > former["attempt"]
    with pytest.raises(WireError) as refused:
        await bench.wire.call("job.complete", jobs=[held(former)])
    assert refused.value.data["reason"] == "job.stale_attempt"


async def test_j19_what_changed_since_is_told_and_what_is_new_is_kept(archive: Archive, bench: Bench) -> None:
    before = await bench.enqueue()
    snapshot = await archive.take()
    await bench.wire.call("worker.evacuate", worker_id=bench.worker_id, reason="maintenance")
    new = await bench.enqueue()
    answer = await archive.call("restore", snapshot_id=snapshot["id"])
    [conflict] = answer["conflicts"]
    assert (conflict["kind"], conflict["resolution"]) == ("WORKER_STATUS_CONFLICT", "PRESERVED_CURRENT")
    assert (conflict["snapshot_value"], conflict["current_value"]) == ("ACTIVE", "DRAINING")
    assert (await bench.wire.call("worker.get", worker_id=bench.worker_id))["worker"]["status"] == "DRAINING"
    assert [await bench.status(job) for job in (before, new)] == ["PENDING", "PENDING"]
    with pytest.raises(WireError) as refused:
        await archive.call("restore", snapshot_id=snapshot["id"], on_conflict="fail")
    assert (refused.value.kind, refused.value.data["reason"]) == ("conflict", "snapshot.conflicts")
    answer = await archive.call("restore", snapshot_id=snapshot["id"], on_conflict="overwrite")
    assert answer["conflicts"][0]["resolution"] == "RESTORED_SNAPSHOT"
    assert (await bench.wire.call("worker.get", worker_id=bench.worker_id))["worker"]["status"] == "ACTIVE"


async def test_every_place_of_a_job_comes_back_as_it_was(archive: Archive, bench: Bench) -> None:
    parent = await bench.enqueue(priority=2)
    child = await bench.enqueue(depends_on=[parent["id"]])
    placed = await bench.enqueue(concurrency_key="k", priority=5)
    waiting = await bench.enqueue(concurrency_key="k")
    retried = await bench.enqueue(backoff_ms=60_000, priority=5)
    dead = await bench.enqueue(max_retries=0, priority=5)
    only = await bench.enqueue(unique_key="u", delay_ms=3_600_000)
    await bench.wire.call("queue.limit", queue=bench.queue, rate_per_s=1_000)
    schedule = await bench.wire.call("schedule.create", name="s", cron="0 0 1 1 *", job={"type": "t"})
    taken = {job["id"]: job for job in await bench.claim(limit=3)}
    for job in (retried, dead):
        await bench.wire.call("job.fail", jobs=[held(taken[job["id"]], error="no")])
    everything = (parent, child, placed, waiting, retried, dead, only)
    before = [await bench.get(job) for job in everything]
    snapshot = await archive.take()
    archive.lose()
    answer = await archive.call("restore", snapshot_id=snapshot["id"])
    assert answer["restored"] == {
        "jobs": 6, "processing": 1, "dead_letters": 1, "workers": 1, "queues": 1, "schedules": 1
    }  # fmt: skip
    after = [await bench.get(job) for job in everything]
    for was, is_now in zip(before, after, strict=True):
        for name in was.keys() - {"run_at", "lease_until", "finished_at", "worker_id", "started_at", "error"}:
            assert is_now[name] == was[name], (name, was["status"])
    assert (await bench.wire.call("schedule.get", schedule_id=schedule["schedule"]["id"]))["schedule"] == schedule[
        "schedule"
    ]
    assert (await bench.wire.call("job.enqueue", type="t", unique_key="u"))["is_duplicate"]
    assert [letter["job_id"] for letter in await bench.dead_letters()] == [dead["id"]]
    await bench.wire.call("job.complete", jobs=[held(taken[placed["id"]])])
    given = {job["id"]: job for job in await bench.claim()}
    assert set(given) == {parent["id"], waiting["id"]}, "a place was free, and the child waits"
    await bench.wire.call("job.complete", jobs=[held(job) for job in given.values()])
    assert [job["id"] for job in await bench.claim()] == [child["id"]]
    assert (await bench.wire.call("job.cancel", job_id=only["id"]))["job"]["status"] == "CANCELLED"


async def test_j23_snapshots_are_taken_at_an_interval_and_only_the_latest_are_kept(archive: Archive) -> None:
    answer = await archive.call("auto", interval_s=1, keep=2)
    assert (answer["interval_s"], answer["keep"]) == (1, 2)
    seen: set[str] = set()

    async def were_there(count: int) -> bool:
        there = (await archive.call("list", kind="AUTO"))["snapshots"]
        assert len(there) <= 2
        seen.update(snapshot["id"] for snapshot in there)
        return len(seen) >= count

    await eventually(lambda: were_there(3), "three have been taken", within_s=15)
    assert await archive.call("auto", interval_s=None) == {"interval_s": None, "keep": None, "next_at": None}


async def test_j24_the_latest_snapshot_of_a_time_is_put_back(archive: Archive, bench: Bench) -> None:
    first = await bench.enqueue()
    early = await archive.take()
    await bench.wire.call("job.cancel", job_id=first["id"])
    later = await bench.enqueue()
    late = await archive.take()
    archive.lose()
    moment = datetime.datetime.fromisoformat(late["taken_at"]) - datetime.timedelta(microseconds=1)
    answer = await archive.call("restore", at=moment.isoformat())
    assert answer["snapshot_id"] == early["id"]
    assert await bench.status(first) == "PENDING"
    assert (await archive.call("restore", at=late["taken_at"]))["snapshot_id"] == late["id"]
    assert await bench.status(later) == "PENDING"
    before = datetime.datetime.fromisoformat(early["taken_at"]) - datetime.timedelta(seconds=1)
    with pytest.raises(WireError) as refused:
        await archive.call("restore", at=before.isoformat())
    assert (refused.value.kind, refused.value.data["field"]) == ("not_found", "at")


async def test_a_snapshot_under_load_has_each_job_in_one_place(archive: Archive, bench: Bench) -> None:
    async def work() -> None:
        while True:
            for job in await bench.claim(limit=5, wait_ms=50):
                await bench.wire.call("job.snooze", jobs=[held(job, delay_ms=1)])

    for _ in range(5):
        await bench.wire.call("job.enqueue_many", jobs=[{"type": "t", "queue": bench.queue}] * 20)
    workers = [asyncio.create_task(work()) for _ in range(4)]
    try:
        for _ in range(10):
            snapshot = await archive.take()
            assert snapshot["counts"]["jobs"] == 100
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def test_what_others_stand_on_is_kept(archive: Archive) -> None:
    base = await archive.take()
    part = await archive.take(kind="INCREMENTAL", base_id=base["id"])
    with pytest.raises(WireError) as refused:
        await archive.call("delete", snapshot_id=base["id"])
    assert (refused.value.data["reason"], part["id"] in refused.value.message) == ("snapshot.base", True)
    for snapshot in (part, base):
        await archive.call("delete", snapshot_id=snapshot["id"])
    assert (await archive.call("list"))["snapshots"] == []


STREAM = "select pg_advisory_xact_lock(hashtextextended($1::uuid::text, 7))"  # what a transaction takes last


@pytest.mark.parametrize("who", ["caller", "policy"])
async def test_what_another_is_just_coming_to_stand_on_is_kept(
    archive: Archive, bench: Bench, bystander: Bystander, who: str
) -> None:
    job = await bench.enqueue()
    base = await archive.take()
    await bystander.begin(STREAM, archive.tenant_id)
    taking = asyncio.create_task(archive.take(kind="INCREMENTAL"))
    await bystander.are_held_up(1)
    deleting = asyncio.create_task(archive.call("delete", snapshot_id=base["id"])) if who == "caller" else None
    if deleting is None:
        archive.run(
            f"update mcp.state_snapshots set kind = 'AUTO' where snapshot_id = '{base['id']}' and tenant_id = $1"
        )
        archive.run("insert into mcp.snapshot_policies values ($1, 3600, 1, now())")
    await bystander.are_held_up(2)
    await bystander.commit()
    part = await taking
    assert part["base_id"] == base["id"]
    if deleting is not None:
        with pytest.raises(WireError) as refused:
            await deleting
        assert refused.value.data["reason"] == "snapshot.base"
    else:

        async def there_are_three() -> bool:
            return len((await archive.call("list"))["snapshots"]) == 3

        await eventually(there_are_three, "the policy's own was taken, and the base is there")
    archive.lose()
    await archive.restore(part)
    assert await bench.status(job) == "PENDING"


async def test_without_its_base_a_snapshot_is_not_put_back_in_part(archive: Archive, bench: Bench) -> None:
    await bench.enqueue()
    base = await archive.take()
    part = await archive.take(kind="INCREMENTAL")
    archive.run(f"delete from mcp.state_snapshots where tenant_id = $1 and snapshot_id = '{base['id']}'")
    with pytest.raises(WireError) as refused:
        await archive.restore(part)
    assert (refused.value.data["reason"], base["id"] in refused.value.message) == ("snapshot.base", True)


async def test_no_longer_chain_is_made_than_can_be_put_back(archive: Archive) -> None:
    archive.run(
        "insert into mcp.state_snapshots (tenant_id, snapshot_id, base_id, kind, taken_at)"
        " select $1, lpad(n::text, 32, '0')::uuid, case when n > 1 then lpad((n - 1)::text, 32, '0')::uuid end,"
        " case when n > 1 then 'INCREMENTAL' else 'FULL' end, now() - interval '1 h' from generate_series(1, 99) n"
    )
    last = await archive.take(kind="INCREMENTAL")
    await archive.restore(last)
    with pytest.raises(WireError) as refused:
        await archive.take(kind="INCREMENTAL")
    assert refused.value.data["reason"] == "snapshot.chain"
    assert (await archive.take())["kind"] == "FULL"


async def test_the_latest_is_that_by_the_database_s_clock(archive: Archive) -> None:
    """Ids are made by processes, one of which may be ahead."""
    latest, other = await archive.take(), await archive.take()
    archive.run(
        f"update mcp.state_snapshots set taken_at = '{latest['taken_at']}'::timestamptz - interval '1 h'"
        f" where tenant_id = $1 and snapshot_id = '{other['id']}'"
    )
    assert (await archive.call("restore", at=latest["taken_at"]))["snapshot_id"] == latest["id"]
    assert (await archive.take(kind="INCREMENTAL"))["base_id"] == latest["id"]


async def test_a_snapshot_by_a_policy_that_fails_is_not_tried_again_at_once(archive: Archive) -> None:
    archive.run(
        "insert into mcp.state_snapshots (tenant_id, snapshot_id, kind)"
        " select $1, lpad(n::text, 32, '0')::uuid, 'FULL' from generate_series(1, 1000) n"
    )
    await archive.call("auto", interval_s=86_400, keep=1)
    archive.run("update mcp.snapshot_policies set next_at = now() where tenant_id = $1")
    in_s = "select extract(epoch from next_at - now())::integer from mcp.snapshot_policies where tenant_id = $1"
    await eventually(lambda: 250 < int(archive.run(in_s)) <= 300, "it is put off for five minutes")
    await archive.call("delete", snapshot_id=str(uuid.UUID(int=0x1)))
    archive.run("update mcp.snapshot_policies set next_at = now() where tenant_id = $1")
    await eventually(lambda: int(archive.run(in_s)) > 86_000, "and then taken")
    assert len((await archive.call("list", kind="AUTO"))["snapshots"]) == 1


@pytest.mark.parametrize(
    ("name", "about", "kind"),
    [
        ("create", {"kind": "INCREMENTAL"}, "conflict"),
        ("create", {"kind": "HALF"}, "invalid_params"),
        ("create", {"kind": "INCREMENTAL", "base_id": str(uuid.UUID(int=1))}, "not_found"),
        ("create", {"base_id": str(uuid.UUID(int=1))}, "invalid_params"),
        ("restore", {}, "invalid_params"),
        ("restore", {"snapshot_id": str(uuid.UUID(int=1))}, "not_found"),
        ("restore", {"snapshot_id": str(uuid.UUID(int=1)), "at": "2026-01-01T00:00:00Z"}, "invalid_params"),
        ("auto", {"interval_s": 0}, "invalid_params"),
        ("delete", {"snapshot_id": str(uuid.UUID(int=1))}, "not_found"),
    ],
)
async def test_what_cannot_be_is_refused(archive: Archive, name: str, about: dict[str, Any], kind: str) -> None:
    with pytest.raises(WireError) as refused:
        await archive.call(name, **about)
    assert refused.value.kind == kind


async def test_another_tenant_s_snapshot_is_not_there(mesh: Mesh, archive: Archive) -> None:
    snapshot = await archive.take()
    async with await Wire.connect(mesh.ws_url, mesh.new_tenant()) as stranger:
        for name in ("get", "jobs", "delete", "restore"):
            with pytest.raises(WireError) as refused:
                await stranger.call(f"snapshot.{name}", snapshot_id=snapshot["id"])
            assert refused.value.kind == "not_found"


async def test_a_job_that_was_lost_is_said_to_be_and_what_waited_for_it_is_put_back(
    archive: Archive, bench: Bench
) -> None:
    lost, other = [await bench.enqueue() for _ in range(2)]
    child = await bench.enqueue(depends_on=[lost["id"]], on_parent_failure="ignore")
    snapshot = await archive.take()
    part = f"job_id = '{lost['id']}'"
    archive.run(f"delete from mcp.jobs_ready where tenant_id = $1 and {part}")
    about = {"depends_on": [lost["id"]]}
    for method, params in (
        ("job.enqueue", {"type": "t", "queue": bench.queue, **about}),
        ("job.depend", {"job_id": other["id"], **about}),
    ):
        with pytest.raises(WireError) as refused:
            await bench.wire.call(method, **params)
        assert (refused.value.kind, refused.value.reason) == ("conflict", "job.lost")
        assert lost["id"] in refused.value.message
        assert "snapshot.restore" in refused.value.message
    archive.run(
        f"delete from mcp.state_snapshot_rows where tenant_id = $1 and noun = 'jobs_ready' and id = '{lost['id']}'"
    )
    archive.run(f"delete from mcp.state_snapshot_rows where tenant_id = $1 and noun = 'jobs' and id = '{lost['id']}'")
    archive.lose("jobs_blocked", "job_dependencies")
    answer = await archive.restore(snapshot)
    assert answer["restored"]["jobs"] == 1
    assert await reason(bench, child) == "waiting_for_parents"
    assert [job["id"] for job in await bench.claim()] == [other["id"]]
