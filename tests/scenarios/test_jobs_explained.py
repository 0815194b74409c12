"""Why a job does not run is told as it is: `job.explain` names what holds it up, and nothing that does not."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness import Mesh, eventually
from tests.scenarios.jobs import Bench, do, held, reason, register
from tests.wire import Wire


async def explained(bench: Bench, job: dict[str, Any]) -> tuple[str, str]:
    told = (await bench.wire.call("job.explain", job_id=job["id"]))["explanation"]
    return told["reason"], told["explanation"]


async def test_a_worker_that_holds_more_than_it_may_takes_no_room_from_others(bench: Bench) -> None:
    for _ in range(4):
        await bench.enqueue()
    small = await register(bench.wire, capacity=1, queues=[bench.queue])
    name = (await bench.wire.call("worker.get", worker_id=small))["worker"]["name"]
    await bench.wire.call("worker.register", name=name, capacity=3, queues=[bench.queue])
    assert len(await bench.claim(worker_id=small)) == 3
    await bench.wire.call("worker.register", name=name, capacity=1, queues=[bench.queue])
    job = await bench.enqueue(priority=5)
    assert await reason(bench, job) == "workers_busy"
    await register(bench.wire, capacity=1, queues=[bench.queue])
    assert await reason(bench, job) == "next"


async def test_a_queue_with_a_rate_holds_nothing_up_while_there_are_tokens(bench: Bench) -> None:
    await register(bench.wire, queues=[bench.queue])
    await bench.wire.call("queue.limit", queue=bench.queue, rate_per_s=0.001, burst=2)
    first, second, third = [await bench.enqueue() for _ in range(3)]
    assert [await reason(bench, job) for job in (first, second)] == ["next", "others_first"]
    await bench.claim(limit=1)
    assert [await reason(bench, job) for job in (second, third)] == ["next", "others_first"]
    await bench.claim(limit=1)
    assert await reason(bench, third) == "rate"


async def test_it_says_who_is_registered_for_a_queue_and_until_when_a_job_is_held(bench: Bench) -> None:
    told = await explained(bench, await bench.enqueue())
    assert told == ("no_worker", f"no ACTIVE worker is registered for the queue {bench.queue}")
    [claimed] = await bench.claim()
    why, sentence = await explained(bench, claimed)
    assert why == "running"
    assert re.fullmatch(rf"worker {bench.worker_id} holds it until \d{{4}}-\d\d-\d\dT[\d:.]+\+00:00", sentence)


async def test_a_job_is_held_no_longer_than_it_has_time_whatever_its_lease(bench: Bench) -> None:
    job = await bench.enqueue(timeout_ms=90_000)
    await bench.claim(lease_s=600)
    found = await bench.get(job)
    over_at = datetime.datetime.fromisoformat(found["started_at"]) + datetime.timedelta(seconds=90)
    assert datetime.datetime.fromisoformat(found["lease_until"]) > over_at
    told = f"worker {bench.worker_id} holds it until {over_at.isoformat()}"
    assert await explained(bench, job) == ("running", told)


async def test_it_says_what_to_do_about_a_pause_and_a_parent_that_has_failed(bench: Bench) -> None:
    job = await bench.enqueue()
    paused = (await bench.wire.call("queue.pause", queue=bench.queue, reason="the disk is full"))["queue"]
    since = paused["paused_at"].replace("Z", "+00:00")
    told = await explained(bench, job)
    assert told == ("queue_paused", f"the queue {bench.queue} is paused since {since}: the disk is full")
    await bench.wire.call("queue.resume", queue=bench.queue)
    [claimed] = await bench.claim()
    other = await bench.enqueue(delay_ms=60_000)
    child = await bench.enqueue(depends_on=[other["id"], claimed["id"]], on_parent_failure="wait")
    first = min(other["id"], claimed["id"])
    assert (await explained(bench, child))[1] == f"it waits until job {first} and 1 other are completed"
    await bench.wire.call("job.cancel", job_id=other["id"])
    only = await bench.enqueue(depends_on=[claimed["id"]], on_parent_failure="wait")
    assert (await explained(bench, only))[1] == f"it waits until job {claimed['id']} is completed"
    await bench.wire.call("job.fail", jobs=[held(claimed, error="broken", retryable=False)])
    sentence = f"it waits for job {claimed['id']}, which has failed, until that is replayed"
    assert await explained(bench, only) == ("waiting_for_parents", sentence)


async def test_a_job_that_has_waited_for_a_place_comes_behind_those_that_were_there_before_it_got_one(
    bench: Bench,
) -> None:
    await register(bench.wire, queues=[bench.queue])
    await bench.enqueue(concurrency_key="k")
    late = await bench.enqueue(concurrency_key="k")
    [first] = await bench.claim()
    others = [await bench.enqueue() for _ in range(3)]
    await bench.wire.call("job.complete", jobs=[held(first)])
    assert await explained(bench, late) == ("others_first", "3 jobs of its queue come before it")
    assert [job["id"] for job in await bench.claim(limit=3)] == [other["id"] for other in others]
    assert await reason(bench, late) == "next"


async def test_one_whose_time_has_come_a_moment_ago_is_not_held_up_by_a_place_that_is_free(
    own_mesh: Callable[..., Mesh],
) -> None:
    """Without anybody who gives places to what comes due, so that the moment lasts."""
    mesh = own_mesh("rest-api", "mcp-server")
    async with await Wire.connect(mesh.ws_url, mesh.new_tenant()) as wire:
        bench = Bench(wire, await register(wire))
        job = await bench.enqueue(concurrency_key="k", delay_ms=300)

        async def is_due() -> bool:
            return (await explained(bench, job))[0] != "not_due"

        await eventually(is_due, "its time has come")
        told = "there is a place of its concurrency key 'k', which it is given in a moment"
        assert await explained(bench, job) == ("next", told)
        await bench.enqueue(concurrency_key="k")
        assert await reason(bench, job) == "limit_reached"


async def test_one_that_its_worker_has_put_off_does_not_back_off_though_it_has_failed_before(bench: Bench) -> None:
    job = await bench.enqueue(backoff_ms=0)
    for verb, more in (("fail", {"error": "broken"}), ("snooze", {"delay_ms": 60_000})):
        [claimed] = await bench.claim(wait_ms=10_000)
        await bench.wire.call(f"job.{verb}", jobs=[held(claimed, **more)])
    found = await bench.get(job)
    since = found["run_at"].replace("Z", "+00:00")
    assert found["retry_count"] == 1
    assert await explained(bench, job) == ("not_due", f"it runs at {since} at the earliest")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ({"type": "OSError", "message": "the disk is full"}, ": the disk is full"),
        ("broken", ": broken"),
        ({"message": "x" * 501}, f": {'x' * 500}…"),
        ({"message": 7}, ""),
        ([], ""),
        (None, ""),
    ],
)
async def test_it_says_why_a_job_is_over_and_what_to_do(bench: Bench, error: Any, said: str) -> None:
    job = await bench.enqueue()
    [claimed] = await bench.claim()
    await bench.wire.call("job.fail", jobs=[held(claimed, error=error, retryable=False)])
    assert await explained(bench, job) == ("finished", f"it is FAILED{said}; job.retry has it run again")


async def test_it_says_why_a_job_was_cancelled_and_nothing_of_one_that_was_completed(bench: Bench) -> None:
    cancelled = await bench.enqueue()
    await bench.wire.call("job.cancel", job_id=cancelled["id"], reason="not needed")
    assert await explained(bench, cancelled) == ("finished", "it is CANCELLED: not needed; job.retry has it run again")
    done = await bench.enqueue()
    await do(bench)
    assert await explained(bench, done) == ("finished", "it is COMPLETED")
