"""J18: whichever tables were emptied, what is missing of a job is written again, in one place, and it runs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness import eventually
from tests.scenarios.archive import Archive
from tests.scenarios.jobs import Bench, do, held

LOST = [
    ("jobs",),
    ("jobs", "workers"),
    ("jobs", "job_executions"),
    ("jobs", "jobs_ready", "jobs_leased"),
    ("jobs_ready",),
    ("jobs_limited",),
    ("jobs_blocked",),
    ("jobs_leased",),
    ("jobs_leased", "job_slots"),
    ("job_slots",),
    ("jobs", "jobs_ready", "job_executions", "job_dependencies"),
    ("dead_letter_queue", "job_executions"),
    ("job_slots", "job_limits", "job_executions"),
    ("job_dependencies",),
    ("job_executions",),
]


class Work:
    """A job in each place, of which all but a dead letter are to be completed."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.holding: list[dict[str, Any]] = []
        self.ids: dict[str, str] = {}

    async def _add(self, name: str, **about: Any) -> str:
        self.ids[name] = (await self.bench.enqueue(**about))["id"]
        return self.ids[name]

    async def begin(self) -> None:
        retried = await self._add("retried", backoff_ms=300, max_retries=1)
        dead = await self._add("dead", max_retries=0)
        for job in await self.bench.claim():
            await self.bench.wire.call("job.fail", jobs=[held(job, error="no")])
        assert {retried, dead} == set(self.ids.values())
        first = await self._add("held", priority=5)
        await self._add("held_in_a_place", priority=5, concurrency_key="k")
        self.holding = await self.bench.claim(limit=2)
        limited = await self._add("limited", concurrency_key="k")
        ready = await self._add("ready", priority=2)
        await self._add("later", delay_ms=300, unique_key="u")
        placed = await self._add("placed", concurrency_key="other")
        await self._add("blocked", depends_on=[first])
        await self._add("blocked_by_three", depends_on=[ready, limited, placed])

    async def end(self) -> None:
        await self.bench.wire.call("job.complete", jobs=[held(job) for job in self.holding])

        async def is_done() -> bool:
            await do(self.bench)
            return await self.places() == {name: "FAILED" if name == "dead" else "COMPLETED" for name in self.ids}

        await eventually(is_done, "every job is completed, but for the dead letter")
        attempts = {name: len(await self.bench.executions({"id": job_id})) for name, job_id in self.ids.items()}
        assert max(attempts.values()) <= 3, attempts

    async def places(self) -> dict[str, str]:
        return {name: await self.bench.status({"id": job_id}) for name, job_id in self.ids.items()}


@pytest.mark.parametrize(
    ("lost", "on_conflict"),
    [*((lost, "preserve") for lost in LOST), *((lost, "overwrite") for lost in LOST if len(lost) == 1)],
)
async def test_j18_what_is_missing_of_jobs_is_written_again_and_they_run(
    archive: Archive, bench: Bench, lost: tuple[str, ...], on_conflict: str
) -> None:
    work = Work(bench)
    await work.begin()
    before = await work.places()
    snapshot = await archive.take()
    archive.lose(*lost)
    answer = await archive.restore(snapshot, on_conflict)
    assert answer["conflicts"] == []
    assert await work.places() == before
    again = await archive.restore(snapshot, "fail")
    assert set(again["restored"].values()) == {0}, again
    await work.end()
    assert await archive.broken_rules() == []


async def test_j18_a_job_of_which_only_its_row_is_missing_counts_as_put_back(archive: Archive, bench: Bench) -> None:
    await Work(bench).begin()
    snapshot = await archive.take()
    archive.lose("jobs")
    restored = (await archive.restore(snapshot))["restored"]
    assert {name: restored[name] for name in ("jobs", "processing", "dead_letters")} == {
        "jobs": 9, "processing": 2, "dead_letters": 1,
    }  # fmt: skip


async def test_j18_a_job_that_went_on_while_its_row_was_missing_stays_where_it_is(
    archive: Archive, bench: Bench
) -> None:
    job = await bench.enqueue(backoff_ms=0)
    snapshot = await archive.take()
    [given] = await bench.claim()
    archive.lose("jobs")
    await archive.restore(snapshot, "overwrite")
    await bench.wire.call("job.complete", jobs=[held(given)])
    assert await bench.status(job) == "COMPLETED"
    assert await bench.claim() == []
    assert await archive.broken_rules() == []


async def test_a_job_that_ended_since_is_not_taken_for_one_that_lies_nowhere(archive: Archive, bench: Bench) -> None:
    done, cancelled, dead, discarded = [await bench.enqueue(max_retries=0) for _ in range(4)]
    snapshot = await archive.take()
    jobs = {job["id"]: job for job in await bench.claim()}
    await bench.wire.call("job.complete", jobs=[held(jobs[done["id"]])])
    await bench.wire.call("job.fail", jobs=[held(jobs[job["id"]], error="no") for job in (dead, discarded)])
    await bench.wire.call("job.release", jobs=[held(jobs[cancelled["id"]])])
    await bench.wire.call("job.cancel", job_id=cancelled["id"])
    await bench.wire.call("dead_letter.discard", job_ids=[discarded["id"]])
    answer = await archive.restore(snapshot)
    assert (set(answer["restored"].values()), answer["conflict_count"]) == ({0}, 4)
    assert await bench.claim() == []


async def test_a_dead_letter_that_was_discarded_since_is_told_as_that(archive: Archive, bench: Bench) -> None:
    job = await bench.enqueue(max_retries=0)
    [given] = await bench.claim()
    await bench.wire.call("job.fail", jobs=[held(given, error="no")])
    snapshot = await archive.take()
    await bench.wire.call("dead_letter.discard", job_ids=[job["id"]])
    [conflict] = (await archive.restore(snapshot))["conflicts"]
    told = (conflict["snapshot_value"], conflict["current_value"])
    assert told == ('{"is_dead_letter":true}', '{"is_dead_letter":false}')


async def test_a_job_that_was_held_keeps_the_place_that_is_left_of_it_though_the_limit_is_lower_by_now(
    archive: Archive, bench: Bench
) -> None:
    for _ in range(2):
        await bench.enqueue(concurrency_key="k", concurrency_limit=2)
    holding = await bench.claim()
    waiting = await bench.enqueue(concurrency_key="k", concurrency_limit=1)
    snapshot = await archive.take()
    archive.lose("jobs_leased")
    restored = (await archive.restore(snapshot))["restored"]
    assert (restored["jobs"], restored["processing"]) == (2, 2)
    assert await archive.broken_rules() == []
    await bench.wire.call("job.complete", jobs=[held(job) for job in holding])
    assert await do(bench) == [waiting["id"]]


@pytest.mark.parametrize("lost", [("jobs_ready",), ("jobs", "jobs_ready")], ids=",".join)
async def test_a_job_that_went_on_since_and_lies_nowhere_is_put_back_behind_its_latest_attempt(
    archive: Archive, bench: Bench, lost: tuple[str, ...]
) -> None:
    held_then, waiting = await bench.enqueue(concurrency_key="k"), await bench.enqueue(delay_ms=1)
    [holding] = await bench.claim(limit=1)
    snapshot = await archive.take()
    await bench.wire.call("job.release", jobs=[held(holding)])
    for _ in range(2):
        await eventually(lambda: do(bench, "release"), "both are given out again and released")
    archive.lose(*lost)
    answer = await archive.restore(snapshot)
    assert (answer["restored"]["jobs"], answer["conflicts"]) == (2, [])
    assert await archive.broken_rules() == []
    claimed = await bench.claim()
    assert {job["id"] for job in claimed} == {held_then["id"], waiting["id"]}
    assert all(job["attempt"] > holding["attempt"] for job in claimed)
    await bench.wire.call("job.complete", jobs=[held(job) for job in claimed])
    assert await archive.broken_rules() == []


async def test_a_job_that_ended_since_and_of_which_only_its_row_is_missing_has_it_again_and_stays_ended(
    archive: Archive, bench: Bench
) -> None:
    job = await bench.enqueue(payload={"a": "b\u0000"})
    snapshot = await archive.take()
    await do(bench)
    archive.lose("jobs")
    answer = await archive.restore(snapshot)
    assert [conflict["resolution"] for conflict in answer["conflicts"]] == ["PRESERVED_CURRENT"]
    found = await bench.get(job)
    assert (found["status"], found["payload"]) == ("COMPLETED", job["payload"])
    assert await archive.broken_rules() == []
    assert await do(bench) == []
