"""What nobody listens to is not read; who begins to listen, or resumes, hears what is due to it and nothing else."""

from __future__ import annotations

import uuid

import httpx

from tests.conftest import run_sql
from tests.harness import Mesh, eventually
from tests.scenarios.test_events import create_tasks, titles
from tests.wire import Wire


async def test_e02_what_was_removed_while_nobody_listened_is_missing_to_who_resumes_and_to_nobody_else(
    mesh: Mesh, tenant: str
) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as idle:
        async with await Wire.connect(mesh.ws_url, tenant) as wire:
            await wire.call("subscribe", topics=["tenant"])
            await create_tasks(idle, 1)
            await wire.until_events(1)
            cursor = wire.cursor
        await create_tasks(idle, 9)
        own = f"tenant_id = '{idle.initialized['tenant_id']}'"
        run_sql(mesh.dsn, f"delete from mcp.events where {own} and sequence <= 6")
        run_sql(mesh.dsn, f"update mcp.tenants set stream_floor = 6 where {own}")
        async with await Wire.connect(mesh.ws_url, tenant) as again:
            assert (await again.call("subscribe", topics=["tenant"], since=cursor))["recovered"] is False
            await again.until_events(4)
            assert titles(again) == ["5", "6", "7", "8"]
        await create_tasks(idle, 1)  # it was not sent away


async def test_who_resumes_keeps_what_it_missed_from_those_who_listen_from_now_on(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as idle:
        agent = f"a{uuid.uuid4().hex}"
        async with await Wire.connect(mesh.ws_url, tenant) as wire:
            await wire.call("agent.register", name=agent, capabilities=[])
            await wire.next_event("agent.registered")
            cursor = wire.cursor
        await create_tasks(idle, 3_000)
        async with (
            await Wire.connect(mesh.ws_url, tenant, agent=agent, resume=cursor) as again,
            await Wire.connect(mesh.ws_url, tenant) as other,
        ):
            assert again.initialized["recovered"] is True
            await other.call("subscribe", topics=["tenant"])
            await idle.call("task.create", title="last", assign="pull")
            await eventually(lambda: "last" in titles(other), "the last event comes")
            assert titles(other) == ["last"]


async def test_who_begins_to_listen_hears_nothing_of_what_nobody_listened_to(mesh: Mesh, tenant: str) -> None:
    """Nor does anybody read that: the stream goes on from where the log is by then."""
    headers = {"Authorization": f"Bearer {tenant}"}
    [gateway] = mesh.of("mcp-server")
    async with httpx.AsyncClient(base_url=mesh.rest_url, headers=headers, trust_env=False) as rest:
        for turn in range(3):
            async with await Wire.connect(mesh.ws_url, tenant) as wire:
                read = gateway.metric("devmesh_events_read_total")
                assert (await rest.post("/api/v1/tasks", json={"title": "unheard", "assign": "pull"})).is_success
                await create_tasks(wire, 2)
                await wire.call("subscribe", topics=["tenant"])
                await create_tasks(wire, 1)
                await wire.until_events(1)
                assert titles(wire) == ["0"], turn
                assert gateway.metric("devmesh_events_read_total") == read + 1
            for _ in range(3):
                assert (await rest.post("/api/v1/tasks", json={"title": "unheard", "assign": "pull"})).is_success
