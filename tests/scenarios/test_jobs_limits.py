"""J42, J43 and their kin: unique jobs, concurrency keys, rates of queues, retries by hand."""

from __future__ import annotations

import asyncio
import collections
import itertools
import random
import uuid
from typing import Any

import pytest

from devmesh.operations.job_claiming import HELD_UP_INTERVAL_S
from tests.conftest import run_sql
from tests.harness import Mesh, eventually
from tests.scenarios.jobs import Bench, held, reason, register
from tests.wire import Wire, WireError

ENDS = ("job.complete", "job.fail", "job.release", "job.snooze")
MORE: dict[str, dict[str, Any]] = {"job.fail": {"error": "no"}, "job.snooze": {"delay_ms": 1}}


async def test_j42_a_hundred_enqueue_one_unique_key_at_once_and_there_is_one_job(
    mesh: Mesh, bench: Bench, tenant: str
) -> None:
    async def enqueue(wire: Wire) -> dict[str, Any]:
        return dict(await wire.call("job.enqueue", type="t", queue=bench.queue, unique_key="only"))

    async with await Wire.connect(mesh.ws_url, tenant) as other:
        answers = await asyncio.gather(*(enqueue(wire) for wire in (bench.wire, other) for _ in range(50)))
    assert len({answer["job"]["id"] for answer in answers}) == 1
    assert sorted(answer["is_duplicate"] for answer in answers) == [False] + [True] * 99
    [claimed] = await bench.claim(limit=100)
    assert (await bench.get(claimed))["unique_key"] == "only"
    assert (await enqueue(bench.wire))["is_duplicate"], "it is under way"
    await bench.wire.call("job.complete", jobs=[held(claimed)])
    fresh = await enqueue(bench.wire)
    assert (fresh["is_duplicate"], fresh["job"]["id"] != claimed["id"]) == (False, True)


async def test_j42_what_is_put_back_makes_no_second_job_of_a_unique_key(bench: Bench) -> None:
    async def failed() -> str:
        job = await bench.enqueue(unique_key="k", max_retries=0)
        await bench.wire.call("job.fail", jobs=[held(claimed, error="no") for claimed in await bench.claim()])
        return str(job["id"])

    first, second = await failed(), await failed()
    third = (await bench.enqueue(unique_key="k"))["id"]
    with pytest.raises(WireError) as refused:
        await bench.wire.call("job.retry", job_id=first)
    assert (refused.value.kind, refused.value.reason) == ("conflict", "job.unique_key")
    assert third in refused.value.message
    kept = await bench.wire.call("dead_letter.replay", all=True, queue=bench.queue)
    assert kept["job_ids"] == []
    assert [(each["id"], each["reason"]) for each in kept["refused"]] == [
        (job_id, "job.unique_key") for job_id in (first, second)
    ]
    await bench.wire.call("job.cancel", job_id=third)
    replayed = await bench.wire.call("dead_letter.replay", job_ids=[first, second])
    assert (replayed["job_ids"], [each["id"] for each in replayed["refused"]]) == ([first], [second])
    again = await bench.wire.call("job.enqueue", type="t", queue=bench.queue, unique_key="k")
    assert (again["is_duplicate"], again["job"]["id"]) == (True, first), "it has the key again"
    with pytest.raises(WireError) as refused:
        await bench.wire.call("job.retry", job_id=third)
    assert refused.value.reason == "job.unique_key"
    assert [job["id"] for job in await bench.claim()] == [first]


async def test_j42_a_unique_key_is_kept_as_long_as_its_job_is_alive(mesh: Mesh, bench: Bench) -> None:
    async def enqueue(key: str, **about: Any) -> dict[str, Any]:
        asked = {"type": "t", "queue": bench.queue, "unique_key": key, **about}
        return dict(await bench.wire.call("job.enqueue", **asked))

    parent = await bench.enqueue(delay_ms=60_000)
    limited = {"concurrency_key": "one", "concurrency_limit": 1}
    kinds: dict[str, dict[str, Any]] = {
        "ready": {"delay_ms": 60_000}, "blocked": {"depends_on": [parent["id"]]}, "placed": limited, "limited": limited,
    }  # fmt: skip
    for kind, about in kinds.items():
        await enqueue(kind, **about)
    over = await enqueue("over", delay_ms=60_000)
    await bench.wire.call("job.cancel", job_id=over["job"]["id"])
    await enqueue("held", priority=5)
    assert len(await bench.claim(1)) == 1
    keys = f"tenant_id = (select tenant_id from mcp.jobs where job_id = '{parent['id']}')"
    run_sql(mesh.dsn, f"update mcp.job_unique_keys set taken_at = now() - interval '2000 days' where {keys}")

    async def are_left() -> list[str]:
        return run_sql(mesh.dsn, f"select unique_key from mcp.job_unique_keys where {keys} order by 1").split()

    async def is_forgotten() -> bool:
        return "over" not in await are_left()

    await eventually(is_forgotten, "the key of what is over is forgotten")
    assert await are_left() == sorted([*kinds, "held"])
    for kind, about in kinds.items():
        assert (await enqueue(kind, **about))["is_duplicate"]


async def test_j42_the_scope_of_a_unique_key_is_states_and_time(bench: Bench) -> None:
    async def enqueue(**scope: Any) -> bool:
        answer = await bench.wire.call("job.enqueue", type="t", queue=bench.queue, unique_key="k", **scope)
        return bool(answer["is_duplicate"])

    await enqueue()
    [claimed] = await bench.claim()
    assert not await enqueue(unique_states=["PENDING"]), "the other one runs"
    await bench.wire.call("job.complete", jobs=[held(job) for job in [claimed, *await bench.claim()]])
    assert await enqueue(unique_states=["COMPLETED"], unique_period_s=3_600)
    assert not await enqueue(unique_states=["COMPLETED"], unique_period_s=0.001)
    bad: list[dict[str, Any]] = [
        {"unique_key": ""}, {"unique_states": ["GONE"]}, {"unique_period_s": 0}, {"unique_states": []}
    ]  # fmt: skip
    for wrong in bad:
        with pytest.raises(WireError) as refused:
            await bench.wire.call("job.enqueue", **{"type": "t", "unique_key": "k", **wrong})
        assert refused.value.kind == "invalid_params"


async def test_j42_many_at_once_hold_a_key_once_and_a_refused_batch_holds_none(bench: Bench) -> None:
    jobs = [{"type": "t", "queue": bench.queue, "unique_key": key} for key in ("a", "b", "a")]
    answer = (await bench.wire.call("job.enqueue_many", jobs=jobs))["jobs"]
    assert [each["is_duplicate"] for each in answer] == [False, False, True]
    assert answer[0]["id"] == answer[2]["id"]
    again = (await bench.wire.call("job.enqueue_many", jobs=jobs))["jobs"]
    assert [each["id"] for each in again] == [each["id"] for each in answer]
    lost = [{"type": "t", "unique_key": "c"}, {"type": "t", "depends_on": [str(uuid.uuid4())]}]
    with pytest.raises(WireError):
        await bench.wire.call("job.enqueue_many", jobs=lost)
    assert not (await bench.wire.call("job.enqueue", type="t", queue=bench.queue, unique_key="c"))["is_duplicate"]


async def test_j43_of_a_key_with_a_limit_of_three_never_four_are_under_way(
    mesh: Mesh, bench: Bench, tenant: str
) -> None:
    """Four workers of ten places each, on two connections, whose jobs end in every way there is."""
    jobs = 60
    await bench.wire.call("job.enqueue_many", jobs=[
        {"type": "t", "queue": bench.queue, "concurrency_key": key, "concurrency_limit": 3, "backoff_ms": 1, "payload": key}
        for _ in range(jobs // 2) for key in ("one", "two")
    ])  # fmt: skip
    running: dict[str, collections.Counter[str]] = {"most": collections.Counter(), "now": collections.Counter()}
    completed: set[str] = set()
    luck = random.Random(43)

    async def work(wire: Wire) -> None:
        worker = await register(wire, capacity=10)
        while len(completed) < jobs:
            given = await bench.claim(limit=3, worker_id=worker, wait_ms=100)
            for key in (job["payload"] for job in given):
                running["now"][key] += 1
                running["most"][key] = max(running["most"][key], running["now"][key])
            for job in given:
                how = luck.choices(ENDS, (6, 1, 1, 1))[0]
                running["now"][job["payload"]] -= 1  # before its end is told: another may begin at once then
                more: dict[str, Any] = MORE.get(how, {})
                await wire.call(how, jobs=[held(job, **more)])
                if how == "job.complete" or await bench.status(job) == "FAILED":
                    completed.add(job["id"])

    async with await Wire.connect(mesh.ws_url, tenant) as other:
        await asyncio.wait_for(asyncio.gather(*(work(wire) for wire in (bench.wire, other, bench.wire, other))), 30)
    assert set(running["most"]) == {"one", "two"}
    assert max(running["most"].values()) <= 3


async def test_j43_claims_of_one_moment_get_three_places_and_explain_says_so(bench: Bench) -> None:
    jobs = [
        await bench.enqueue(concurrency_key="k", concurrency_limit=3, priority=priority) for priority in (1, 1, 1, 1, 5)
    ]
    workers = [await register(bench.wire) for _ in range(5)]
    claims = await asyncio.gather(*(bench.claim(worker_id=worker) for worker in workers))
    given = [job for each in claims for job in each]
    assert {job["id"] for job in given} == {job["id"] for job in jobs[:3]}
    told = (await bench.wire.call("job.explain", job_id=jobs[3]["id"]))["explanation"]
    assert told["reason"] == "limit_reached"
    assert "3 jobs" in told["explanation"]
    [queue] = [each for each in (await bench.wire.call("job.stats"))["queues"] if each["queue"] == bench.queue]
    assert (queue["waiting"], queue["limited"], queue["processing"]) == (0, 2, 3)
    await bench.wire.call("job.complete", jobs=[held(given[0])])
    assert [job["id"] for job in await bench.claim()] == [jobs[4]["id"]], "the most urgent gets the free place"


async def test_j43_places_are_given_back_by_whatever_ends_a_job(bench: Bench) -> None:
    first, second, third = [await bench.enqueue(concurrency_key="k") for _ in range(3)]
    await bench.wire.call("job.cancel", job_id=first["id"])  # in its queue
    [claimed] = await bench.claim()
    assert claimed["id"] == second["id"]
    await bench.wire.call("job.cancel", job_id=third["id"])  # waiting for a place
    assert await bench.status(third) == "CANCELLED"
    later = await bench.enqueue(concurrency_key="k", delay_ms=300)
    child = await bench.enqueue(concurrency_key="k", depends_on=[second["id"]])
    assert await bench.claim() == []
    await bench.wire.call("job.complete", jobs=[held(claimed)])
    [claimed] = await bench.claim()
    assert claimed["id"] == child["id"]
    await bench.wire.call("job.complete", jobs=[held(claimed)])
    [claimed] = await bench.claim(wait_ms=5_000)
    assert claimed["id"] == later["id"], "its time has come, and nobody else has the place"
    waiting = [await bench.enqueue(concurrency_key="k") for _ in range(3)]
    purged = await bench.wire.call("queue.purge", queue=bench.queue)
    assert (purged["purged"], purged["queue"]["limited"]) == (3, 0)
    assert {await bench.status(job) for job in waiting} == {"CANCELLED"}


async def test_j43_the_latest_job_says_the_limit_also_when_it_waits_for_others(bench: Bench) -> None:
    parent = await bench.enqueue(queue=f"{bench.queue}-above")

    def spec(limit: int, **about: Any) -> dict[str, Any]:
        return {"type": "t", "queue": bench.queue, "concurrency_key": "k", "concurrency_limit": limit, **about}

    for _ in range(4):
        await bench.enqueue(**spec(3))
    child = await bench.enqueue(**spec(1, depends_on=[parent["id"]]))
    first, *others = await bench.claim()
    assert len(others) == 2
    await bench.wire.call("job.complete", jobs=[held(first)])
    assert await bench.claim() == [], "two are under way, and one may be"
    await bench.wire.call("job.enqueue_many", jobs=[spec(1), spec(4, depends_on=[child["id"]])])
    assert len(await bench.claim()) == 2


async def test_j43_a_lost_worker_s_place_is_given_on(bench: Bench) -> None:
    first, second = [await bench.enqueue(concurrency_key="k", max_retries=0) for _ in range(2)]
    [claimed] = await bench.claim(lease_s=0.5)
    assert claimed["id"] == first["id"]
    [claimed] = await bench.claim(wait_ms=5_000)
    assert claimed["id"] == second["id"]
    assert await bench.status(first) == "FAILED"
    await bench.wire.call("job.retry", job_id=first["id"])
    assert await bench.claim() == [], "a job that is run again needs a place again"
    await bench.wire.call("job.complete", jobs=[held(claimed)])
    assert [job["id"] for job in await bench.claim()] == [first["id"]]


async def test_a_queue_with_a_rate_gives_out_no_more_than_that(bench: Bench) -> None:
    for _ in range(20):
        await bench.enqueue()
    answer = await bench.wire.call("queue.limit", queue=bench.queue, rate_per_s=20, burst=5)
    assert (answer["queue"]["rate_per_s"], answer["queue"]["burst"]) == (20, 5)
    await register(bench.wire, queues=[bench.queue])
    began = asyncio.get_running_loop().time()
    given = await bench.claim(limit=20)
    assert 5 <= len(given) <= 7
    await bench.enqueue()
    while len(given) < 15:
        given += await bench.claim(limit=20, wait_ms=2_000)
    took_s = asyncio.get_running_loop().time() - began
    assert len(given) - 5 <= 20 * took_s + 1
    await bench.wire.call("queue.limit", queue=bench.queue, rate_per_s=None)
    assert len(given) + len(await bench.claim(limit=20)) == 21
    with pytest.raises(WireError):
        await bench.wire.call("queue.limit", queue=bench.queue, rate_per_s=0)
    with pytest.raises(WireError, match="burst: it goes with a rate") as refused:
        await bench.wire.call("queue.limit", queue=bench.queue, rate_per_s=None, burst=5)
    assert refused.value.kind == "invalid_params"


async def test_who_waits_for_a_rate_is_given_a_job_as_soon_as_it_allows_one(bench: Bench) -> None:
    await bench.wire.call("queue.limit", queue=bench.queue, rate_per_s=10, burst=1)
    for _ in range(10):
        await bench.enqueue()
    given_at: list[float] = []
    while len(given_at) < 10:
        assert len(await bench.claim(wait_ms=5_000)) == 1
        given_at.append(asyncio.get_running_loop().time())
    waits_s = [after - before for before, after in itertools.pairwise(given_at)]
    assert min(waits_s) < HELD_UP_INTERVAL_S * 0.9, "it has looked before the usual time is over"


async def test_a_rate_does_not_hold_up_other_queues(bench: Bench) -> None:
    other = f"{bench.queue}-other"
    await bench.wire.call("queue.limit", queue=bench.queue, rate_per_s=0.001, burst=2)
    for queue in (bench.queue, other):
        for _ in range(4):
            await bench.wire.call("job.enqueue", type="t", queue=queue)
    given = await bench.claim(queues=[bench.queue, other], limit=20)
    assert sorted(job["queue"] for job in given) == [bench.queue] * 2 + [other] * 4


async def test_j43_a_place_goes_to_the_next_when_the_first_in_line_is_cancelled_in_that_moment(
    mesh: Mesh, bench: Bench, tenant: str
) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as other:
        for _ in range(30):
            jobs = [await bench.enqueue(concurrency_key="key") for _ in range(3)]
            [claimed] = await bench.claim()
            assert claimed["id"] == jobs[0]["id"]
            await asyncio.gather(
                bench.wire.call("job.complete", jobs=[held(claimed)]),
                other.call("job.cancel", job_id=jobs[1]["id"]),
            )
            [last] = await bench.claim()
            assert last["id"] == jobs[2]["id"], "it would wait for ever"
            await bench.wire.call("job.complete", jobs=[held(last)])


async def test_a_purge_and_those_who_give_places_do_not_wait_in_a_circle(mesh: Mesh, bench: Bench, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as other:
        for _ in range(10):
            for key in "abc":
                for _ in range(4):
                    await bench.enqueue(concurrency_key=key, concurrency_limit=2)
            claimed = await bench.claim()
            assert len(claimed) == 6
            await asyncio.gather(
                bench.wire.call("job.complete", jobs=[held(job) for job in claimed]),
                other.call("queue.purge", queue=bench.queue),
            )
            while rest := await bench.claim():
                await bench.wire.call("job.complete", jobs=[held(job) for job in rest])
            assert (await bench.wire.call("job.stats"))["queues"] == []


async def test_each_of_several_wishes_for_a_key_is_judged_by_the_one_before_it(
    mesh: Mesh, bench: Bench, tenant: str
) -> None:
    about = {"type": "t", "queue": bench.queue}
    known = await bench.enqueue(unique_key="before")
    await bench.wire.call("job.complete", jobs=[held(job) for job in await bench.claim()])
    async with await Wire.connect(mesh.ws_url, tenant) as wire:

        async def together(*wishes: dict[str, Any]) -> list[dict[str, Any]]:
            names = [uuid.uuid4().hex for _ in wishes]
            await wire.send([
                {"jsonrpc": "2.0", "id": name, "method": "job.enqueue", "params": about | wish}
                for name, wish in zip(names, wishes, strict=True)
            ])  # fmt: skip
            return [(await wire.answer(name))["result"] for name in names]

        done = {"unique_key": "before", "unique_states": ["PENDING", "PROCESSING", "COMPLETED"]}
        first, second, third = await together(done, {"unique_key": "before"}, {"unique_key": "before"})
        assert (first["job"]["id"], first["is_duplicate"]) == (known["id"], True)
        assert not second["is_duplicate"]
        assert (third["job"]["id"], third["is_duplicate"]) == (second["job"]["id"], True)
        only_completed = {"unique_key": "other", "unique_states": ["COMPLETED"]}
        both = await together(only_completed, only_completed)
        assert [one["is_duplicate"] for one in both] == [False, False], "neither is completed"
        [latest] = await together({"unique_key": "other"})
        assert latest["job"]["id"] == both[1]["job"]["id"]
        ended = {"unique_key": "third", "unique_states": ["COMPLETED"]}
        await together(ended)
        await bench.wire.call("job.complete", jobs=[held(job) for job in await bench.claim()])
        assert [one["is_duplicate"] for one in await together(ended, ended)] == [True, True]


async def test_claims_for_several_workers_from_queues_with_rates_do_not_wait_for_each_other_in_a_circle(
    mesh: Mesh, tenant: str
) -> None:
    """They come in batches, each of which takes several workers' locks and several queues' tokens."""
    wires = [await Wire.connect(mesh.ws_url, tenant) for _ in range(6)]
    queues, choice = ["one", "two"], random.Random(1)
    for queue in queues:
        await wires[0].call("queue.limit", queue=queue, rate_per_s=100_000, burst=10_000)
        await wires[0].call("job.enqueue_many", jobs=[{"type": "t", "queue": queue}] * 1_000)
    workers = [await register(wires[0], capacity=10_000, queues=queues) for _ in range(6)]
    claimed: list[str] = []

    async def claim(wire: Wire) -> None:
        for _ in range(60):
            asked = [
                {"worker_id": worker_id, "queues": choice.choice([queues, queues[::-1], queues[:1], queues[1:]])}
                for worker_id in choice.sample(workers, 3)
            ]
            answers = await asyncio.gather(*(wire.ask("job.claim", claim) for claim in asked))
            claimed.extend(job["id"] for answer in answers for job in answer["result"]["jobs"])

    await asyncio.gather(*(claim(wire) for wire in wires))
    assert len(claimed) == len(set(claimed)) >= 1_000
    for wire in wires:
        await wire.close()


async def test_a_job_that_is_over_is_retried_by_hand_with_its_history(bench: Bench) -> None:
    job = await bench.enqueue(max_retries=0)
    [claimed] = await bench.claim()
    with pytest.raises(WireError) as refused:
        await bench.wire.call("job.retry", job_id=job["id"])
    assert (refused.value.kind, refused.value.data["reason"]) == ("conflict", "job.state")
    await bench.wire.call("job.fail", jobs=[held(claimed, error="no")])
    again = (await bench.wire.call("job.retry", job_id=job["id"]))["job"]
    assert (again["status"], again["retry_count"]) == ("PENDING", 0)
    assert await bench.dead_letters() == []
    await bench.wire.call("job.cancel", job_id=job["id"])
    assert (await bench.wire.call("job.retry", job_id=job["id"]))["job"]["status"] == "PENDING"
    [claimed] = await bench.claim()
    await bench.wire.call("job.complete", jobs=[held(claimed)])
    with pytest.raises(WireError) as refused:
        await bench.wire.call("job.retry", job_id=job["id"])
    assert "COMPLETED" in refused.value.message
    outcomes = [each["outcome"] for each in await bench.executions(job)]
    assert outcomes == ["FAILED", "CANCELLED", "COMPLETED"]
    with pytest.raises(WireError) as refused:
        await bench.wire.call("job.retry", job_id=str(uuid.uuid4()))
    assert refused.value.kind == "not_found"


async def test_a_duplicate_is_one_whatever_it_would_wait_for(mesh: Mesh, bench: Bench, tenant: str) -> None:
    failed = await bench.enqueue(max_retries=0)
    await bench.wire.call("job.fail", jobs=[held(job, error="no") for job in await bench.claim()])
    known = await bench.enqueue(unique_key="known")
    about = {"type": "t", "queue": bench.queue, "depends_on": [failed["id"]]}
    for unknown in ([], [str(uuid.uuid4())]):
        again = await bench.wire.call(
            "job.enqueue", **{**about, "unique_key": "known", "depends_on": [failed["id"], *unknown]}
        )
        assert (again["job"]["id"], again["is_duplicate"]) == (known["id"], True)
    many = await bench.wire.call("job.enqueue_many", jobs=[{**about, "unique_key": "known"}])
    assert [(each["id"], each["is_duplicate"]) for each in many["jobs"]] == [(known["id"], True)]
    with pytest.raises(WireError) as refused:
        await bench.wire.call("job.enqueue", **about, unique_key="new")
    assert refused.value.reason == "job.parent_failed"
    new = await bench.wire.call("job.enqueue", type="t", queue=bench.queue, unique_key="new")
    assert not new["is_duplicate"], "what was refused has not taken the key"


async def test_a_twin_of_what_is_refused_is_judged_by_the_one_before(mesh: Mesh, bench: Bench, tenant: str) -> None:
    failed = await bench.enqueue(max_retries=0)
    await bench.wire.call("job.fail", jobs=[held(job, error="no") for job in await bench.claim()])
    parent = await bench.enqueue()
    wishes = [{"depends_on": [failed["id"]]}, {"depends_on": [parent["id"]]}, {}]
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        names = [uuid.uuid4().hex for _ in wishes]
        await wire.send([
            {
                "jsonrpc": "2.0", "id": name, "method": "job.enqueue",
                "params": {"type": "t", "queue": bench.queue, "unique_key": "u", **wish},
            }
            for name, wish in zip(names, wishes, strict=True)
        ])  # fmt: skip
        first, second, third = [await wire.answer(name) for name in names]
    assert first["error"]["data"]["reason"] == "job.parent_failed"
    assert not second["result"]["is_duplicate"]
    assert (third["result"]["job"]["id"], third["result"]["is_duplicate"]) == (second["result"]["job"]["id"], True)
    assert await reason(bench, second["result"]["job"]) == "waiting_for_parents"
