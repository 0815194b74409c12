"""T1-T5, T12, T13, T17, T18: the life of a task, as its creator and its agent see it over the wire."""

from __future__ import annotations

import asyncio
import datetime

from tests.fleet import Agent, create, fleet, get, refusal, wait
from tests.harness import Mesh
from tests.wire import Wire


def time_of(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


async def test_t01_discovery_finds_exactly_the_capable_agents(mesh: Mesh, tenant: str) -> None:
    async with fleet(mesh, tenant, reader=["read"], writer=["read", "write"], counter=["count"]) as (reader, writer, _):
        for wanted, expected in (
            (["read"], {reader.id, writer.id}),
            (["write", "read"], {writer.id}),
            (["fly"], set()),
        ):
            found = await reader.wire.call("agent.discover", capabilities=wanted)
            assert {agent["id"] for agent in found["agents"]} == expected


async def test_t02_the_mesh_picks_exactly_the_capable_agent(mesh: Mesh, tenant: str) -> None:
    async with fleet(mesh, tenant, reader=["read"], writer=["write"], both=["read", "count"]) as (_, writer, both):
        first = await create(writer.wire, required_capabilities=["write"])
        second = await create(writer.wire, required_capabilities=["count", "read"])
        assert (await writer.next_task())["id"] == first["id"]
        assert (await both.next_task())["id"] == second["id"]


async def test_t03_every_step_is_an_event_in_order_at_creator_and_assignee(mesh: Mesh, tenant: str) -> None:
    async with fleet(mesh, tenant, creator=[], worker=["work"]) as (creator, worker):
        created = await create(creator.wire, required_capabilities=["work"], parameters={"n": [1, None, "x"]})
        task = await worker.next_task()
        assert task["parameters"] == {"n": [1, None, "x"]}
        await worker.say("accept", task)
        for part in (0.25, 0.25, 0.75):
            await worker.say("progress", task, progress=part, message=f"{part} done")
        assert await worker.refused("progress", task, progress=0.5) == "task.progress"
        ended = await worker.complete(task, {"answer": 42})
        assert (ended["status"], ended["progress"], ended["result"]) == ("completed", 1.0, {"answer": 42})
        steps = ["assigned", "accepted", "progress", "progress", "progress", "completed"]
        for agent, expected in ((creator, ["created", *steps]), (worker, steps)):
            await agent.wire.next_event("task.completed")
            mine = [event for event in agent.wire.events if event["data"].get("task", {}).get("id") == task["id"]]
            assert [event["type"] for event in mine] == [f"task.{step}" for step in expected]
            versions = [event["data"]["task"]["version"] for event in mine]
            assert versions == list(range(versions[0], versions[0] + len(versions)))
        assert await get(creator.wire, created) == ended


async def test_t03_accept_and_start_may_be_left_out(mesh: Mesh, tenant: str) -> None:
    async with await Agent.join(mesh, tenant, "terse") as agent:
        await create(agent.wire)
        task = await agent.next_task()
        assert (await agent.complete(task))["status"] == "completed"
        assert await agent.refused("complete", task) == "task.state"


async def test_t04_a_rejected_task_goes_to_another_agent_and_never_comes_back(mesh: Mesh, tenant: str) -> None:
    async with fleet(mesh, tenant, first=["work"], second=["work"]) as both:
        await create(both[0].wire, required_capabilities=["work"])
        by_id = {agent.id: agent for agent in both}
        given = await both[0].wire.next_event("task.assigned", 5)
        picky = by_id.pop(given["data"]["task"]["assigned_to"])
        [other] = by_id.values()
        rejected = await picky.say("reject", given["data"]["task"], reason="not mine")
        assert (rejected["status"], rejected["attempt"], rejected["assigned_to"]) == ("pending", 2, None)
        again = await other.next_task()
        assert again["attempt"] == 2
        await other.say("reject", again)
        explained = await other.wire.call("task.explain", task_id=again["id"])
        assert explained["explanation"]["reason"] == "all_excluded"
        assert await picky.refused("complete", given["data"]["task"]) == "task.stale_attempt"


async def test_t05_a_failed_task_waits_longer_each_time_and_then_fails_for_good(mesh: Mesh, tenant: str) -> None:
    async with await Agent.join(mesh, tenant, "clumsy") as agent:
        created = await create(agent.wire, max_retries=2)
        failed, delays_s = created, []
        for retry in range(2):
            task = await agent.next_task()
            assert task["retry_count"] == retry
            failed = await agent.say("fail", task, error={"try": retry})
            assert (failed["status"], failed["retry_count"]) == ("pending", retry + 1)
            delays_s.append((time_of(failed["ready_at"]) - time_of(failed["updated_at"])).total_seconds())
            explained = await agent.wire.call("task.explain", task_id=task["id"])
            assert explained["explanation"]["reason"] == "backing_off"
        assert 0.8 <= delays_s[0] <= 1.2 < 1.6 <= delays_s[1] <= 2.4
        last = await agent.next_task()
        assert time_of(last["assigned_at"]) >= time_of(failed["ready_at"])
        await agent.say("fail", last, error={"try": 2})
        ended = await wait(agent.wire, created)
        assert (ended["status"], ended["retry_count"], ended["attempt"]) == ("failed", 2, 3)
        assert ended["error"] == {"try": 2}
        history = await agent.wire.call("task.history", task_id=created["id"])
        assert [(tried["attempt"], tried["outcome"], tried["error"]) for tried in history["attempts"]] == [
            (1, "failed", {"try": 0}), (2, "failed", {"try": 1}), (3, "failed", {"try": 2}),
        ]  # fmt: skip


async def test_t05_a_retry_is_given_out_in_time_however_busy_others_are(mesh: Mesh, tenant: str) -> None:
    """Nothing rings when a task's wait is over, and the bell of another tenant keeps the assigner from ever resting."""

    async def be_busy(wire: Wire) -> None:
        while True:
            await wire.call("task.create", title="noise", assign="pull")

    async with (
        await Agent.join(mesh, tenant, "quiet") as agent,
        await Wire.connect(mesh.ws_url, mesh.new_tenant()) as other,
        asyncio.TaskGroup() as group,
    ):
        noise = group.create_task(be_busy(other))
        await create(agent.wire, max_retries=1)
        failed = await agent.say("fail", await agent.next_task())
        again = await agent.next_task()
        assert time_of(again["assigned_at"]) - time_of(failed["ready_at"]) < datetime.timedelta(seconds=4)
        noise.cancel()


async def test_t05_a_failure_that_is_not_retryable_ends_at_once_and_can_be_retried_by_hand(
    mesh: Mesh, tenant: str
) -> None:
    async with await Agent.join(mesh, tenant, "strict") as agent:
        created = await create(agent.wire, max_retries=5)
        await agent.say("fail", await agent.next_task(), retryable=False)
        assert (await wait(agent.wire, created))["status"] == "failed"
        again = (await agent.wire.call("task.retry", task_id=created["id"]))["task"]
        assert (again["status"], again["retry_count"], again["error"]) == ("pending", 0, None)
        await agent.complete(await agent.next_task())
        assert (await wait(agent.wire, created))["error"] is None


async def test_t12_a_cancellation_reaches_every_unfinished_task_of_the_tree(mesh: Mesh, tenant: str) -> None:
    async with await Agent.join(mesh, tenant, "holder", "hold", concurrency=2) as agent:
        root = await create(agent.wire, "root", assign="pull")
        children = [
            await create(agent.wire, "held", parent_id=root["id"], required_capabilities=["hold"]),
            await create(agent.wire, "done", parent_id=root["id"], required_capabilities=["hold"]),
            await create(agent.wire, "waiting", parent_id=root["id"], assign="pull"),
        ]
        deep = await create(agent.wire, "deep", parent_id=children[2]["id"], assign="pull")
        tasks = {task["title"]: task for task in [await agent.next_task(), await agent.next_task()]}
        await agent.complete(tasks["done"])
        await agent.wire.call("task.cancel", task_id=root["id"], reason="no longer wanted")
        states = [(await get(agent.wire, task))["status"] for task in (root, *children, deep)]
        assert states == ["cancelled", "cancelled", "completed", "cancelled", "cancelled"]
        told = await agent.wire.next_event("task.cancelled", 2, lambda e: e["data"]["task"]["id"] == children[0]["id"])
        assert told["data"]["task"]["error"] == {"message": "no longer wanted"}
        assert await agent.refused("complete", tasks["held"]) == "task.state"
        assert (await refusal(agent.wire, "task.create", title="late", parent_id=root["id"])).kind == "not_found"
        assert (await refusal(agent.wire, "task.cancel", task_id=root["id"])).reason == "task.state"


async def test_t12_children_that_come_during_the_cancellation_are_reached_or_refused(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        for _ in range(10):
            root = await create(wire, "root", assign="pull")
            middle = await create(wire, "middle", assign="pull", parent_id=root["id"])

            async def child(parent_id: str) -> None:
                await wire.ask("task.create", {"title": "child", "assign": "pull", "parent_id": parent_id})

            parents = [root["id"], middle["id"]] * 10
            await asyncio.gather(
                *(child(parent) for parent in parents[:10]),
                wire.call("task.cancel", task_id=root["id"]),
                *(child(parent) for parent in parents[10:]),
            )
        left = await wire.call("task.list", status=["pending", "assigned", "accepted", "running"])
        assert left["tasks"] == []


async def test_t13_a_task_that_runs_too_long_times_out(mesh: Mesh, tenant: str) -> None:
    async with await Agent.join(mesh, tenant, "slow") as agent:
        created = await create(agent.wire, timeout_s=0.3)
        task = await agent.next_task()
        ended = await wait(agent.wire, created, within_s=5)
        assert (ended["status"], ended["attempt"]) == ("timed_out", 1)
        assert "timeout of 0.3 s" in ended["error"]["message"]
        assert await agent.refused("complete", task) == "task.state"


async def test_t13_a_deadline_ends_a_task_that_waits_and_one_that_runs(mesh: Mesh, tenant: str) -> None:
    async with await Agent.join(mesh, tenant, "late", "be-late") as agent:
        soon = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2.5)).isoformat()
        waiting = await create(agent.wire, deadline=soon, assign="pull")
        running = await create(agent.wire, deadline=soon, required_capabilities=["be-late"])
        await agent.next_task()
        for task in (waiting, running):
            ended = await wait(agent.wire, task, within_s=5)
            assert ended["status"] == "timed_out"
            assert "deadline" in ended["error"]["message"]
        assert (await refusal(agent.wire, "task.retry", task_id=waiting["id"])).reason == "task.deadline"
        wrong = {"2020-01-01T00:00:00Z": "conflict", "2999-01-01T00:00:00": "invalid_params"}  # past; of no zone
        for deadline, kind in wrong.items():
            refused = await refusal(agent.wire, "task.create", title="late", deadline=deadline)
            assert (refused.kind, refused.data["field"]) == (kind, "deadline")


URGENCIES = [("a", 1), ("b", 3), ("c", 5), ("d", 3), ("e", 5), ("f", 3)]
BY_URGENCY = ["c", "e", "b", "d", "f", "a"]  # equal ones in the order of their creation


async def test_t17_claims_give_the_most_urgent_first_and_equal_ones_in_order(mesh: Mesh, tenant: str) -> None:
    async with await Agent.join(mesh, tenant, "puller") as agent:
        tasks = [{"title": title, "priority": priority, "assign": "pull"} for title, priority in URGENCIES]
        await agent.wire.call("task.create_many", tasks=tasks)
        order = []
        for _ in tasks:
            [task] = (await agent.wire.call("task.claim"))["tasks"]
            order.append(task["title"])
            await agent.complete(task)
        assert order == BY_URGENCY


async def test_t17_the_mesh_pushes_the_most_urgent_first_and_equal_ones_in_order(mesh: Mesh, tenant: str) -> None:
    async with await Agent.join(mesh, tenant, "pushed") as agent:
        await create(agent.wire, "keeps the agent busy until all the others wait")
        task = await agent.next_task()
        await agent.wire.call("task.create_many", tasks=[{"title": t, "priority": p} for t, p in URGENCIES])
        order = []
        for _ in URGENCIES:
            await agent.complete(task)
            task = await agent.next_task()
            order.append(task["title"])
        assert order == BY_URGENCY


async def test_t18_one_bad_call_in_a_batch_gets_its_own_error_and_the_others_succeed(mesh: Mesh, tenant: str) -> None:
    wrongs = [
        {"title": "x", "priority": 9},
        {"title": "x", "assign": "nobody in particular"},
        {"title": "x", "parent_id": "00000000-0000-7000-8000-000000000000"},
        {"title": "x", "description": "NUL \u0000 cannot be stored"},
        {"title": "x", "idempotency_key": ""},
    ]
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        for number, wrong in enumerate(wrongs):
            batch = [
                {"jsonrpc": "2.0", "id": f"{number}.{place}", "method": "task.create",
                 "params": wrong if place == 37 else {"title": f"{number}.{place}", "assign": "pull"}}
                for place in range(100)
            ]  # fmt: skip
            await wire.send(batch)
            answers = [await wire.answer(f"{number}.{place}") for place in range(100)]
            refused = [place for place, answer in enumerate(answers) if "error" in answer]
            assert refused == [37], wrong
            assert answers[37]["error"]["data"]["kind"] in ("invalid_params", "not_found")
            titles = [answer["result"]["task"]["title"] for place, answer in enumerate(answers) if place != 37]
            assert titles == [f"{number}.{place}" for place in range(100) if place != 37]
        stats = await wire.call("task.stats")
        assert (stats["total"], stats["counts"]["pending"]) == (99 * len(wrongs), 99 * len(wrongs))
