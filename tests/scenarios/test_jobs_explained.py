"""Why a job does not run is told as it is: `job.explain` names what holds it up, and nothing that does not."""

from __future__ import annotations

import re
from typing import Any

from tests.scenarios.jobs import Bench, reason, register


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
    [held] = await bench.claim()
    why, sentence = await explained(bench, held)
    assert why == "running"
    assert re.fullmatch(rf"worker {bench.worker_id} holds it until \d{{4}}-\d\d-\d\dT[\d:.]+\+00:00", sentence)


async def test_it_says_what_to_do_about_a_pause_and_a_parent_that_has_failed(bench: Bench) -> None:
    job = await bench.enqueue()
    paused = (await bench.wire.call("queue.pause", queue=bench.queue, reason="the disk is full"))["queue"]
    since = paused["paused_at"].replace("Z", "+00:00")
    told = await explained(bench, job)
    assert told == ("queue_paused", f"the queue {bench.queue} is paused since {since}: the disk is full")
    await bench.wire.call("queue.resume", queue=bench.queue)
    [held] = await bench.claim()
    other = await bench.enqueue(delay_ms=60_000)
    child = await bench.enqueue(depends_on=[other["id"], held["id"]], on_parent_failure="wait")
    first = min(other["id"], held["id"])
    assert (await explained(bench, child))[1] == f"it waits until job {first} and 1 others are completed"
    await bench.wire.call("job.cancel", job_id=other["id"])
    only = await bench.enqueue(depends_on=[held["id"]], on_parent_failure="wait")
    assert (await explained(bench, only))[1] == f"it waits until job {held['id']} is completed"
    await bench.wire.call(
        "job.fail", jobs=[{"job_id": held["id"], "attempt": held["attempt"], "error": "broken", "retryable": False}]
    )
    sentence = f"it waits for job {held['id']}, which has failed, until that is replayed"
    assert await explained(bench, only) == ("waiting_for_parents", sentence)
