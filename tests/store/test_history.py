"""What `devmesh check history` says: nothing of a whole history, and the rule's name when rows are broken on purpose."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from tests.harness import Mesh
from tests.scenarios.jobs import Bench, held, register
from tests.wire import Wire

from devmesh.store.history import RULES, SQL, Snapshot, Tenant, Verdict, snapshot

JOB = "where tenant_id = $1 and job_id = $2"
AGAIN = (
    "insert into mcp.job_executions (tenant_id, job_id, finished_at, started_at, attempt, retries, outcome)"
    " select tenant_id, job_id, finished_at + interval '1 s', started_at, attempt + {later}, retries, outcome"
    f" from mcp.job_executions {JOB} and attempt = 1"
)
QUEUED = "insert into mcp.jobs_ready (tenant_id, run_at, job_id, created_at, priority, queue)"
FREED = (
    f"with gone as (delete from mcp.jobs_blocked {JOB} returning *) {QUEUED}"
    " select tenant_id, run_at, job_id, created_at, 3, queue from gone"
)
PARENT_DIED = (
    "with gone as (delete from mcp.jobs_leased l using mcp.job_dependencies d where l.tenant_id = $1 and d.child_id = $2"
    " and l.job_id = d.parent_id returning l.*) insert into mcp.dead_letter_queue (tenant_id, job_id, dead_letter_id,"
    " created_at, failed_at, is_parent, attempt, retries, priority, queue, type)"
    " select tenant_id, job_id, job_id, created_at, now(), true, attempt, 0, 3, queue, 't' from gone"
)
PAUSED = (
    "insert into mcp.queues (tenant_id, queue, paused_at) select tenant_id, queue, created_at - interval '1 h'"
    f" from mcp.jobs {JOB}"
)
CROWDED = (
    "with given as (delete from mcp.jobs_limited where tenant_id = $1 and $2::uuid is not null returning *), placed as ("
    " insert into mcp.job_slots (tenant_id, job_id, ready_at, queue, concurrency_key)"
    " select tenant_id, job_id, now(), queue, concurrency_key from given)"
    f" {QUEUED} select tenant_id, now(), job_id, created_at, 3, queue from given"
)
# What breaks a rule, of which job it is said, and what is said of it.
BREAKS = {
    "one_place": [
        (f"delete from mcp.jobs_ready {JOB}", "waiting", "neither waits nor is held"),
        (f"delete from mcp.job_executions {JOB}", "done", "neither waits nor is held"),
        (f"{QUEUED} select tenant_id, run_at, job_id, created_at, 3, queue from mcp.jobs {JOB}", "done", "it waits"),
        (f"delete from mcp.jobs {JOB}", "running", "there is no such job"),
    ],
    "can_be_found": [
        (f"update mcp.jobs_ready set run_at = run_at + interval '1 s' {JOB}", "waiting", "after attempt 0"),
        (f"update mcp.jobs_ready set run_at = run_at - interval '1 s' {JOB}", "retrying", "after attempt 1"),
        (f"update mcp.jobs_ready set queue = 'elsewhere' {JOB}", "waiting", "it waits in elsewhere"),
        (f"update mcp.jobs_ready set created_at = created_at + interval '1 s' {JOB}", "waiting", "as one made at"),
    ],
    "completed_once": [(AGAIN.format(later=1), "done", "it was completed 2 times")],
    "ended_once": [(AGAIN.format(later=0), "done", "attempt 1 ended as COMPLETED, COMPLETED")],
    "attempts_follow": [
        (f"delete from mcp.job_executions {JOB} and attempt = 1", "second", "1 attempts have ended, the last is 2"),
        (f"update mcp.jobs_leased set attempt = 3 {JOB}", "running", "it is where 2 would be over"),
    ],
    "nothing_after_the_end": [
        (f"update mcp.job_executions set next_run_at = null {JOB} and attempt = 1", "second", "attempt 2 followed"),
    ],
    "retries_limited": [(f"update mcp.jobs set max_retries = 0 {JOB}", "second", "again 1 times, and may be 0")],
    "never_early": [
        (f"update mcp.job_executions set started_at = started_at - interval '1 h' {JOB}", "done", "before its time"),
        (f"update mcp.jobs_leased set started_at = started_at - interval '1 h' {JOB}", "running", "before its time"),
    ],
    "dead_letters_failed": [
        (f"update mcp.dead_letter_queue set attempt = 7 {JOB}", "dead", "a dead letter of attempt 7"),
        (f"delete from mcp.jobs {JOB}", "dead", "there is no such job"),
    ],
    "failures_kept": [(f"delete from mcp.dead_letter_queue {JOB}", "dead", "attempt 1 ended as FAILED for good")],
    "parents_first": [
        (FREED, "child", "to wait for job"),
    ],
    "nobody_stranded": [
        ("delete from mcp.job_dependencies where tenant_id = $1 and child_id = $2", "child", "for others, and for none"),
        ("update mcp.jobs_leased set is_parent = false where tenant_id = $1 and $2::uuid is not null", "child",
         "will not let it go on"),
        (PARENT_DIED, "child", "will not let it go on"),
        ("update mcp.job_limits set concurrency_limit = 2 where tenant_id = $1 and $2::uuid is not null", "limited",
         "it waits for a place of key k, and there is one"),
        ("delete from mcp.job_limits where tenant_id = $1 and $2::uuid is not null", "limited",
         "it waits for a place of key k, and there is one"),
    ],
    "pauses_kept": [
        (PAUSED, "restored", "is paused since"),
    ],
    "limits_kept": [
        (f"delete from mcp.job_slots {JOB}", "placed", "under way and has no place"),
        ("update mcp.job_limits set concurrency_limit = 0 where tenant_id = $1 and $2::uuid is not null", "", "and 0 may be"),
        (CROWDED, "", "2 jobs are under way, and 1 may be"),
        ("delete from mcp.job_limits where tenant_id = $1 and $2::uuid is not null", "", "and 0 may be"),
        ("insert into mcp.job_slots (tenant_id, job_id, ready_at, queue, concurrency_key) values ($1, $2, now(), 'q', 'k')",
         "done", "has a place and is not under way"),
    ],
    "stream_whole": [
        ("delete from mcp.events where tenant_id = $1 and sequence = 3 and $2::uuid is not null", "", "before it is 2"),
    ],
    "events_agree": [
        ("delete from mcp.events where tenant_id = $1 and type = 'job.completed' and data::text like '%' || $2::uuid || '%'",
         "done", "completed: done, and not told"),
        (f"update mcp.job_executions set outcome = 'SNOOZED' {JOB}", "done", "completed: told, and not done"),
        (f"with gone as (delete from mcp.jobs_ready {JOB}) delete from mcp.jobs {JOB}", "waiting", "there is no such job"),
        (f"with gone as (delete from mcp.job_executions {JOB}) delete from mcp.jobs {JOB}", "done", "there is no such job"),
    ],
}  # fmt: skip


class History:
    """A tenant with a job in each state, by name; and a connection on which its rows can be broken, and are whole again."""

    def __init__(self, tenant: Tenant, jobs: dict[str, uuid.UUID], connection: asyncpg.Connection) -> None:
        self.tenant, self.jobs, self._connection = tenant, jobs, connection

    async def broken_by(self, sql: str, job: str) -> dict[str, Verdict]:
        """The rules that do not hold any more, with the rows broken by a statement, which is then undone."""
        undo = self._connection.transaction()
        await undo.start()
        try:
            tag = await self._connection.execute(sql, self.tenant.id, self.jobs.get(job, self.tenant.id))
            assert not tag.endswith(" 0"), f"it breaks nothing: {sql}"
            return await broken(Snapshot(self._connection), self.tenant)
        finally:
            await undo.rollback()


async def broken(seen: Snapshot, tenant: Tenant) -> dict[str, Verdict]:
    bounds = await seen.bounds(tenant)
    return {verdict.rule.name: verdict async for verdict in seen.verdicts(tenant, bounds, 3) if verdict.total}


@pytest_asyncio.fixture(scope="module")
async def history(mesh: Mesh) -> AsyncIterator[History]:
    key = mesh.new_tenant()
    async with await Wire.connect(mesh.ws_url, key) as wire:
        bench = Bench(wire, await register(wire))
        jobs = await live(bench)
    connection = await asyncpg.connect(mesh.dsn)
    try:
        row = await connection.fetchrow(
            "select t.tenant_id, t.name from mcp.tenants t join mcp.jobs j using (tenant_id) where j.job_id = $1",
            jobs["done"],
        )
        assert row is not None
        yield History(Tenant(row["tenant_id"], row["name"]), jobs, connection)
    finally:
        await connection.close()


async def live(bench: Bench) -> dict[str, uuid.UUID]:
    """Whatever may become of a job."""
    made: dict[str, Any] = {}

    async def given(name: str, **about: Any) -> dict[str, Any]:
        made[name] = await bench.enqueue(**about)
        [claimed] = await bench.claim(limit=1)
        assert claimed["id"] == made[name]["id"]
        return claimed

    restored, dead = await given("restored"), await given("dead again", max_retries=0)
    early = await given("put back while it backs off", backoff_ms=60_000)
    await bench.wire.call("job.fail", jobs=[held(dead, error="no")])
    made["sooner"] = await bench.enqueue(backoff_ms=60_000)
    snapshot = (await bench.wire.call("snapshot.create"))["snapshot"]
    await bench.wire.call("job.complete", jobs=[held(restored)])
    await bench.wire.call("job.fail", jobs=[held(early, error="no")])
    await bench.wire.call("job.retry", job_id=dead["id"])
    for sooner in await bench.claim(limit=2):
        await bench.wire.call("job.fail", jobs=[held(sooner, error="no")])
    await bench.wire.call("snapshot.restore", snapshot_id=snapshot["id"], on_conflict="overwrite")
    await bench.wire.call("job.complete", jobs=[held(again) for again in await bench.claim()])
    await bench.wire.call("job.complete", jobs=[held(await given("done"), result=1)])
    await bench.wire.call("job.fail", jobs=[held(await given("retrying", backoff_ms=60_000), error="no")])
    await bench.wire.call("job.fail", jobs=[held(await given("dead", max_retries=0), error="no")])
    await bench.wire.call("job.fail", jobs=[held(await given("given up", max_retries=0), error="no")])
    await bench.wire.call("dead_letter.discard", job_ids=[made["given up"]["id"]])
    await bench.wire.call("job.fail", jobs=[held(await given("replayed", max_retries=0), error="no")])
    await bench.wire.call("dead_letter.replay", job_ids=[made["replayed"]["id"]])
    [again] = await bench.claim()
    await bench.wire.call("job.snooze", jobs=[held(again, delay_ms=60_000)])
    await bench.wire.call("job.fail", jobs=[held(await given("second", backoff_ms=0), error="no")])
    [again] = await bench.claim()
    await bench.wire.call("job.complete", jobs=[held(again)])
    await bench.wire.call("job.release", jobs=[held(await given("released"))])
    [again] = await bench.claim()
    await bench.wire.call("job.cancel", job_id=again["id"])
    await bench.wire.call("job.release", jobs=[held(again)])
    await given("running")
    parent = await given("parent")
    made["child"] = await bench.enqueue(depends_on=[made["running"]["id"], parent["id"]])
    made["unblocked"] = await bench.enqueue(depends_on=[parent["id"]])
    made["doomed"] = await bench.enqueue(depends_on=[made["unblocked"]["id"]])
    await bench.wire.call("job.complete", jobs=[held(parent)])
    await bench.wire.call("job.cancel", job_id=made["unblocked"]["id"])
    made["waiting"] = await bench.enqueue(delay_ms=3_600_000)
    await bench.wire.call("job.complete", jobs=[held(await given("had a place", concurrency_key="k"))])
    await given("placed", concurrency_key="k")
    made["limited"] = await bench.enqueue(concurrency_key="k")
    await given("one of two", concurrency_key="fewer", concurrency_limit=2)
    await given("the other", concurrency_key="fewer", concurrency_limit=2)
    made["asks for fewer"] = await bench.enqueue(concurrency_key="fewer")
    return {name: uuid.UUID(job["id"]) for name, job in made.items()}


async def test_a_whole_history_breaks_no_rule(mesh: Mesh, history: History) -> None:
    async with snapshot(mesh.dsn) as seen:
        [tenant] = await seen.tenants([history.tenant.name])
        bounds = await seen.bounds(tenant)
        assert bounds.jobs == len(history.jobs)
        assert bounds.since <= bounds.events_since <= bounds.at
        assert await broken(seen, tenant) == {}


@pytest.mark.parametrize(
    ("rule", "sql", "job", "said"),
    [(rule, *each) for rule, ways in BREAKS.items() for each in ways],
    ids=[f"{rule}-{number}" for rule, ways in BREAKS.items() for number in range(len(ways))],
)
async def test_a_rule_finds_what_breaks_it(history: History, rule: str, sql: str, job: str, said: str) -> None:
    found = await history.broken_by(sql, job)
    assert rule in found, found
    examples = found[rule].examples
    assert any(said in example.found for example in examples), examples
    if job:
        assert f"job {history.jobs[job]}" in [example.thing for example in examples]


def test_each_rule_has_its_block_its_words_and_its_proof() -> None:
    names = [rule.name for rule in RULES]
    blocks = [statement.name.removeprefix("history.") for statement in SQL]
    assert names == [block for block in blocks if block not in ("tenants", "bounds")]
    assert names == list(BREAKS)


async def test_there_may_be_more_than_the_examples(history: History) -> None:
    found = await history.broken_by("delete from mcp.jobs_ready where tenant_id = $1 and $2::uuid is not null", "")
    waiting = {"waiting", "retrying", "replayed"}
    assert found["one_place"].total == len(waiting)
    assert {example.thing for example in found["one_place"].examples} == {
        f"job {history.jobs[each]}" for each in waiting
    }


async def test_only_what_was_made_since_then_is_judged(history: History, mesh: Mesh) -> None:
    async with snapshot(mesh.dsn) as seen:
        at = (await seen.bounds(history.tenant)).at
        assert (await seen.bounds(history.tenant, at)).jobs == 0
