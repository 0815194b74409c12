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
