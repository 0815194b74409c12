"""T15: for each state in which a task can wait, explain names the true reason, and what it says stops being so when it ends."""

from __future__ import annotations

from typing import Any

from tests.conftest import run_sql
from tests.fleet import Agent, Task, create, fleet
from tests.harness import Mesh, eventually
from tests.wire import Wire


async def explain(wire: Wire, task: Task) -> dict[str, Any]:
    explanation: dict[str, Any] = (await wire.call("task.explain", task_id=task["id"]))["explanation"]
    assert explanation["explanation"], "there is a sentence for people"
    return explanation


async def reason(wire: Wire, task: Task) -> str:
    found: str = (await explain(wire, task))["reason"]
    return found


async def test_t15_nobody_can_do_it(mesh: Mesh, tenant: str) -> None:
    async with await Agent.join(mesh, tenant, "reader", "read") as reader:
        task = await create(reader.wire, required_capabilities=["read", "fly"])
        explained = await explain(reader.wire, task)
        assert explained["reason"] == "no_capable_agent"
        assert "fly" in explained["explanation"]
        await reader.wire.call("agent.update", capabilities=["read", "fly"])
        await reader.next_task()
        assert await reason(reader.wire, task) == "held"


async def test_t15_those_who_can_are_busy_draining_suspended_or_gone(mesh: Mesh, tenant: str) -> None:
    async with await Agent.join(mesh, tenant, "worker", "work") as worker:
        first = await create(worker.wire, required_capabilities=["work"])
        held = await worker.next_task()
        task = await create(worker.wire, required_capabilities=["work"])
        explained = await explain(worker.wire, task)
        assert (explained["reason"], explained["detail"]["agents"]) == ("all_busy", {"busy": 1})
        assert (await explain(worker.wire, first))["detail"]["agent_id"] == worker.id
        await worker.wire.call("agent.drain")
        assert await reason(worker.wire, task) == "all_draining"
        await worker.wire.call("agent.suspend", agent_id=worker.id)
        assert await reason(worker.wire, task) == "all_suspended"
        await worker.wire.call("agent.suspend", agent_id=worker.id, suspended=False)
        await worker.complete(held)
        assert await reason(worker.wire, task) == "all_draining"
        await worker.wire.call("agent.drain", draining=False)
        assert (await worker.next_task())["id"] == task["id"]


async def test_t15_the_agents_are_offline(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        async with await Agent.join(mesh, tenant, "visitor", "visit") as visitor:
            gone_id = visitor.id
        # A minute without a heartbeat goes by.
        run_sql(mesh.dsn, f"update mcp.agents set heartbeat_at = now() - interval '61 s' where agent_id = '{gone_id}'")
        task = await create(wire, required_capabilities=["visit"])
        meant = await create(wire, assign=gone_id)

        async def is_offline() -> bool:
            return await reason(wire, task) == "all_offline"

        await eventually(is_offline, "the agent counts as offline")
        assert await reason(wire, meant) == "target_unavailable"


async def test_t15_everybody_has_refused_it(mesh: Mesh, tenant: str) -> None:
    async with await Agent.join(mesh, tenant, "picky", "pick") as picky:
        task = await create(picky.wire, required_capabilities=["pick"])
        await picky.say("reject", await picky.next_task())
        assert await reason(picky.wire, task) == "all_excluded"


async def test_t15_it_waits_to_be_claimed(mesh: Mesh, tenant: str) -> None:
    async with await Agent.join(mesh, tenant, "puller", "pull") as puller:
        task = await create(puller.wire, assign="pull", required_capabilities=["pull"])
        nobody = await create(puller.wire, assign="pull", required_capabilities=["fly"])
        assert await reason(puller.wire, task) == "waiting_for_claim"
        assert await reason(puller.wire, nobody) == "no_capable_agent"
        await puller.wire.call("task.claim")
        assert await reason(puller.wire, task) == "held"


async def test_t15_it_backs_off(mesh: Mesh, tenant: str) -> None:
    async with await Agent.join(mesh, tenant, "clumsy") as clumsy:
        task = await create(clumsy.wire)
        await clumsy.say("fail", await clumsy.next_task(), error="oops")
        explained = await explain(clumsy.wire, task)
        assert explained["reason"] == "backing_off"
        assert (explained["detail"]["retry_count"], explained["detail"]["error"]) == (1, "oops")


async def test_t15_a_parent_waits_for_its_subtasks_and_a_step_for_the_one_before(mesh: Mesh, tenant: str) -> None:
    async with await Agent.join(mesh, tenant, "stepper", "step") as stepper:
        steps = [{"title": str(number), "required_capabilities": ["step"]} for number in range(2)]
        made = await stepper.wire.call(
            "task.create_distributed", title="steps", distribution="sequential", subtasks=steps
        )
        first = await stepper.next_task()
        parent = await explain(stepper.wire, made["task"])
        assert (parent["reason"], parent["detail"]["subtasks"]) == (
            "waiting_for_subtasks",
            {"assigned": 1, "pending": 1},
        )
        assert await reason(stepper.wire, made["subtasks"][1]) == "waiting_for_siblings"
        await stepper.complete(first)
        await stepper.complete(await stepper.next_task())
        for task in (made["task"], *made["subtasks"]):
            assert await reason(stepper.wire, task) == "finished"


async def test_t15_meant_for_an_agent_that_is_busy(mesh: Mesh, tenant: str) -> None:
    async with fleet(mesh, tenant, a=[], b=[]) as (a, _):
        await create(a.wire, assign=a.id)
        await a.next_task()
        task = await create(a.wire, assign=a.id)
        explained = await explain(a.wire, task)
        assert (explained["reason"], explained["detail"]["agent_id"]) == ("target_unavailable", a.id)
        assert "busy" in explained["explanation"]
