"""Transactions that lock the same jobs and limits do it in one order: none waits for the other in a circle.

A circle would be broken off by PostgreSQL after a second, and nobody would see it: so it is looked for while somebody else,
who holds one thing, has two calls meet halfway.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from tests.harness import Mesh, eventually, pauses_s
from tests.scenarios.archive import Archive, Bystander
from tests.scenarios.jobs import Bench, held
from tests.wire import Wire

IN_A_CIRCLE = (
    "select count(*) from pg_stat_activity a cross join unnest(pg_blocking_pids(a.pid)) as b (pid)"
    " where a.datname = current_database() and a.pid = any(pg_blocking_pids(b.pid))"
)
LOCK = "select from mcp.{} where tenant_id = $1 and {} = $2 for update"
Task = asyncio.Task[dict[str, Any]]


class Meeting:
    """Two calls, each on a connection of its own, and who holds them up."""

    def __init__(self, archive: Archive, bystander: Bystander, other: Wire) -> None:
        self.bystander, self.archive, self._other = bystander, archive, other
        self._calls: list[Task] = []

    async def hold(self, table: str, column: str, value: object) -> None:
        await self.bystander.begin(LOCK.format(table, column), self.archive.tenant_id, value)

    async def call(self, method: str, **params: Any) -> None:
        """Begins a call, and goes on when it waits for somebody or is over."""
        wire = self._other if self._calls else self.archive.bench.wire
        call = asyncio.ensure_future(wire.call(method, **params))
        self._calls.append(call)

        async def has_come_far() -> bool:
            return call.done() or await self._held_up() > sum(not before.done() for before in self._calls[:-1])

        await eventually(has_come_far, "the call waits, or is over")

    async def end(self) -> list[dict[str, Any]]:
        """Lets them go on. Their answers."""
        await self.bystander.commit()
        for pause_s in pauses_s():
            assert not await self.bystander.connection.fetchval(IN_A_CIRCLE), "they wait for each other"
            if all(call.done() for call in self._calls):
                break
            await asyncio.sleep(pause_s)
        return [await call for call in self._calls]

    async def are_over(self) -> None:
        """Waits for the calls of a test that has failed, which are broken off by PostgreSQL."""
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _held_up(self) -> int:
        asking = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        return int(await self.bystander.connection.fetchval(asking))


@pytest_asyncio.fixture
async def meeting(mesh: Mesh, archive: Archive, bystander: Bystander, tenant: str) -> AsyncIterator[Meeting]:
    async with await Wire.connect(mesh.ws_url, tenant) as other:
        meeting = Meeting(archive, bystander, other)
        yield meeting
        await meeting.are_over()


async def _full(bench: Bench, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A held job that has the only place of a key, and one that waits for it."""
    await bench.enqueue(concurrency_key="k", concurrency_limit=1, **more)
    waiting = await bench.enqueue(concurrency_key="k", concurrency_limit=1, priority=1)
    [claimed] = await bench.claim()
    return claimed, waiting


async def test_the_end_of_a_parent_with_a_key_and_a_purge(meeting: Meeting, bench: Bench) -> None:
    parent, waiting = await _full(bench)
    await bench.enqueue(concurrency_key="k", concurrency_limit=1, depends_on=[parent["id"]])
    await meeting.hold("jobs_limited", "job_id", waiting["id"])
    await meeting.call("job.complete", jobs=[held(parent)])
    await meeting.call("queue.purge", queue=bench.queue)
    completed, purged = await meeting.end()
    assert (len(completed["jobs"]), purged["purged"]) == (1, 2)


async def test_the_failure_of_a_parent_with_a_key_and_a_purge(meeting: Meeting, bench: Bench) -> None:
    parent, waiting = await _full(bench, max_retries=0)
    about = {"depends_on": [parent["id"]], "on_parent_failure": "ignore"}
    await bench.enqueue(concurrency_key="k", concurrency_limit=1, **about)
    await meeting.hold("jobs_limited", "job_id", waiting["id"])
    await meeting.call("job.fail", jobs=[held(parent, error="no")])
    await meeting.call("queue.purge", queue=bench.queue)
    failed, purged = await meeting.end()
    assert (failed["jobs"][0]["status"], purged["purged"]) == ("FAILED", 2)


async def test_who_has_a_job_wait_for_one_without_a_place_and_who_gives_places(meeting: Meeting, bench: Bench) -> None:
    claimed, waiting = await _full(bench)
    blocked = await bench.enqueue(depends_on=[claimed["id"]])
    about = {"type": "t", "queue": bench.queue, "concurrency_key": "k", "concurrency_limit": 2}
    await meeting.hold("jobs_blocked", "job_id", blocked["id"])
    await meeting.call("job.enqueue", depends_on=[waiting["id"], blocked["id"]], **about)
    await meeting.call("job.snooze", jobs=[held(claimed, delay_ms=60_000)])
    enqueued, _ = await meeting.end()
    assert enqueued["job"]["status"] == "PENDING"
    assert [job["id"] for job in await bench.claim()] == [waiting["id"]]


async def test_the_cancellation_of_a_parent_without_a_place_and_who_gives_places(
    meeting: Meeting, bench: Bench
) -> None:
    claimed, waiting = await _full(bench)
    about = {"depends_on": [waiting["id"]], "on_parent_failure": "ignore"}
    child = await bench.enqueue(concurrency_key="k", concurrency_limit=1, **about)
    await meeting.hold("jobs_blocked", "job_id", child["id"])
    await meeting.call("job.cancel", job_id=waiting["id"])
    await meeting.call("job.complete", jobs=[held(claimed)])
    cancelled, _ = await meeting.end()
    if cancelled["job"]["status"] == "CANCELLED":
        assert [job["id"] for job in await bench.claim()] == [child["id"]]


async def test_those_whose_time_has_come_and_a_purge(meeting: Meeting, bench: Bench) -> None:
    await bench.enqueue(concurrency_key="k", delay_ms=3_600_000)
    await meeting.hold("job_limits", "queue", bench.queue)
    await meeting.call("queue.purge", queue=bench.queue)
    due = "update mcp.jobs_limited set run_at = now() where queue = '{}' and run_at > now()"
    meeting.archive.run(due.format(bench.queue))
    await meeting.bystander.are_held_up(2)
    [purged] = await meeting.end()
    assert purged["purged"] == 1


async def test_who_enqueues_a_unique_job_behind_another_and_who_retries_one(meeting: Meeting, bench: Bench) -> None:
    parent = await bench.enqueue()
    before = await bench.enqueue(unique_key="u", depends_on=[parent["id"]])
    await bench.wire.call("job.cancel", job_id=before["id"])
    await bench.claim()
    lock = "select pg_advisory_xact_lock(hashtextextended($1::uuid::text, 13))"
    await meeting.bystander.begin(lock, meeting.archive.tenant_id)
    await meeting.call("job.retry", job_id=before["id"])
    about = {"type": "t", "queue": bench.queue, "unique_key": "u"}
    await meeting.call("job.enqueue", depends_on=[parent["id"]], **about)
    retried, enqueued = await meeting.end()
    assert (enqueued["job"]["id"], enqueued["is_duplicate"]) == (retried["job"]["id"], True)


async def test_who_has_a_job_wait_for_a_dead_letter_and_who_replays_it(meeting: Meeting, bench: Bench) -> None:
    first, second = [await bench.enqueue() for _ in range(2)]
    broken = await bench.enqueue(max_retries=0)
    dead = await bench.enqueue(depends_on=[job["id"] for job in (first, second, broken)])
    claimed = {job["id"]: job for job in await bench.claim()}
    await bench.wire.call("job.fail", jobs=[held(claimed[broken["id"]], error="no")])
    assert await bench.status(dead) == "FAILED"
    await meeting.hold("jobs_leased", "job_id", first["id"])
    await meeting.call("dead_letter.replay", job_ids=[dead["id"]])
    about = {"type": "t", "queue": bench.queue, "on_parent_failure": "wait"}
    await meeting.call("job.enqueue", depends_on=[second["id"], dead["id"]], **about)
    replayed, enqueued = await meeting.end()
    assert replayed["job_ids"] == [dead["id"]]
    assert enqueued["job"]["status"] == "PENDING"


async def test_who_gives_a_silent_worker_up_and_who_reports_for_it(meeting: Meeting, bench: Bench) -> None:
    job = await bench.enqueue()
    [claimed] = await bench.claim()
    meeting.archive.run("update mcp.jobs_leased set lease_s = 100000 where tenant_id = $1")
    await meeting.hold("jobs_leased", "job_id", job["id"])
    await meeting.call("job.fail", jobs=[held(claimed, error="no")])
    meeting.archive.run(
        "update mcp.workers set stale_after_s = 1, heartbeat_interval_s = 1, heartbeat_at = now() - interval '2 seconds'"
        " where tenant_id = $1"
    )
    await meeting.bystander.are_held_up(2)
    [failed] = await meeting.end()
    assert failed["jobs"][0]["status"] == "PENDING"


async def test_who_registers_a_worker_anew_and_who_reports_for_it(meeting: Meeting, bench: Bench) -> None:
    about = {"name": "again", "capacity": 10}
    worker = (await bench.wire.call("worker.register", **about, instance_id=str(uuid.uuid4())))["worker"]
    job = await bench.enqueue()
    [claimed] = await bench.claim(worker_id=worker["id"])
    await meeting.hold("jobs_leased", "job_id", job["id"])
    await meeting.call("job.fail", jobs=[held(claimed, error="no")])
    await meeting.call("worker.register", **about, instance_id=str(uuid.uuid4()))
    failed, _ = await meeting.end()
    assert failed["jobs"][0]["status"] == "PENDING"
