"""T6: a task passes from hand to hand, with its whole history, and never in a circle."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable

import pytest

from tests.conftest import run_sql
from tests.fleet import Agent, create, fleet, get, refusal
from tests.harness import Mesh, eventually
from tests.scenarios.archive import Bystander
from tests.wire import Wire, WireError


async def test_t06_a_delegates_to_b_who_delegates_to_c(mesh: Mesh, tenant: str) -> None:
    async with fleet(mesh, tenant, a=["w"], b=["w"], c=["w"]) as (a, b, c):
        created = await create(a.wire, assign=a.id, parameters={"keep": "me"})
        first = await a.next_task()
        await a.say("delegate", first, to_agent=b.id, reason="too busy", kind="load_balance")
        second = await b.next_task()
        assert second["parameters"] == {"keep": "me"}
        assert second["delegated_from"] == a.id
        await b.say("delegate", second, capabilities=["w"], reason="whoever can")
        third = await c.next_task()
        assert (third["attempt"], third["delegation_depth"]) == (3, 2)
        assert await a.refused("complete", first) == "task.stale_attempt"
        for earlier in (a, b):
            assert await c.refused("delegate", third, to_agent=earlier.id) == "task.delegation_cycle"
        assert await c.refused("delegate", third, to_agent=c.id) == "task.delegation_cycle"
        assert await get(a.wire, created) == third
        await c.complete(third, "done")
        history = await a.wire.call("task.history", task_id=created["id"])
        assert [(step["from_agent_id"], step["to_agent_id"], step["kind"]) for step in history["delegations"]] == [
            (a.id, b.id, "load_balance"), (b.id, None, "manual"),
        ]  # fmt: skip
        assert [step["reason"] for step in history["delegations"]] == ["too busy", "whoever can"]
        tried = [(step["attempt"], step["agent_name"], step["outcome"]) for step in history["attempts"]]
        assert tried == [(1, "a", "delegated"), (2, "b", "delegated"), (3, "c", "completed")]
        steps = ["created", *["assigned", "delegated"] * 2, "assigned", "completed"]
        assert [event["type"] for event in history["events"]] == [f"task.{step}" for step in steps]
        assert history["next_cursor"] is None


async def test_t06_a_circle_by_capabilities_is_no_way_round(mesh: Mesh, tenant: str) -> None:
    """A to B to C by name, and C to whoever can: it does not come back to A or B, however idle they are."""
    async with fleet(mesh, tenant, a=["w"], b=["w"], c=["w"]) as (a, b, c):
        created = await create(a.wire, assign=a.id)
        for agent, following in ((a, b), (b, c)):
            await agent.say("delegate", await agent.next_task(), to_agent=following.id)
        await c.say("delegate", await c.next_task(), capabilities=["w"])
        await b.wire.call("task.create", title="later", required_capabilities=["w"])
        await a.wire.next_event("task.assigned", 5, lambda event: event["data"]["task"]["title"] == "later")
        explained = await a.wire.call("task.explain", task_id=created["id"])
        assert explained["explanation"]["reason"] == "all_excluded"


async def test_t06_the_sixth_level_is_refused(mesh: Mesh, tenant: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(await Agent.join(mesh, tenant, f"level-{n}")) for n in range(7)]
        await create(agents[0].wire, assign=agents[0].id)
        for agent, following in itertools.pairwise(agents[:6]):
            await agent.say("delegate", await agent.next_task(), to_agent=following.id)
        last = await agents[5].next_task()
        assert last["delegation_depth"] == 5
        assert await agents[5].refused("delegate", last, to_agent=agents[6].id) == "task.delegation_depth"
        assert (await get(agents[5].wire, last)) == last


async def test_t06_only_the_holder_or_an_administrator_delegates(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as admin:
        keys = [(await admin.call("key.create", kind="agent"))["secret"] for _ in range(2)]
        async with (
            await Agent.join(mesh, keys[0], "holder") as holder,
            await Agent.join(mesh, keys[1], "other") as other,
        ):
            created = await create(holder.wire, assign=holder.id)
            task = await holder.next_task()
            for verb, params in (
                ("delegate", {"to_agent": other.id}),
                ("complete", {}),
                ("progress", {"progress": 0.1}),
            ):
                assert await other.refused(verb, task, **params) == "forbidden"
            assert (await refusal(other.wire, "task.reassign", task_id=task["id"])).kind == "forbidden"
            assert await get(admin, created) == task
            await admin.call("task.delegate", task_id=task["id"], to_agent=other.id)
            assert (await other.next_task())["attempt"] == 2


async def test_an_administrator_reassigns(mesh: Mesh, tenant: str) -> None:
    async with fleet(mesh, tenant, a=["w"], b=["w"]) as (a, b):
        created = await create(a.wire, assign=a.id)
        task = await a.next_task()
        given = (await b.wire.call("task.reassign", task_id=created["id"], to_agent=b.id))["task"]
        assert (given["status"], given["assigned_to"], given["attempt"]) == ("assigned", b.id, 2)
        assert await a.refused("complete", task) == "task.stale_attempt"
        await b.complete(await b.next_task())


async def test_a_delegation_waits_for_an_agent_that_is_full(mesh: Mesh, tenant: str) -> None:
    async with fleet(mesh, tenant, a=[], b=[]) as (a, b):
        await create(b.wire, "first", assign=b.id)
        first = await b.next_task()
        await create(a.wire, "second", assign=a.id)
        waiting = await a.say("delegate", await a.next_task(), to_agent=b.id)
        assert (waiting["status"], waiting["target_agent_id"]) == ("pending", b.id)
        explained = await a.wire.call("task.explain", task_id=waiting["id"])
        assert explained["explanation"]["reason"] == "target_unavailable"
        await b.complete(first)
        assert (await b.next_task())["title"] == "second"


async def test_an_agent_that_leaves_for_good_strands_nothing(mesh: Mesh, tenant: str) -> None:
    async with fleet(mesh, tenant, leaver=[], stayer=[]) as (leaver, stayer):
        own = {"parameters": {"keep": "me"}, "metadata": {"me": "too"}}
        held = await create(stayer.wire, "held", assign=leaver.id, **own)
        await leaver.next_task()
        waiting = await create(stayer.wire, "waiting", assign=leaver.id)
        await leaver.wire.call("agent.deregister")
        given = [await stayer.next_task()]
        await stayer.complete(given[0])
        given.append(await stayer.next_task())
        assert {task["id"] for task in given} == {held["id"], waiting["id"]}
        assert own.items() <= next(task for task in given if task["id"] == held["id"]).items()
        assert (await refusal(stayer.wire, "task.create", title="late", assign=leaver.id)).kind == "not_found"


async def test_what_waits_for_an_agent_that_leaves_is_given_away_in_parts_if_it_is_much(
    own_mesh: Callable[..., Mesh],
) -> None:
    mesh = own_mesh("rest-api", "mcp-server")
    async with fleet(mesh, mesh.new_tenant(), leaver=[], stayer=[]) as (leaver, stayer):
        of_tenant = f"tenant_id = '{stayer.wire.initialized['tenant_id']}'"
        await create(stayer.wire, assign=leaver.id)
        columns = "created_by_key_id, assign, strategy, max_retries, timeout_s, lease_s, title, type, priority"
        run_sql(
            mesh.dsn,
            f"insert into mcp.tasks (tenant_id, task_id, target_agent_id, status, {columns})"
            f" select tenant_id, gen_random_uuid(), '{leaver.id}', 'pending', {columns}"
            f" from mcp.tasks, generate_series(1, 2500) where {of_tenant}",
        )

        def count_waiting() -> int:
            waiting = f"{of_tenant} and status = 'pending' and target_agent_id = '{leaver.id}'"
            return int(run_sql(mesh.dsn, f"select count(*) from mcp.tasks where {waiting}"))

        before = count_waiting()
        await leaver.wire.call("agent.deregister")
        assert count_waiting() == before - 2_000, "what more there is would make its transaction long"
        mesh.start("worker")

        async def is_over() -> bool:
            return count_waiting() == 0

        await eventually(is_over, "the others follow")
        assert (await stayer.next_task())["target_agent_id"] is None


async def test_an_agent_that_leaves_while_a_task_is_made_for_it_strands_nothing(
    mesh: Mesh, tenant: str, bystander: Bystander
) -> None:
    async with fleet(mesh, tenant, leaver=[], stayer=[]) as (leaver, stayer):
        tenant_id = stayer.wire.initialized["tenant_id"]
        await bystander.begin("select pg_advisory_xact_lock(hashtextextended($1, 7))", tenant_id)
        creating = asyncio.ensure_future(create(stayer.wire, "late", assign=leaver.id))
        await bystander.are_held_up(1)
        leaving = asyncio.ensure_future(leaver.wire.call("agent.deregister"))
        await bystander.are_held_up(2)
        await bystander.commit()
        await asyncio.gather(creating, leaving)
        assert (await stayer.next_task())["title"] == "late"


async def test_nor_is_a_task_made_for_an_agent_that_is_about_to_leave(
    mesh: Mesh, tenant: str, bystander: Bystander
) -> None:
    async with fleet(mesh, tenant, leaver=[], stayer=[]) as (leaver, stayer):
        tenant_id = stayer.wire.initialized["tenant_id"]
        await bystander.begin("select pg_advisory_xact_lock(hashtextextended($1, 7))", tenant_id)
        leaving = asyncio.ensure_future(leaver.wire.call("agent.deregister"))
        await bystander.are_held_up(1)
        creating = asyncio.ensure_future(create(stayer.wire, "too late", assign=leaver.id))
        await bystander.are_held_up(2)
        await bystander.commit()
        await leaving
        with pytest.raises(WireError) as refused:
            await creating
        assert refused.value.kind == "not_found"


async def test_a_task_is_retried_by_others_when_the_agent_that_it_was_meant_for_has_left(
    mesh: Mesh, tenant: str
) -> None:
    async with fleet(mesh, tenant, leaver=[], stayer=[]) as (leaver, stayer):
        for_the_leaver = await create(stayer.wire, assign=leaver.id)
        await leaver.say("fail", await leaver.next_task(), retryable=False)
        for_the_stayer = await create(leaver.wire, assign=stayer.id)
        await stayer.say("fail", await stayer.next_task(), retryable=False)
        await leaver.wire.call("agent.deregister")
        for failed, target in ((for_the_leaver, None), (for_the_stayer, stayer.id)):
            retried = (await stayer.wire.call("task.retry", task_id=failed["id"]))["task"]
            assert retried["target_agent_id"] == target
            await stayer.complete(await stayer.next_task())
