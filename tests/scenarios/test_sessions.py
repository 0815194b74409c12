"""What a connection becomes, however hastily it is used: it counts once, and acts as the agent that it stands for."""

from __future__ import annotations

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
