"""What becomes of what has changed since a snapshot when it is put back: nobody is stranded, nothing is done twice."""

from __future__ import annotations

import asyncio
import json
import uuid

import pytest

from tests.harness import eventually
from tests.scenarios.archive import Archive, Bystander
from tests.scenarios.jobs import Bench, held, register
from tests.wire import WireError


@pytest.mark.parametrize("place", ["held", "ready", "limited", "blocked"])
async def test_a_job_that_was_made_since_still_waits_for_one_that_is_put_back(
    archive: Archive, bench: Bench, place: str
) -> None:
    key = {"concurrency_key": "k"} if place == "limited" else {}
    first = await bench.enqueue(**key)
    after = {"depends_on": [first["id"]]} if place == "blocked" else key
    parent = await bench.enqueue(**after)
    given = {job["id"]: job for job in await bench.claim(limit=2 if place == "held" else 1)}
    snapshot = await archive.take()
    child = await bench.enqueue(depends_on=[parent["id"]])
    if place == "held":
        await bench.wire.call("job.release", jobs=[held(given[parent["id"]])])
    await bench.wire.call("job.complete", jobs=[held(given[first["id"]])])
    assert [job["id"] for job in await bench.claim()] == [parent["id"]]
    answer = await archive.restore(snapshot, "overwrite")
    assert parent["id"] in [conflict["id"] for conflict in answer["conflicts"]]
    assert await archive.broken_rules() == []

    async def child_runs() -> bool:
        for job in await bench.claim():
            await bench.wire.call("job.complete", jobs=[held(job)])
        return await bench.status(child) == "COMPLETED"

    await eventually(child_runs, "the child is done")


@pytest.mark.parametrize(("policy", "status"), [("fail", "FAILED"), ("ignore", "PENDING"), ("wait", "PENDING")])
async def test_a_dead_letter_that_is_put_back_lets_those_go_on_or_end_that_have_come_to_wait_for_it(
    archive: Archive, bench: Bench, policy: str, status: str
) -> None:
    parent = await bench.enqueue(max_retries=0)
    [claimed] = await bench.claim()
    await bench.wire.call("job.fail", jobs=[held(claimed, error="no")])
    snapshot = await archive.take()
    await bench.wire.call("job.retry", job_id=parent["id"])
    child = await bench.enqueue(depends_on=[parent["id"]], on_parent_failure=policy)
    await archive.restore(snapshot, "overwrite")
    assert [await bench.status(job) for job in (parent, child)] == ["FAILED", status]
    assert [job["id"] for job in await bench.claim()] == ([child["id"]] if policy == "ignore" else [])
    if policy == "wait":
        await bench.wire.call("dead_letter.replay", job_ids=[parent["id"]])
        [again] = await bench.claim()
        await bench.wire.call("job.complete", jobs=[held(again)])
        assert [job["id"] for job in await bench.claim()] == [child["id"]]
    assert await archive.broken_rules() == []


async def test_two_that_put_the_same_back_at_once_queue_each_job_once(
    archive: Archive, bench: Bench, bystander: Bystander
) -> None:
    jobs = [await bench.enqueue() for _ in range(3)]
    snapshot = await archive.take()
    archive.lose()
    await bystander.begin("lock table mcp.jobs_ready in share mode")
    both = [asyncio.create_task(archive.restore(snapshot)) for _ in range(2)]
    await bystander.are_held_up(2)
    await bystander.commit()
    answers = await asyncio.gather(*both)
    assert sorted(answer["restored"]["jobs"] for answer in answers) == [0, 3]
    assert archive.run("select count(*) from mcp.jobs_ready where tenant_id = $1") == str(len(jobs))


async def test_a_job_that_somebody_else_has_just_written_is_not_queued_again(
    archive: Archive, bench: Bench, bystander: Bystander
) -> None:
    job = await bench.enqueue()
    snapshot = await archive.take()
    archive.run("create table public.kept_jobs as select * from mcp.jobs where tenant_id = $1")
    archive.run("create table public.kept_ready as select * from mcp.jobs_ready where tenant_id = $1")
    archive.lose()
    await bystander.begin("insert into mcp.jobs select * from public.kept_jobs")
    await bystander.connection.execute("insert into mcp.jobs_ready select * from public.kept_ready")
    await bystander.connection.execute("drop table public.kept_jobs, public.kept_ready")
    restoring = asyncio.create_task(archive.restore(snapshot))
    await bystander.are_held_up(1)
    await bystander.commit()
    assert (await restoring)["restored"]["jobs"] == 0
    assert archive.run("select count(*) from mcp.jobs_ready where tenant_id = $1") == "1"
    assert [claimed["id"] for claimed in await bench.claim()] == [job["id"]]


CLAIM = """
with gone as (delete from mcp.jobs_ready where tenant_id = '{tenant}' and job_id = '{job}' returning *)
insert into mcp.jobs_leased (tenant_id, job_id, worker_id, created_at, started_at, lease_until, timeout_at, attempt, lease_s,
                             retries, priority, is_parent, queue)
select tenant_id, job_id, '{worker}', created_at, now(), now() + interval '1 h', now() + interval '1 h', attempt + 1, 60,
       retries, priority, is_parent, queue from gone
"""


async def test_a_job_that_is_just_being_claimed_is_taken_from_its_worker(
    archive: Archive, bench: Bench, bystander: Bystander
) -> None:
    job = await bench.enqueue()
    [claimed] = await bench.claim()
    snapshot = await archive.take()
    await bench.wire.call("job.release", jobs=[held(claimed)])
    await bystander.begin(CLAIM.format(tenant=archive.tenant_id, job=job["id"], worker=bench.worker_id))
    restoring = asyncio.create_task(archive.restore(snapshot, "overwrite"))
    await bystander.are_held_up(1)
    await bystander.commit()
    await restoring
    assert archive.run("select count(*) from mcp.jobs_leased where tenant_id = $1") == "0"
    [again] = await bench.claim()
    assert (again["id"], again["attempt"]) == (job["id"], 3)


async def test_a_worker_whose_name_another_has_by_now_is_not_put_back_over_it(archive: Archive, bench: Bench) -> None:
    name = uuid.uuid4().hex
    first = (await bench.wire.call("worker.register", name=name))["worker"]
    snapshot = await archive.take()
    await bench.wire.call("worker.deregister", worker_id=first["id"])
    second = (await bench.wire.call("worker.register", name=name))["worker"]
    job = await bench.enqueue()
    await archive.call("restore", snapshot_id=snapshot["id"], on_conflict="overwrite")
    found = [(await bench.wire.call("worker.get", worker_id=one["id"]))["worker"]["status"] for one in (first, second)]
    assert found == ["TERMINATED", "ACTIVE"]
    assert await bench.status(job) == "PENDING"


@pytest.mark.parametrize("is_lost", [False, True])
async def test_no_second_job_of_a_unique_key_comes_to_be_under_way(
    archive: Archive, bench: Bench, *, is_lost: bool
) -> None:
    first = await bench.enqueue(unique_key="u")
    [claimed] = await bench.claim()
    snapshot = await archive.take()
    if is_lost:
        archive.lose()
    else:
        await bench.wire.call("job.complete", jobs=[held(claimed)])
    second = await bench.enqueue(unique_key="u")
    for dry_run in (True, False):
        answer = await archive.call("restore", snapshot_id=snapshot["id"], on_conflict="overwrite", dry_run=dry_run)
        [conflict] = answer["conflicts"]
        assert (conflict["id"], conflict["resolution"]) == (first["id"], "PRESERVED_CURRENT")
        assert answer["conflict_count"] == 1
        assert json.loads(conflict["current_value"])["key_is_of"] == second["id"]
        assert answer["restored"]["jobs"] == 0
    [claimed] = await bench.claim(worker_id=await register(bench.wire))
    assert claimed["id"] == second["id"]
    await bench.wire.call("job.complete", jobs=[held(claimed)])
    answer = await archive.restore(snapshot, "overwrite")
    assert answer["restored"]["jobs"] == 1, "that one is over"
    assert (await bench.enqueue(unique_key="u"))["id"] == first["id"]
    assert await archive.broken_rules() == []


async def test_those_of_one_unique_key_that_were_under_way_together_are_all_put_back(
    archive: Archive, bench: Bench
) -> None:
    about = {"unique_key": "u", "unique_states": ["COMPLETED"]}
    jobs = [(await bench.enqueue(**about))["id"] for _ in range(3)]
    snapshot = await archive.take()
    for _ in range(2):
        [claimed] = await bench.claim(limit=1)
        await bench.wire.call("job.complete", jobs=[held(claimed)])
    assert (await archive.restore(snapshot, "overwrite"))["restored"]["jobs"] == 2
    assert sorted(job["id"] for job in await bench.claim()) == sorted(jobs)


async def test_a_completed_job_is_run_again_only_when_it_is_overwritten_and_its_old_worker_is_refused(
    archive: Archive, bench: Bench
) -> None:
    await bench.enqueue(type="done")
    await bench.enqueue(type="dead", max_retries=0)
    done, dead = await bench.claim()
    snapshot = await archive.take()
    await bench.wire.call("job.complete", jobs=[held(done)])
    await bench.wire.call("job.fail", jobs=[held(dead, error="no")])
    answer = await archive.call("restore", snapshot_id=snapshot["id"])
    assert {conflict["kind"] for conflict in answer["conflicts"]} == {"JOB_STATE_CONFLICT"}
    assert (answer["conflict_count"], answer["restored"]["jobs"]) == (2, 0)
    assert [await bench.status(job) for job in (done, dead)] == ["COMPLETED", "FAILED"]
    assert await bench.claim() == []
    answer = await archive.call("restore", snapshot_id=snapshot["id"], on_conflict="overwrite")
    assert answer["restored"]["jobs"] == 2
    assert await bench.dead_letters() == []
    assert [await bench.status(job) for job in (done, dead)] == ["PENDING", "PENDING"]
    again = await bench.claim()
    assert sorted(job["attempt"] for job in again) == [2, 2]
    with pytest.raises(WireError):
        await bench.wire.call("job.complete", jobs=[held(done)])
    await bench.wire.call("job.complete", jobs=[held(job) for job in again])


async def test_jobs_that_are_put_back_draw_no_circle_with_what_was_said_since(archive: Archive, bench: Bench) -> None:
    first = await bench.enqueue()
    middle = await bench.enqueue(depends_on=[first["id"]])
    last = await bench.enqueue(depends_on=[middle["id"]])
    snapshot = await archive.take()
    await bench.wire.call("job.cancel", job_id=last["id"])
    archive.run("update mcp.job_executions set error = null where tenant_id = $1")  # it is not known what it waited for
    await bench.wire.call("job.retry", job_id=last["id"])
    await bench.wire.call("job.depend", job_id=middle["id"], depends_on=[last["id"]])
    await archive.restore(snapshot, "overwrite")
    done: list[str] = []

    async def all_are_done() -> bool:
        for job in await bench.claim():
            await bench.wire.call("job.complete", jobs=[held(job)])
            done.append(job["id"])
        return len(done) == 3

    await eventually(all_are_done, "each is done")
    assert done.index(first["id"]) < done.index(middle["id"])
    assert await archive.broken_rules() == []


async def test_a_restore_and_who_has_a_job_of_a_unique_key_run_again_do_not_wait_for_each_other(
    archive: Archive, bench: Bench, bystander: Bystander
) -> None:
    job = await bench.enqueue(unique_key="k")
    snapshot = await archive.take()
    retrying = "update mcp.job_unique_keys set job_id = job_id where tenant_id = $1"
    await bystander.begin(retrying, archive.tenant_id)  # as job.retry does, before it takes what restores have
    restoring = asyncio.create_task(archive.restore(snapshot))
    await bystander.are_held_up(1)
    taken = "select pg_try_advisory_xact_lock(hashtextextended($1, 13))"
    assert await bystander.connection.fetchval(taken, str(archive.tenant_id)), (
        "the restore has it, and waits for the key"
    )
    await bystander.commit()
    assert (await restoring)["conflict_count"] == 0
    assert await bench.status(job) == "PENDING"
