"""What a connection becomes, however hastily it is used: it counts once, and acts as the agent that it stands for."""

from __future__ import annotations

from tests.fleet import Agent, create, refusal
from tests.harness import Mesh
from tests.wire import Wire


async def test_an_agent_whose_connection_ends_while_it_registers_is_not_there(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as watcher:
        await watcher.call("subscribe", topics=["tenant"])
        for number in range(3):
            wire = await Wire.connect(mesh.ws_url, tenant)
            hasty = {"name": f"hasty {number}"}
            await wire.send({"jsonrpc": "2.0", "id": "register", "method": "agent.register", "params": hasty})
            wire.connection.transport.abort()
            await wire.close()
            told = await watcher.next_event("agent.status")
            if told["data"]["agent"]["status"] == "available":
                told = await watcher.next_event("agent.status")
            assert told["data"]["agent"]["status"] == "offline"


async def test_a_connection_is_initialized_once_however_many_ask_at_a_time(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as before:
        await before.call("agent.register", name="me")
    wire = await Wire.bare(mesh.ws_url, tenant)
    async with wire:
        await wire.send(
            [
                {"jsonrpc": "2.0", "id": f"of {agent}", "method": "initialize", "params": {"agent": agent}}
                for agent in ("nobody", "me")
            ]
        )
        kinds = [(await wire.answer(f"of {agent}"))["error"]["data"]["kind"] for agent in ("nobody", "me")]
        assert kinds == ["not_found", "invalid_request"], "the second comes while the first is under way"
        many = [
            {"jsonrpc": "2.0", "id": f"number {number}", "method": "initialize", "params": {"agent": "me"}}
            for number in range(10)
        ]
        await wire.send(many)
        answers = [await wire.answer(asked["id"]) for asked in many]
        assert ["result" in answer for answer in answers] == [True] + [False] * 9
        await wire.call("agent.update", description="once")
        assert (await wire.next_event("agent.updated"))["data"]["agent"]["description"] == "once"
        await wire.call("agent.update", description="and once more")
        assert (await wire.next_event("agent.updated"))["data"]["agent"]["description"] == "and once more"


async def test_of_two_agents_registered_at_once_a_connection_is_the_first(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        for name in ("one", "two"):
            await wire.send({"jsonrpc": "2.0", "id": name, "method": "agent.register", "params": {"name": name}})
        ids = [(await wire.answer(name))["result"]["agent"]["id"] for name in ("one", "two")]
        shown = [(await wire.call("agent.get", agent_id=agent_id))["agent"] for agent_id in ids]
        assert [agent["sessions"] for agent in shown] == [1, 0]
        assert (await wire.call("agent.heartbeat"))["agent"]["id"] == ids[0]
        assert (await wire.call("subscriptions.list"))["topics"] == [f"agent:{ids[0]}"]


async def test_a_connection_whose_agent_has_left_is_the_next_one_that_it_registers(mesh: Mesh, tenant: str) -> None:
    async with await Agent.join(mesh, tenant, "phoenix") as first:
        await first.wire.call("agent.deregister")
        assert (await refusal(first.wire, "agent.heartbeat")).reason == "session.no_agent"
        again = Agent(first.wire, (await first.wire.call("agent.register", name="phoenix"))["agent"])
        shown = (await again.wire.call("agent.get", agent_id=again.id))["agent"]
        assert (again.id != first.id, shown["sessions"], shown["status"]) == (True, 1, "available")
        await create(again.wire)
        await again.complete(await again.next_task())
