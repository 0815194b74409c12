"""T9, T10 and the strategies: who gets what, exactly once and never beyond an agent's room."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import run_sql
from tests.fleet import Agent, create, fleet, refusal
from tests.harness import Mesh, eventually
from tests.wire import Wire


@pytest.mark.timeout(240)
async def test_t09_eight_claimers_and_ten_thousand_tasks_each_granted_once(mesh: Mesh, tenant: str) -> None:
    total = 10_000
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        for begin in range(0, total, 1000):
            tasks = [{"title": str(begin + place), "assign": "pull"} for place in range(1000)]
            await wire.call("task.create_many", tasks=tasks)
        granted: list[str] = []

        async def claim_all(name: str) -> None:
            async with await Agent.join(mesh, tenant, name, concurrency=10_000) as agent:
                while True:
                    tasks = (await agent.wire.call("task.claim", limit=100))["tasks"]
                    if not tasks and len(granted) >= total:
                        return
                    granted.extend(task["id"] for task in tasks)
                    assert all((task["assigned_to"], task["attempt"]) == (agent.id, 1) for task in tasks)

        async with asyncio.timeout(90):
            await asyncio.gather(*(claim_all(f"claimer-{number}") for number in range(8)))
        assert len(granted) == len(set(granted)) == total
        assert (await wire.call("task.stats"))["counts"]["assigned"] == total


async def test_t10_concurrency_is_never_exceeded_under_fifty_creators(own_mesh: Callable[..., Mesh]) -> None:
    """Three nodes assign and the agents claim besides. The event stream is in the order of the commits, so that what each
    agent held at any moment can be counted from it."""
    mesh = own_mesh("rest-api", "mcp-server", "worker", "worker", "worker")
    key, limits = mesh.admin_key, {"narrow": 1, "wide": 4}
    async with contextlib.AsyncExitStack() as stack:
        watcher = await stack.enter_async_context(await Wire.connect(mesh.ws_url, key))
        await watcher.call("subscribe", topics=["tenant"])
        agents = [
            await stack.enter_async_context(await Agent.join(mesh, key, name, concurrency=limit))
            for name, limit in limits.items()
        ]
        creators = [await stack.enter_async_context(await Wire.connect(mesh.ws_url, key)) for _ in range(50)]

        async def work(agent: Agent) -> None:
            while True:
                await agent.complete(await agent.next_task(within_s=60))

        async def claim(agent: Agent) -> None:
            while True:
                await agent.wire.call("task.claim", limit=10)

        busy = [asyncio.ensure_future(act(agent)) for agent in agents for act in (work, claim)]
        created = await asyncio.gather(*(create(wire) for wire in creators for _ in range(4)))
        await eventually(lambda: count(watcher, "task.completed") == len(created), "every end is told", 40)
        for act in busy:
            act.cancel()
        await asyncio.wait(busy)
        names = {agent.id: agent.name for agent in agents}
    assert most_held(watcher.events, names) == limits, "they were filled, and never beyond"


def count(wire: Wire, event_type: str) -> int:
    return sum(event["type"] == event_type for event in wire.events)


def most_held(events: list[dict[str, Any]], names: dict[str, str]) -> dict[str, int]:
    """The most that each agent held at any moment, by the log."""
    held: collections.Counter[str] = collections.Counter()
    most: collections.Counter[str] = collections.Counter()
    holder: dict[str, str] = {}
    for event in events:
        task = event["data"].get("task", {})
        if event["type"] == "task.assigned":
            name = holder[task["id"]] = names[task["assigned_to"]]
            held[name] += 1
            most[name] = max(most[name], held[name])
        elif event["type"] == "task.completed":
            held[holder.pop(task["id"])] -= 1
    assert not holder, "every task has ended"
    return dict(most)


async def test_least_loaded_spreads_over_all_that_can(mesh: Mesh, tenant: str) -> None:
    async with fleet(mesh, tenant, a=["w"], b=["w"], c=["w"]) as agents:
        for _ in agents:
            await create(agents[0].wire, required_capabilities=["w"])
        tasks = [await agent.next_task() for agent in agents]
        assert len({task["id"] for task in tasks}) == 3


async def test_round_robin_takes_turns(mesh: Mesh, tenant: str) -> None:
    async with fleet(mesh, tenant, a=["w"], b=["w"], c=["w"]) as agents:
        turns = []
        for _ in range(6):
            task = await create(agents[0].wire, strategy="round_robin", required_capabilities=["w"])
            event = await agents[0].wire.next_event("task.assigned", 5)
            assert event["data"]["task"]["id"] == task["id"]
            [agent] = [agent for agent in agents if agent.id == event["data"]["task"]["assigned_to"]]
            await agent.complete(event["data"]["task"])
            turns.append(agent.name)
        assert turns[:3] == turns[3:]
        assert set(turns) == {"a", "b", "c"}


async def test_best_match_spares_the_versatile(mesh: Mesh, tenant: str) -> None:
    async with fleet(mesh, tenant, versatile=["w", "x", "y"], plain=["w"], double=["w", "x"]) as (
        versatile,
        plain,
        double,
    ):
        for expected in (plain, double, versatile):
            await create(plain.wire, strategy="best_match", required_capabilities=["w"])
            await expected.next_task()


async def test_performance_prefers_who_succeeds(mesh: Mesh, tenant: str) -> None:
    async with fleet(mesh, tenant, good=["w"], bad=["w"]) as (good, bad):
        for agent in (good, bad):
            await create(good.wire, assign=agent.id, max_retries=0)
        await good.complete(await good.next_task())
        await bad.say("fail", await bad.next_task())
        for _ in range(3):
            await create(good.wire, strategy="performance", required_capabilities=["w"])
            await good.complete(await good.next_task())


async def test_a_claim_waits_for_what_it_can_do(mesh: Mesh, tenant: str) -> None:
    async with fleet(mesh, tenant, claimer=["pull", "count"]) as [claimer]:
        assert await claimer.wire.call("task.claim", wait_ms=50) == {"tasks": []}
        waiting = asyncio.ensure_future(claimer.wire.call("task.claim", wait_ms=10_000, limit=5))
        narrowed = await claimer.wire.call("task.claim", capabilities=["count"])
        assert narrowed == {"tasks": []}
        async with await Wire.connect(mesh.ws_url, tenant) as creator:
            await create(creator, "not mine", assign="pull", required_capabilities=["fly"])
            mine = await create(creator, "mine", assign="pull", required_capabilities=["pull"])
        [task] = (await waiting)["tasks"]
        assert task["id"] == mine["id"]
        assert await claimer.wire.call("task.claim") == {"tasks": []}, "its only place is taken"


async def test_a_task_that_its_agents_have_rejected_keeps_no_other_waiting(mesh: Mesh, tenant: str) -> None:
    """Nobody else can do it, though somebody who can do other things is there."""
    async with fleet(mesh, tenant, picky=["python"], idle=["cooking"]) as (picky, _):
        await create(picky.wire, "rejected", required_capabilities=["python"])
        await picky.say("reject", await picky.next_task())
        await create(picky.wire, "later", required_capabilities=["python"])
        assert (await picky.next_task())["title"] == "later"


async def test_what_nobody_can_do_hides_nothing_that_somebody_can(mesh: Mesh, tenant: str) -> None:
    """However many different sorts of it there are."""
    async with await Agent.join(mesh, tenant, "able", "z", concurrency=2) as able:
        tasks = [{"title": "nobody's", "required_capabilities": [f"a{place}"]} for place in range(1000)]
        await able.wire.call("task.create_many", tasks=tasks)
        await create(able.wire, "given", required_capabilities=["z"])
        assert (await able.next_task())["title"] == "given"
        await create(able.wire, "claimed", assign="pull")
        [task] = (await able.wire.call("task.claim", wait_ms=1000))["tasks"]
        assert task["title"] == "claimed"


async def test_large_tasks_are_given_a_few_at_a_time(mesh: Mesh, tenant: str) -> None:
    """A transaction that gave out all of them would come to its deadline, again and again."""
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        for assign in ("auto", "pull"):
            for _ in range(12):
                await create(wire, assign=assign, parameters={"large": "x" * 500_000})
        async with await Agent.join(mesh, tenant, "wide", concurrency=24) as agent:
            for _ in range(12):
                await agent.next_task()
            claimed = [len((await agent.wire.call("task.claim", limit=12))["tasks"]) for _ in range(2)]
            assert claimed == [9, 3]
    sql = f"""select count(*) from mcp.events where tenant_id = '{wire.initialized["tenant_id"]}' and type = 'task.assigned'
              group by xmin::text order by min(sequence)"""
    assert [int(count) for count in run_sql(mesh.dsn, sql).split()] == [9, 3, 9, 3]


async def test_only_an_agent_claims_and_only_for_itself(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as admin:
        agent = (await admin.call("agent.register", name="mine"))["agent"]

        async def key(**fields: Any) -> str:
            secret: str = (await admin.call("key.create", **fields))["secret"]
            return secret

        async with await Wire.connect(mesh.ws_url, await key(kind="agent")) as stranger:
            assert (await refusal(stranger, "task.claim")).data["field"] == "agent_id"
            assert (await refusal(stranger, "task.claim", agent_id=agent["id"])).kind == "forbidden"
        async with await Wire.connect(mesh.ws_url, await key(kind="user")) as user:
            assert (await refusal(user, "task.claim", agent_id=agent["id"])).kind == "forbidden"
        async with await Wire.connect(mesh.ws_url, await key(kind="agent", agent=agent["id"])) as bound:
            assert await bound.call("task.claim") == {"tasks": []}
