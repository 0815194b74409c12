"""E8: an old state with the events after it gives the fresh state, for every event type that there is."""

from __future__ import annotations

import datetime
from typing import Any

from devmesh.core.events import TYPES
from tests.conftest import run_sql
from tests.harness import Mesh, eventually
from tests.wire import Wire

# Measurements and counts, which are asked for and not told.
ASKED_FOR = {
    "active_tasks", "sessions", "load", "metrics", "last_seen_at", "current_load", "heartbeat_at", "health_score",
    "missed_beats",
}  # fmt: skip
# Needs an embedder, which is an extra: tests/engine/test_context_embedder.py holds its event against the fresh state.
SHOWN_ELSEWHERE = {"context.embedded"}
# Of what moves by the thousand, events tell where it is; the rest is asked for.
TOLD = {
    "job": {"queue", "type", "status", "attempt", "retry_count", "priority"},
    "queue": {"queue", "paused_at", "reason", "rate_per_s", "burst"},
}


def apply_event(state: dict[str, dict[str, Any]], event: dict[str, Any]) -> None:
    """What a reader has to do, and all that it has to know: a noun with its `id` and the fields that changed."""
    noun, data = event["type"].partition(".")[0], event["data"]
    if noun == "job":  # many at once: what stands beside them holds for all of them
        common = {name: value for name, value in data.items() if name != "jobs"}
        for patch in data["jobs"]:
            new = {"noun": noun, "attempt": 0, "retry_count": 0, "is_cancel_requested": False}
            state.setdefault(patch["id"], new).update({**common, **patch})
    elif noun == "queue":
        state.setdefault(data["queue"], {"noun": noun}).update(data)
    else:
        patch = data[noun]
        state.setdefault(patch["id"], {"noun": noun}).update(patch)


async def differences(state: dict[str, dict[str, Any]], wire: Wire, gone: set[str]) -> dict[str, Any]:
    """Where what was told and what is there are not the same."""
    found = {}
    for thing_id, told in state.items():
        if thing_id not in gone:
            noun = told["noun"]
            if noun == "queue":
                queues = (await wire.call("job.stats"))["queues"]
                fresh = next(queue for queue in queues if queue["queue"] == thing_id)
            else:
                fresh = (await wire.call(f"{noun}.get", **{f"{noun}_id": thing_id}))[noun]
            for name in fresh.keys() & TOLD[noun] if noun in TOLD else fresh.keys() - ASKED_FOR:
                if told.get(name, "never told") != fresh[name]:
                    found[f"{noun}.{name} of {thing_id}"] = (told.get(name, "never told"), fresh[name])
    return found


async def test_e08_old_state_and_events_give_the_fresh_state(mesh: Mesh, tenant: str) -> None:
    state: dict[str, dict[str, Any]] = {}
    async with await Wire.connect(mesh.ws_url, tenant) as reader, await Wire.connect(mesh.ws_url, tenant) as wire:
        await reader.call("subscribe", topics=["tenant"])
        gone = await walk_through_everything(mesh, tenant, wire)
        differing: dict[str, Any] = {}

        async def is_same() -> bool:
            """Things still move when the walk ends; the events bring each of their moves."""
            state.clear()
            for event in list(reader.events):
                apply_event(state, event)
            differing.clear()
            differing.update(await differences(state, wire, gone))
            return not differing

        await eventually(is_same, f"events tell what is there: {differing}", within_s=5)
        assert {event["type"] for event in reader.events} == set(TYPES) - SHOWN_ELSEWHERE
        assert len(state) > 12


async def walk_through_everything(mesh: Mesh, key: str, wire: Wire) -> set[str]:
    """Makes every event happen at least once. Answers with the ids of what is not there any more."""
    one = (await wire.call("agent.register", name="one", capabilities=["sum"], concurrency=20))["agent"]["id"]
    other = await Wire.connect(mesh.ws_url, key)
    two = (await other.call("agent.register", name="two", capabilities=["sum"], concurrency=20))["agent"]["id"]
    await wire.call("agent.update", description="adds", metadata={"v": 1})

    async def given(agent: Wire, **about: Any) -> dict[str, Any]:
        agent_id = one if agent is wire else two
        created = (await wire.call("task.create", **{"title": "t", "assign": agent_id, **about}))["task"]["id"]
        event = await agent.next_event("task.assigned", where=lambda event: event["data"]["task"]["id"] == created)
        task: dict[str, Any] = event["data"]["task"]
        return {"task_id": task["id"], "attempt": task["attempt"]}

    done = await given(wire)
    await wire.call("task.accept", **done)
    await wire.call("task.progress", **done, progress=0.25, message="a quarter")
    await wire.call("task.complete", **done, result={"sum": 3})
    await wire.call("task.reject", **await given(wire), reason="not mine")
    failed = await given(wire, max_retries=0)
    await wire.call("task.fail", **failed, error={"message": "no"})
    await wire.call("task.retry", task_id=failed["task_id"])
    await wire.call("task.fail", **await given(wire, max_retries=1), error="once more")
    await wire.call("task.cancel", task_id=(await given(wire))["task_id"], reason="enough")
    await wire.call("task.delegate", **await given(wire), to_agent=two, reason="yours")
    await wire.call("task.reassign", task_id=(await given(wire))["task_id"], to_agent=two)
    await given(wire, lease_s=0.5)  # is not heard of again
    await wire.next_event("task.lease_expired")
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=0.3)
    late = (await wire.call("task.create", title="late", assign="pull", deadline=soon.isoformat()))["task"]["id"]
    whole = await wire.call(
        "task.create_distributed",
        title="whole",
        distribution="pipeline",
        subtasks=[{"title": "first", "assign": one}, {"title": "second", "assign": one, "parameters": {"own": 1}}],
    )
    for subtask in whole["subtasks"]:
        event = await wire.next_event("task.assigned", where=lambda e: e["data"]["task"]["id"] == subtask["id"])  # noqa: B023
        attempt = event["data"]["task"]["attempt"]
        await wire.call("task.complete", task_id=subtask["id"], attempt=attempt, result=7)

    async def has_ended(task_id: str) -> bool:
        status: str = (await wire.call("task.get", task_id=task_id))["task"]["status"]
        return status in ("completed", "timed_out")

    await eventually(lambda: has_ended(late), "the deadline passes")
    await eventually(lambda: has_ended(whole["task"]["id"]), "the pipeline ends")
    gone = await walk_through_jobs(mesh, wire)
    await other.call("agent.deregister")
    await other.close()
    return {two, *gone}


async def walk_through_jobs(mesh: Mesh, wire: Wire) -> set[str]:
    """Answers with what is not there any more."""
    worker = (await wire.call("worker.register", name="w", capacity=100))["worker"]["id"]

    async def enqueued(**about: Any) -> dict[str, Any]:
        job: dict[str, Any] = (await wire.call("job.enqueue", type="t", **about))["job"]
        return job

    async def given(**about: Any) -> dict[str, Any]:
        job = await enqueued(**about)
        queues = [about.get("queue", "default")]
        [claimed] = (await wire.call("job.claim", worker_id=worker, limit=1, queues=queues))["jobs"]
        assert claimed["id"] == job["id"]
        return {"job_id": job["id"], "attempt": claimed["attempt"]}

    done = await given()
    await wire.call("job.heartbeat", jobs=[{**done, "progress": 0.5}])
    await wire.call("job.complete", jobs=[done])
    await wire.call("job.fail", jobs=[{**await given(max_retries=0), "error": "no"}])
    await wire.call("dead_letter.replay", all=True)
    [again] = (await wire.call("job.claim", worker_id=worker))["jobs"]
    await wire.call("job.fail", jobs=[{"job_id": again["id"], "attempt": again["attempt"], "error": "no"}])
    await wire.call("dead_letter.discard", all=True)
    await wire.call("job.fail", jobs=[{**await given(backoff_ms=60_000), "error": "again"}])
    late = await given()
    await wire.call("job.snooze", jobs=[{**late, "delay_ms": 60_000}])
    stopped = await given()
    await wire.call("job.cancel", job_id=stopped["job_id"])
    await wire.call("job.release", jobs=[stopped])
    await wire.call("job.cancel", job_id=(await enqueued())["id"])
    parent = await given()
    child = await enqueued(depends_on=[parent["job_id"]])
    third, fourth, fifth = [await enqueued(priority=1) for _ in range(3)]
    for job_id, parent_id in (
        (third["id"], child["id"]),
        (fourth["id"], child["id"]),
        (fifth["id"], late["job_id"]),
    ):  # each comes to have the other's priority
        await wire.call("job.depend", job_id=job_id, depends_on=[parent_id])
    await wire.call("job.cancel", job_id=fourth["id"])
    await wire.call("job.retry", job_id=fourth["id"])
    await wire.call("job.complete", jobs=[parent])
    await wire.call("job.cancel", job_id=child["id"])
    await wire.call("queue.pause", queue="default", reason="enough")
    await wire.call("queue.resume", queue="default")
    await wire.call("queue.limit", queue="default", rate_per_s=1_000)
    await wire.call("queue.limit", queue="default", rate_per_s=None)
    old = (await enqueued(queue="old", priority=1))["id"]
    for table in ("jobs", "jobs_ready"):
        run_sql(mesh.dsn, f"update mcp.{table} set run_at = run_at - interval '61 s' where job_id = '{old}'")

    async def is_promoted() -> bool:
        return bool((await wire.call("job.get", job_id=old))["job"]["priority"] == 2)

    await eventually(is_promoted, "a job that has waited for long is promoted")
    first = await given(concurrency_key="k", unique_key="u")
    second = await enqueued(concurrency_key="k")
    assert (await wire.call("job.enqueue", type="t", unique_key="u"))["is_duplicate"]
    await wire.call("job.complete", jobs=[first])
    await wire.call("job.cancel", job_id=second["id"])
    await wire.call("job.retry", job_id=second["id"])
    await wire.call("job.cancel", job_id=second["id"])
    schedule = (await wire.call("schedule.create", name="s", interval_s=3_600, job={"type": "t", "queue": "old"}))[
        "schedule"
    ]
    for act in ("pause", "resume", "trigger"):
        await wire.call(f"schedule.{act}", schedule_id=schedule["id"])
    await wire.call("schedule.update", schedule_id=schedule["id"], cron="0 0 1 1 *")
    brief = (await wire.call("schedule.create", name="brief", interval_s=3_600, job={"type": "t"}))["schedule"]
    await wire.call("schedule.delete", schedule_id=brief["id"])
    await given()
    await wire.call("context.store", type="t", text="how it was done")
    context = (await wire.call("context.store", type="t", text="how it was not done"))["context"]
    await wire.call("context.delete", context_id=context["id"])
    held = await given(queue="lost")
    snapshot = (await wire.call("snapshot.create"))["snapshot"]
    run_sql(mesh.dsn, f"delete from mcp.jobs_leased where job_id = '{held['job_id']}'")
    run_sql(mesh.dsn, f"delete from mcp.jobs where job_id = '{held['job_id']}'")
    await wire.call("snapshot.restore", snapshot_id=snapshot["id"])
    other = (await wire.call("snapshot.create"))["snapshot"]
    await wire.call("snapshot.delete", snapshot_id=other["id"])
    await wire.call("worker.evacuate", worker_id=worker, reason="maintenance")
    about = {"heartbeat_interval_s": 0.1, "stale_after_s": 0.5}
    silent = (await wire.call("worker.register", name="silent", **about))["worker"]["id"]

    async def is_given_up() -> bool:
        return bool((await wire.call("worker.get", worker_id=silent))["worker"]["status"] == "FAILED")

    await eventually(is_given_up, "a silent worker is given up")
    await wire.call("worker.deregister", worker_id=silent)
    return {brief["id"], other["id"], context["id"]}
