"""A verb that is said again and changes nothing is answered as before, and nobody is told: whoever listens would act again."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from tests.scenarios.jobs import Bench, held, register


class Listener:
    """What is told in the tenant of a bench, by what it does."""

    def __init__(self, bench: Bench) -> None:
        self.wire = bench.wire
        self.cursor: str | None = None

    async def hears(self, noun: str) -> list[str]:
        """The types of the events about a noun since it was asked last."""
        asked = {"since": self.cursor} if self.cursor is not None else {}
        page = await self.wire.call("event.list", limit=1_000, **asked)
        self.cursor = page["cursor"]
        return [event["type"] for event in page["events"] if event["type"].partition(".")[0] == noun]

    async def twice(self, operation: str, **params: Any) -> tuple[list[str], list[str]]:
        """What is told when something is asked for, and when it is asked for again; the answers are the same."""
        noun = operation.partition(".")[0]
        await self.hears(noun)
        answer = await self.wire.call(operation, **params)
        first = await self.hears(noun)
        assert await self.wire.call(operation, **params) == answer
        return first, await self.hears(noun)


@pytest.fixture
def listener(bench: Bench) -> Listener:
    return Listener(bench)


async def test_a_queue(bench: Bench, listener: Listener) -> None:
    for operation, about, told in (
        ("queue.resume", {}, []),
        ("queue.limit", {"rate_per_s": None}, []),
        ("queue.pause", {"reason": "enough"}, ["queue.paused"]),
        ("queue.pause", {"reason": "the disk is full"}, ["queue.paused"]),
        ("queue.resume", {}, ["queue.resumed"]),
        ("queue.limit", {"rate_per_s": 5}, ["queue.limited"]),
        ("queue.limit", {"rate_per_s": 5, "burst": 9}, ["queue.limited"]),
        ("queue.limit", {"rate_per_s": None}, ["queue.limited"]),
    ):
        assert await listener.twice(operation, queue=bench.queue, **about) == (told, []), (operation, about)
    calls = [bench.wire.call("queue.pause", queue=bench.queue) for _ in range(10)]
    answers = await asyncio.gather(*calls)
    assert all(answer == answers[0] for answer in answers)
    assert await listener.hears("queue") == ["queue.paused"], "of many at once one has changed it"


async def test_a_schedule(bench: Bench, listener: Listener) -> None:
    job = {"type": "t", "queue": bench.queue, "payload": {"a": [1.0, None]}}
    asked = {"name": bench.queue, "interval_s": 3_600, "job": job}
    schedule_id = (await bench.wire.call("schedule.create", **asked))["schedule"]["id"]
    for verb, about, told in (
        ("resume", {}, []),
        ("update", asked, []),
        ("update", {}, []),
        ("update", {"missed": "all"}, ["schedule.updated"]),
        ("update", {"job": {**job, "payload": 1}}, ["schedule.updated"]),
        ("pause", {}, ["schedule.paused"]),
        ("update", {"missed": "all", "job": {**job, "payload": 1}}, []),
        ("resume", {}, ["schedule.resumed"]),
    ):
        assert await listener.twice(f"schedule.{verb}", schedule_id=schedule_id, **about) == (told, []), (verb, about)


async def test_a_worker(bench: Bench, listener: Listener) -> None:
    worker_id = await register(bench.wire)
    await bench.enqueue(max_retries=0)
    [job] = await bench.claim(worker_id=worker_id)
    await listener.hears("worker")
    [evacuated, again] = [
        await bench.wire.call("worker.evacuate", worker_id=worker_id, reason="maintenance") for _ in range(2)
    ]
    assert (evacuated["released"], again["released"], again["worker"]) == (1, 0, evacuated["worker"])
    assert await listener.hears("worker") == ["worker.status"]
    assert await bench.is_now(job, "PENDING")
    told = await listener.twice("worker.evacuate", worker_id=worker_id, reason="it is sold")
    assert told == (["worker.status"], [])


async def test_an_agent(bench: Bench, listener: Listener) -> None:
    asked = {"description": "adds", "capabilities": ["sum", "add"], "metadata": {"v": [1, None]}, "card": {"url": "u"}}
    agent = (await bench.wire.call("agent.register", name=f"a{uuid.uuid4().hex}", **asked))["agent"]

    async def versions(operation: str, **about: Any) -> tuple[int, int]:
        """By how much the version goes up, and how often it is told that it was changed, of two calls."""
        await listener.hears("agent")
        before, *after = [
            (await bench.wire.call(*call, agent_id=agent["id"], **more))["agent"]["version"]
            for call, more in ((("agent.get",), {}), *(((operation,), about),) * 2)
        ]
        assert after[0] == after[1]
        return after[1] - before, (await listener.hears("agent")).count("agent.updated")

    assert await versions("agent.update", **asked) == (0, 0)
    assert await versions("agent.update") == (0, 0)
    assert await versions("agent.update", card={"url": "other"}) == (1, 1)
    assert await versions("agent.drain", draining=False) == (0, 0)
    assert await versions("agent.drain") == (1, 1)
    assert await versions("agent.suspend") == (1, 1)
    assert await versions("agent.suspend", suspended=False) == (1, 1)
    stale = await bench.wire.ask("agent.drain", {"agent_id": agent["id"], "if_version": agent["version"]})
    assert stale["error"]["data"]["reason"] == "agent.version", "though it would change nothing"


async def test_a_job(bench: Bench, listener: Listener) -> None:
    parent = await bench.enqueue(delay_ms=60_000, priority=5)
    child = await bench.enqueue(delay_ms=60_000)
    about = {"job_id": child["id"], "depends_on": [parent["id"]]}
    plain = await listener.twice("job.depend", **about, inherit_priority=False)
    assert plain == (["job.blocked"], [])
    assert await listener.twice("job.depend", **about) == (["job.blocked"], []), "it has another priority"
    other = await listener.twice("job.depend", **about, on_parent_failure="ignore")
    assert other == (["job.blocked"], []), "it goes on whatever becomes of the other"
    await bench.enqueue()
    [claimed] = await bench.claim()
    for reason in ("enough", "not wanted"):
        told = await listener.twice("job.cancel", job_id=claimed["id"], reason=reason)
        assert told == (["job.cancel_requested"], [])
    await bench.wire.call("job.release", jobs=[held(claimed)])
    assert await listener.twice("job.cancel", job_id=claimed["id"]) == ([], [])
