"""When more is asked for than can be done: the new is told when to come again, and what is in hand goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import httpx

from devmesh.client import Client
from tests.harness import Mesh, eventually
from tests.wire import Wire

BATCHES, BATCH = 15, 100


def health(mesh: Mesh, path: str = "/health") -> httpx.Response:
    port = mesh.of("mcp-server")[0].port
    return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=5)


def admission(mesh: Mesh) -> str:
    status: str = health(mesh).json()["components"]["admission"]["status"]
    return status


async def test_overload_refuses_what_is_new_and_goes_on_with_what_is_in_hand(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api", "mcp-server")
    wires = [await Wire.connect(mesh.ws_url, mesh.admin_key) for _ in range(5)]
    agent = await Wire.connect(mesh.ws_url, mesh.admin_key)
    await agent.call("agent.register", name="at work")
    asked: list[asyncio.Task[dict[str, Any]]] = []

    async def is_refused() -> bool:
        asked.extend(
            asyncio.create_task(wire.ask("task.create", {"title": "flood"})) for wire in wires for _ in range(2)
        )
        answers = [task.result() for task in asked if task.done()]
        return any(answer.get("error", {}).get("data", {}).get("reason") == "overload" for answer in answers)

    holder = await asyncpg.connect(mesh.dsn)
    lock = holder.transaction()
    await lock.start()
    await holder.execute("lock table mcp.tasks in share mode")  # nothing can be created, everything can be read
    await eventually(is_refused, "creates are refused", within_s=8)
    refused = (await agent.ask("task.create", {"title": "one more"}))["error"]["data"]
    assert (refused["kind"], refused["reason"], refused["retryable"]) == ("unavailable", "overload", True)
    assert 0 < refused["retry_after_ms"] <= 5_000
    assert (await agent.call("agent.heartbeat"))["agent"]["status"] == "available"
    assert (await agent.call("ping"))["pong"] is True
    await eventually(lambda: admission(mesh) == "degraded", "health says so", within_s=5)
    assert health(mesh, "/readyz").status_code == 200
    assert 'devmesh_requests_refused_total{cause="overload"}' in health(mesh, "/metrics").text
    async with Client(mesh.ws_url, mesh.admin_key) as client:
        patient = asyncio.create_task(client.tasks.create("patient"))
        await lock.rollback()
        assert (await patient).title == "patient"
    await holder.close()
    created = sum("result" in answer for answer in await asyncio.gather(*asked))
    assert created
    stats = await agent.call("task.stats")
    assert stats["total"] == created + 1, "what was let in was done, what was refused was not"
    await eventually(lambda: admission(mesh) == "healthy", "it is over")
    for wire in (*wires, agent):
        await wire.close()


async def test_a_burst_that_ends_is_let_in_whole(mesh: Mesh, tenant: str) -> None:
    """It comes in batches, so that it is there at once however slowly this process sends."""
    wires = [await Wire.connect(mesh.ws_url, tenant) for _ in range(BATCHES)]
    for wire in wires:
        if wire is wires[BATCHES * 2 // 3]:  # the rest comes when the server has seen how long these take
            await wires[0].answer("0")
        await wire.send(
            [
                {"jsonrpc": "2.0", "id": f"{place}", "method": "task.create", "params": {"title": "burst"}}
                for place in range(BATCH)
            ]
        )
    answers = [await wire.answer(f"{place}") for wire in wires for place in range(BATCH)]
    assert all("result" in answer for answer in answers), [answer for answer in answers if "error" in answer][:1]
    for wire in wires:
        await wire.close()


async def test_who_waits_for_something_to_happen_is_no_load(mesh: Mesh, tenant: str) -> None:
    await eventually(lambda: admission(mesh) == "healthy", "what came before is over")
    wires = [await Wire.connect(mesh.ws_url, tenant) for _ in range(3)]
    task = (await wires[0].call("task.create", title="never", assign="pull"))["task"]
    wait, look = {"task_id": task["id"], "timeout_ms": 20_000}, {"task_id": task["id"], "timeout_ms": 0}
    waits: list[asyncio.Task[dict[str, Any]]] = []
    for _ in range(20):  # to ask for the first time is a load for a moment, so they do not all come at once
        waits += [asyncio.create_task(wire.ask("task.wait", wait)) for wire in wires for _ in range(10)]
        assert "result" in await wires[-1].ask("task.wait", look)  # which comes after those before it
    await eventually(lambda: admission(mesh) == "healthy", "nothing is refused because of them")
    begun = await asyncio.gather(*(wires[0].ask("task.create", {"title": "meanwhile"}) for _ in range(50)))
    assert all("result" in answer for answer in begun), [answer for answer in begun if "error" in answer][:1]
    assert admission(mesh) == "healthy"
    await wires[0].call("task.cancel", task_id=task["id"])
    answers = await asyncio.gather(*waits)
    assert all(answer["result"]["task"]["status"] == "cancelled" for answer in answers)
    for wire in wires:
        await wire.close()
