"""J25 to J37: jobs that wait for others. They begin when they should, and none is stranded."""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import Any

import asyncpg
import pytest

from tests.harness import Mesh, eventually
from tests.scenarios.archive import Archive
from tests.scenarios.jobs import Bench, do, held, reason, register
from tests.wire import Wire, WireError


async def test_j25_and_j31_a_child_is_ready_when_its_parent_is_completed(bench: Bench) -> None:
    parent = await bench.enqueue()
    child = await bench.enqueue(depends_on=[parent["id"]])
    assert child["status"] == "PENDING"
    assert await bench.get(child) == child
    assert await reason(bench, child) == "waiting_for_parents"
    assert await do(bench) == [parent["id"]]
    assert await do(bench) == [child["id"]]
    assert await bench.status(child) == "COMPLETED"


async def test_j26_and_j32_it_waits_for_all_of_its_parents(bench: Bench) -> None:
    parents = [await bench.enqueue(priority=priority) for priority in (5, 4, 3)]
    left = [parent["id"] for parent in parents]
    child = await bench.enqueue(depends_on=left)
    while left:
        told = (await bench.wire.call("job.explain", job_id=child["id"]))["explanation"]
        assert (told["reason"], told["waits_for"]) == ("waiting_for_parents", left)
        [claimed] = await bench.claim(limit=1)
        assert claimed["id"] == left.pop(0)
        await bench.wire.call("job.complete", jobs=[held(claimed)])
    assert (await bench.wire.call("job.explain", job_id=child["id"]))["explanation"]["waits_for"] == []
    assert await do(bench) == [child["id"]]


async def test_j27_to_j30_the_highest_priority_is_inherited_unless_that_is_switched_off(bench: Bench) -> None:
    parents = [await bench.enqueue(priority=priority) for priority in (2, 5, 3)]
    ids = [parent["id"] for parent in parents]
    assert (await bench.enqueue(depends_on=ids, priority=1))["priority"] == 5
    assert (await bench.enqueue(depends_on=[ids[0]], priority=4))["priority"] == 4
    off = await bench.enqueue(depends_on=ids, priority=1, inherit_priority=False)
    assert (off["priority"], (await bench.get(off))["priority"]) == (1, 1)


async def test_a_priority_that_a_job_has_come_to_have_is_told_and_inherited(bench: Bench) -> None:
    await bench.wire.call("subscribe", topics=[f"queue:{bench.queue}"])
    high, low = await bench.enqueue(priority=5), await bench.enqueue(priority=1)
    raised = (await bench.wire.call("job.depend", job_id=low["id"], depends_on=[high["id"]]))["job"]
    told = (await bench.wire.next_event("job.blocked"))["data"]["jobs"]
    assert (raised["priority"], told) == (5, [{"id": low["id"], "attempt": 0, "priority": 5}])
    assert (await bench.enqueue(priority=1, depends_on=[low["id"]]))["priority"] == 5
    await bench.wire.call("job.cancel", job_id=low["id"])
    again = (await bench.wire.call("job.retry", job_id=low["id"]))["job"]
    told = (await bench.wire.next_event("job.replayed"))["data"]["jobs"]
    assert (again["priority"], told) == (1, [{"id": low["id"], "retry_count": 0, "priority": 1}])


async def test_a_priority_goes_from_those_that_are_waited_for_to_the_one_that_waits_and_no_further(
    bench: Bench,
) -> None:
    low, middle = await bench.enqueue(priority=1), await bench.enqueue(priority=2)
    last = await bench.enqueue(priority=2, depends_on=[middle["id"]])
    high = await bench.enqueue(priority=5, depends_on=[low["id"]])
    await bench.wire.call("job.depend", job_id=high["id"], depends_on=[middle["id"]])
    assert [(await bench.get(job))["priority"] for job in (low, middle, high)] == [1, 2, 5]
    await bench.wire.call("job.depend", job_id=middle["id"], depends_on=[(await bench.enqueue(priority=4))["id"]])
    assert [(await bench.get(job))["priority"] for job in (middle, last)] == [4, 2]


async def test_j33_a_chain_goes_in_order(bench: Bench) -> None:
    chain = [await bench.enqueue()]
    for _ in range(5):
        chain.append(await bench.enqueue(depends_on=[chain[-1]["id"]]))
    assert [await do(bench) for _ in chain] == [[job["id"]] for job in chain]


async def test_j34_a_circle_is_refused_and_leaves_nothing_behind(bench: Bench) -> None:
    first = await bench.enqueue()
    second = await bench.enqueue(depends_on=[first["id"]])
    third = await bench.enqueue(depends_on=[second["id"]])
    for parent in (third, second, first):
        with pytest.raises(WireError) as refused:
            await bench.wire.call("job.depend", job_id=first["id"], depends_on=[parent["id"]])
        assert refused.value.reason == "job.cycle"
    assert [await do(bench) for _ in range(3)] == [[job["id"]] for job in (first, second, third)]


async def test_j34_what_is_not_there_is_not_found_also_when_it_would_wait_for_itself(bench: Bench) -> None:
    nobody = str(uuid.uuid4())
    with pytest.raises(WireError) as refused:
        await bench.wire.call("job.depend", job_id=nobody, depends_on=[nobody])
    assert (refused.value.kind, refused.value.data.get("reason")) == ("not_found", None)


async def test_j34_two_who_draw_a_circle_together_cannot(mesh: Mesh, tenant: str, bench: Bench) -> None:
    for _ in range(10):
        one, two = await bench.enqueue(), await bench.enqueue()

        async def draw(child: dict[str, Any], parent: dict[str, Any]) -> str:
            async with await Wire.connect(mesh.ws_url, tenant) as wire:
                answer = await wire.ask("job.depend", {"job_id": child["id"], "depends_on": [parent["id"]]})
                return str(answer["error"]["data"]["reason"]) if "error" in answer else "done"

        assert sorted(await asyncio.gather(draw(one, two), draw(two, one))) == ["done", "job.cycle"]
        assert len(await do(bench)) == 1
        assert len(await do(bench)) == 1


async def test_j35_without_parents_or_with_completed_ones_it_is_ready_at_once(bench: Bench) -> None:
    parent = await bench.enqueue()
    await do(bench)
    child = await bench.enqueue(depends_on=[parent["id"]])
    assert await do(bench) == [child["id"]]


@pytest.mark.parametrize("policy", ["fail", "wait", "ignore"])
async def test_j36_a_failed_parent_decides_by_policy_and_strands_nobody(bench: Bench, policy: str) -> None:
    parent = await bench.enqueue(max_retries=0)
    child = await bench.enqueue(depends_on=[parent["id"]], on_parent_failure=policy)
    grandchild = await bench.enqueue(depends_on=[child["id"]])
    await do(bench, "fail", error="broken")
    if policy == "fail":
        assert [await bench.status(job) for job in (child, grandchild)] == ["FAILED", "FAILED"]
        assert (await bench.get(child))["error"]["type"] == "ParentFailed"
        assert {letter["job_id"] for letter in await bench.dead_letters()} == {
            parent["id"],
            child["id"],
            grandchild["id"],
        }
        return
    if policy == "wait":
        await bench.wire.call("dead_letter.replay", job_ids=[parent["id"]])
        assert await do(bench) == [parent["id"]]
    assert await do(bench) == [child["id"]]
    assert await do(bench) == [grandchild["id"]]


async def test_j36_what_can_never_be_completed_fails_those_who_wait(bench: Bench) -> None:
    async def family(**of_child: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        parent = await bench.enqueue(max_retries=0)
        return parent, await bench.enqueue(depends_on=[parent["id"]], on_parent_failure="wait", **of_child)

    cancelled, first = await family()
    await bench.wire.call("job.cancel", job_id=cancelled["id"])
    assert "was cancelled" in (await bench.get(first))["error"]["message"]
    discarded, second = await family()
    await do(bench, "fail", error="broken")
    await bench.wire.call("dead_letter.discard", job_ids=[discarded["id"]])
    _, third = await family(queue=f"{bench.queue}-other")
    await bench.wire.call("queue.purge", queue=bench.queue)
    running, fourth = await family()
    claimed = await bench.claim()
    await bench.wire.call("job.cancel", job_id=running["id"])
    await bench.wire.call("job.release", jobs=[held(job) for job in claimed])
    for child in (first, second, third, fourth):
        assert await bench.status(child) == "FAILED"
    with pytest.raises(WireError) as refused:
        await bench.enqueue(depends_on=[cancelled["id"]])
    assert refused.value.reason == "job.parent_failed"
    ignoring = await bench.enqueue(depends_on=[cancelled["id"]], on_parent_failure="ignore")
    assert await do(bench) == [ignoring["id"]]


async def test_that_a_job_waits_no_more_is_no_attempt_of_it(bench: Bench) -> None:
    job = await bench.enqueue()
    assert await do(bench, "release") == [job["id"]]
    parent = await bench.enqueue(queue=f"{bench.queue}-above")
    await bench.wire.call("job.depend", job_id=job["id"], depends_on=[parent["id"]])
    [claimed] = await bench.claim(queues=[f"{bench.queue}-above"])
    await bench.wire.call("job.complete", jobs=[held(claimed)])
    assert [each["outcome"] for each in await bench.executions(job)] == ["RELEASED"]
    assert await do(bench) == [job["id"]]
    ended = [(each["attempt"], each["outcome"]) for each in await bench.executions(job)]
    assert ended == [(1, "RELEASED"), (2, "COMPLETED")]


async def test_what_waits_for_others_is_counted_and_its_queue_is_there(bench: Bench) -> None:
    async def counted() -> dict[str, tuple[int, int, int]]:
        queues = (await bench.wire.call("job.stats"))["queues"]
        return {each["queue"]: (each["waiting"], each["blocked"], each["processing"]) for each in queues}

    above, below = f"{bench.queue}-above", f"{bench.queue}-below"
    parent = await bench.enqueue(queue=above)
    children = [await bench.enqueue(queue=below, depends_on=[parent["id"]]) for _ in range(3)]
    await bench.enqueue(queue=above, depends_on=[children[0]["id"]])
    assert await counted() == {above: (1, 1, 0), below: (0, 3, 0)}
    paused = (await bench.wire.call("queue.pause", queue=below))["queue"]
    assert (paused["waiting"], paused["limited"], paused["blocked"]) == (0, 0, 3)
    [claimed] = await bench.claim(queues=[above])
    await bench.wire.call("job.complete", jobs=[held(claimed)])
    assert await counted() == {above: (0, 1, 0), below: (3, 0, 0)}


async def test_a_purge_cancels_what_waits_for_others_too_and_stops_at_its_limit(bench: Bench) -> None:
    parent = await bench.enqueue()
    [held_job] = await bench.claim()
    children = [await bench.enqueue(depends_on=[parent["id"]]) for _ in range(3)]
    elsewhere = await bench.enqueue(queue=f"{bench.queue}-other", depends_on=[children[0]["id"]])
    assert (await bench.wire.call("queue.purge", queue=bench.queue, limit=2))["purged"] == 2
    assert (await bench.wire.call("queue.purge", queue=bench.queue))["purged"] == 1
    assert [await bench.status(child) for child in children] == ["CANCELLED"] * 3
    assert await bench.status(elsewhere) == "FAILED", "what it waited for is gone"
    await bench.wire.call("job.complete", jobs=[held(held_job)])


async def test_j36_thousands_wait_for_one_and_all_of_them_go_on_or_fail_with_it(bench: Bench) -> None:
    many = 5_000
    for verb, status in (("complete", "PENDING"), ("fail", "FAILED")):
        parent = await bench.enqueue(max_retries=0)
        child = {"type": "t", "queue": f"{bench.queue}-children", "depends_on": [parent["id"]]}
        made = (await bench.wire.call("job.enqueue_many", jobs=[child] * many))["jobs"]
        [claimed] = await bench.claim()
        await bench.wire.call(f"job.{verb}", jobs=[held(claimed, **({"error": "no"} if verb == "fail" else {}))])
        for at in (0, many // 2, -1):
            assert await bench.status(made[at]) == status
    [queue] = [
        queue for queue in (await bench.wire.call("job.stats"))["queues"] if queue["queue"] == f"{bench.queue}-children"
    ]
    assert queue["ready"] == many


async def test_j36_a_chain_of_thousands_fails_with_the_first_of_it(archive: Archive, bench: Bench) -> None:
    parent = await bench.enqueue(max_retries=0)
    [claimed] = await bench.claim()
    child = {"type": "t", "queue": bench.queue, "depends_on": [parent["id"]]}
    made = [
        job["id"] for _ in range(2) for job in (await bench.wire.call("job.enqueue_many", jobs=[child] * 6_000))["jobs"]
    ]
    archive.run(  # each waits for the one before it, which would take as many calls
        "set enable_nestloop = off;"  # which compares each with each, until the table has been analysed
        " with chain as (select job_id, lag(job_id) over (order by job_id) as before from mcp.jobs_blocked"
        " where tenant_id = $1),"
        " noted as (update mcp.jobs_blocked set is_parent = true where tenant_id = $1)"
        " update mcp.job_dependencies d set parent_id = chain.before from chain"
        " where d.tenant_id = $1 and d.child_id = chain.job_id and chain.before is not null"
    )
    patient = await bench.enqueue(depends_on=[made[6_000]], on_parent_failure="wait")
    freed = await bench.enqueue(depends_on=[made[-1]], on_parent_failure="ignore")
    await bench.wire.call("job.fail", jobs=[held(claimed, error="no")])
    for before, job_id in ((parent["id"], made[0]), (made[5_999], made[6_000]), (made[-2], made[-1])):
        failed = (await bench.wire.call("job.get", job_id=job_id))["job"]
        assert (failed["status"], failed["error"]["waited_for"]) == ("FAILED", [before])
        assert failed["error"]["message"] == f"job {before}, which it waited for, has failed"
    assert await reason(bench, patient) == "waiting_for_parents"
    assert [job["id"] for job in await bench.claim()] == [freed["id"]]
    [queue] = [each for each in (await bench.wire.call("job.stats"))["queues"] if each["queue"] == bench.queue]
    assert (queue["blocked"], queue["waiting"]) == (1, 0)
    assert await archive.broken_rules() == []


async def test_children_of_shared_parents_are_enqueued_at_once_without_waiting_in_a_circle(
    mesh: Mesh, bench: Bench, tenant: str
) -> None:
    parents = [(await bench.enqueue())["id"] for _ in range(8)]
    wires = [await Wire.connect(mesh.ws_url, tenant) for _ in range(4)]
    choice = random.Random(1)

    async def enqueue(wire: Wire) -> None:
        for _ in range(25):
            asked = [{"type": "t", "queue": bench.queue, "depends_on": choice.sample(parents, 2)} for _ in range(8)]
            answers = await asyncio.gather(*(wire.ask("job.enqueue", each) for each in asked))
            assert all("result" in answer for answer in answers), answers

    async with asyncio.timeout(20):
        await asyncio.gather(*(enqueue(wire) for wire in wires))
    for wire in wires:
        await wire.close()


async def test_one_that_was_put_off_is_shown_with_its_time_while_it_waits_for_others_as_well(bench: Bench) -> None:
    job = await bench.enqueue()
    [snoozed] = (await bench.wire.call("job.snooze", jobs=[held((await bench.claim())[0], delay_ms=60_000)]))["jobs"]
    parent = await bench.enqueue()
    found = (await bench.wire.call("job.depend", job_id=job["id"], depends_on=[parent["id"]]))["job"]
    assert (found["run_at"], await bench.get(job)) == (snoozed["run_at"], found)
    assert await do(bench) == [parent["id"]]
    assert (await bench.get(job))["run_at"] == snoozed["run_at"]


async def test_no_more_wait_for_one_than_may_also_when_many_come_at_once(bench: Bench) -> None:
    parent = await bench.enqueue()
    specs = [{"type": "t", "queue": bench.queue, "depends_on": [parent["id"]]}] * 8_000
    for _ in range(2):
        await bench.wire.call("job.enqueue_many", jobs=specs)
    with pytest.raises(WireError) as refused:
        await bench.wire.call("job.enqueue_many", jobs=specs)
    assert (refused.value.reason, refused.value.data["field"]) == ("job.children_max", "jobs[4000].depends_on")
    assert len((await bench.wire.call("job.enqueue_many", jobs=specs[:4_000]))["jobs"]) == 4_000
    with pytest.raises(WireError) as refused:
        await bench.enqueue(depends_on=[parent["id"]])
    assert (refused.value.reason, refused.value.data["field"]) == ("job.children_max", "depends_on")
    await bench.wire.call("job.cancel", job_id=parent["id"])


async def test_a_parent_that_is_named_twice_is_one(bench: Bench) -> None:
    parent = await bench.enqueue(max_retries=0)
    await do(bench, "fail", error="broken")
    twice = await bench.enqueue(depends_on=[parent["id"]] * 2, on_parent_failure="wait")
    assert await bench.status(twice) == "PENDING"
    await bench.wire.call("dead_letter.replay", job_ids=[parent["id"]])
    assert await do(bench) == [parent["id"]]
    assert await do(bench) == [twice["id"]]


async def test_what_becomes_of_a_job_that_waits_already_can_be_said_anew(bench: Bench) -> None:
    first, second = [await bench.enqueue(max_retries=0) for _ in range(2)]
    child = await bench.enqueue(depends_on=[first["id"]])
    await bench.wire.call("job.depend", job_id=child["id"], depends_on=[second["id"]], on_parent_failure="ignore")
    await do(bench, "fail", error="broken")
    assert await do(bench) in ([second["id"]], [child["id"]]), "both parents have ended, or the second does now"
    assert await bench.status(child) in ("PENDING", "COMPLETED")


async def test_a_policy_that_is_said_anew_holds_for_those_that_have_failed_already(bench: Bench) -> None:
    dead, alive = [await bench.enqueue(max_retries=0, priority=priority) for priority in (4, 3)]
    children = [
        await bench.enqueue(depends_on=[dead["id"]], on_parent_failure="wait", priority=1, inherit_priority=False)
        for _ in range(3)
    ]
    [claimed] = await bench.claim(1)
    await bench.wire.call("job.fail", jobs=[held(claimed, error="broken")])

    async def depend(child: dict[str, Any], **about: Any) -> dict[str, Any]:
        asked = {"job_id": child["id"], "depends_on": [alive["id"]], **about}
        found: dict[str, Any] = (await bench.wire.call("job.depend", **asked))["job"]
        return found

    with pytest.raises(WireError) as refused:
        await depend(children[0], on_parent_failure="fail")
    assert (refused.value.reason, refused.value.data["field"]) == ("job.parent_failed", "on_parent_failure")
    assert (await depend(children[1], on_parent_failure="ignore", inherit_priority=False))["priority"] == 1
    assert (await depend(children[2], on_parent_failure="ignore"))["priority"] == 3
    assert await do(bench) == [alive["id"]]
    assert await do(bench) == [children[2]["id"], children[1]["id"]]
    assert await reason(bench, children[0]) == "waiting_for_parents"


async def test_a_job_that_waits_for_more_than_a_thousand_is_held_up_by_each_of_them_and_stranded_by_none(
    bench: Bench,
) -> None:
    worker_id = await register(bench.wire, capacity=2000)
    specs = [{"type": "parent", "queue": f"{bench.queue}.parents"}] * 1_010
    parents = [job["id"] for job in (await bench.wire.call("job.enqueue_many", jobs=specs))["jobs"]]
    patient, cancelled = [await bench.enqueue(depends_on=parents[:100], on_parent_failure="wait") for _ in range(2)]
    for child in (patient, cancelled):
        for first in range(100, len(parents), 100):
            await bench.wire.call("job.depend", job_id=child["id"], depends_on=parents[first : first + 100])
    told = (await bench.wire.call("job.explain", job_id=patient["id"]))["explanation"]
    assert told["explanation"] == f"it waits until job {parents[0]} and 1,009 others are completed"
    assert told["waits_for"] == parents[:100]
    await bench.wire.call("job.cancel", job_id=cancelled["id"])
    await bench.wire.call("job.retry", job_id=cancelled["id"])

    options = {"worker_id": worker_id, "queues": [f"{bench.queue}.parents"]}
    taken = [job for _ in range(2) for job in await bench.claim(1_000, **options)]
    left = {job["id"]: job for job in taken}
    await bench.wire.call("job.complete", jobs=[held(left[job_id]) for job_id in parents[:1_000]])
    last = left[parents[-1]]
    await bench.wire.call("job.fail", jobs=[held(last, error="broken", retryable=False)])
    told = (await bench.wire.call("job.explain", job_id=patient["id"]))["explanation"]["explanation"]
    assert told == f"it waits for job {last['id']}, which has failed, until that is replayed"
    again = {"job_id": patient["id"], "depends_on": [parents[-2]]}
    with pytest.raises(WireError) as refused:
        await bench.wire.call("job.depend", **again, on_parent_failure="fail")
    assert (refused.value.reason, refused.value.data["field"]) == ("job.parent_failed", "on_parent_failure")
    await bench.wire.call("job.depend", **again, on_parent_failure="ignore")
    assert await do(bench) == [], "nine are not over yet"
    await bench.wire.call("job.complete", jobs=[held(left[job_id]) for job_id in parents[1_000:-1]])
    assert await do(bench) == [patient["id"]]
    assert await reason(bench, cancelled) == "waiting_for_parents"


async def test_another_tenant_s_job_cannot_be_waited_for(mesh: Mesh, bench: Bench) -> None:
    async with await Wire.connect(mesh.ws_url, mesh.new_tenant()) as stranger:
        theirs = (await stranger.call("job.enqueue", type="t"))["job"]["id"]
    own = await bench.enqueue()
    asked: list[tuple[str, dict[str, Any]]] = [
        ("job.enqueue", {"type": "t", "depends_on": [theirs]}),
        ("job.depend", {"job_id": own["id"], "depends_on": [theirs]}),
        ("job.depend", {"job_id": theirs, "depends_on": [own["id"]]}),
    ]
    for method, params in asked:
        answer = await bench.wire.ask(method, params)
        assert answer["error"]["data"]["kind"] == "not_found"


async def test_of_many_the_one_whose_parent_is_missing_or_has_failed_is_named_and_none_is_enqueued(
    bench: Bench,
) -> None:
    dead = await bench.enqueue(max_retries=0)
    await do(bench, "fail", error="broken")
    good: dict[str, Any] = {"type": "t", "queue": bench.queue}
    nowhere = str(uuid.uuid4())
    for parent, kind, told in (
        (nowhere, "not_found", f"there is no job {nowhere}"),
        (dead["id"], "conflict", f"job {dead['id']}, which it would wait for, has ended and was not completed"),
    ):
        bad = {**good, "depends_on": [parent]}
        with pytest.raises(WireError) as one:
            await bench.wire.call("job.enqueue", **bad)
        assert (one.value.kind, one.value.data["field"], one.value.message) == (kind, "depends_on", told)
        with pytest.raises(WireError) as many:
            await bench.wire.call("job.enqueue_many", jobs=[good, good, bad, bad])
        assert (many.value.kind, many.value.data["field"]) == (kind, "jobs[2].depends_on")
        assert (many.value.message, many.value.reason) == (f"jobs[2]: {told}", one.value.reason)
    assert await do(bench) == []


async def test_a_waiting_child_is_cancelled_with_those_who_wait_for_it(bench: Bench) -> None:
    parent = await bench.enqueue()
    child = await bench.enqueue(depends_on=[parent["id"]])
    grandchild = await bench.enqueue(depends_on=[child["id"]])
    assert (await bench.wire.call("job.cancel", job_id=child["id"]))["job"]["status"] == "CANCELLED"
    assert await bench.status(grandchild) == "FAILED"
    assert await do(bench) == [parent["id"]]
    assert await do(bench) == []


async def test_j37_fan_out_and_fan_in_are_exact_while_everything_happens_at_once(
    mesh: Mesh, tenant: str, bench: Bench
) -> None:
    """Parents end while children are tied to them: each child runs once, after all of its parents."""
    parents = [(await bench.enqueue(priority=5))["id"] for _ in range(60)]
    children: dict[str, list[str]] = {}
    order: list[str] = []

    async def enqueue(offset: int) -> None:
        async with await Wire.connect(mesh.ws_url, tenant) as wire:
            for place in range(offset, 60, 3):
                mine = [parents[place], parents[(place + 7) % 60]]
                spec = {"type": "t", "queue": bench.queue, "depends_on": mine, "inherit_priority": False}
                children[(await wire.call("job.enqueue", **spec))["job"]["id"]] = mine

    async def work() -> None:
        async with await Wire.connect(mesh.ws_url, tenant) as wire:
            worker = (await wire.call("worker.register", name=f"w{id(wire)}"))["worker"]["id"]
            while len(order) < 120:
                asked = {"worker_id": worker, "queues": [bench.queue], "limit": 5, "wait_ms": 500}
                jobs = (await wire.call("job.claim", **asked))["jobs"]
                order.extend(job["id"] for job in jobs)
                if jobs:
                    await wire.call("job.complete", jobs=[held(job) for job in jobs])

    async with asyncio.timeout(40):
        await asyncio.gather(*(enqueue(offset) for offset in range(3)), *(work() for _ in range(4)))
    assert sorted(order) == sorted([*parents, *children])
    place = {job_id: ordinal for ordinal, job_id in enumerate(order)}
    for child, mine in children.items():
        assert place[child] > max(place[parent] for parent in mine)


COMES_TO_BE_WAITED_FOR = """
with edge as (insert into mcp.job_dependencies (tenant_id, parent_id, child_id)
              select l.tenant_id, l.job_id, $2::uuid from mcp.jobs_leased l where l.job_id = $1)
update mcp.jobs_leased l set is_parent = true where l.job_id = $1::uuid
"""
SOMEBODY_WAITS_FOR_A_ROW = """
select exists (select from pg_stat_activity a where a.datname = current_database() and a.wait_event = 'transactionid')
"""


async def test_a_job_that_is_waited_for_from_the_moment_in_which_it_ends_lets_the_others_go(
    mesh: Mesh, bench: Bench
) -> None:
    ending, other = await bench.enqueue(priority=5), await bench.enqueue()
    child = await bench.enqueue(depends_on=[other["id"]])
    claimed = {job["id"]: job for job in await bench.claim()}
    depending, looking = [await asyncpg.connect(mesh.dsn) for _ in range(2)]
    try:
        async with depending.transaction():
            await depending.execute(COMES_TO_BE_WAITED_FOR, ending["id"], child["id"])
            call = bench.wire.call("job.complete", jobs=[held(claimed[ending["id"]])])
            completing = asyncio.create_task(call)
            await eventually(lambda: looking.fetchval(SOMEBODY_WAITS_FOR_A_ROW), "the completion waits for it")
        assert [job["status"] for job in (await completing)["jobs"]] == ["COMPLETED"]
    finally:
        await depending.close()
        await looking.close()
    await bench.wire.call("job.complete", jobs=[held(claimed[other["id"]])])
    assert [job["id"] for job in await bench.claim()] == [child["id"]]
