"""Why a job does not run is told as it is: `job.explain` names what holds it up, and nothing that does not."""

from __future__ import annotations

from tests.scenarios.jobs import Bench, reason, register


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
