"""What becomes of what has changed since a snapshot when it is put back: nobody is stranded, nothing is done twice."""

from __future__ import annotations

import asyncio

import pytest

from tests.harness import eventually
from tests.scenarios.archive import Archive, Bystander
from tests.scenarios.jobs import Bench, held


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
