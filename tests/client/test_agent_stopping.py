"""Agents that are told to stop: what they hold, what comes too late for them, and other processes under their name."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from devmesh.client import Client, TaskContext
from devmesh.client import Mesh as Agents
from tests.client.agents import at_work
from tests.harness import Mesh, eventually

WITHIN_S = 20.0


async def test_stopping_lets_handlers_end_and_hands_back_what_is_not_done_in_time(mesh: Mesh, tenant: str) -> None:
    agents = Agents(mesh.ws_url, tenant, drain_limit_s=1.0)
    begun, may_end = asyncio.Semaphore(0), asyncio.Event()

    @agents.agent("stopping", concurrency=2)
    async def work(task: TaskContext) -> str:
        begun.release()
        await (may_end if task.title == "quick" else asyncio.Event()).wait()
        return "done in time"

    async with Client(mesh.ws_url, tenant) as client:
        async with at_work(agents):
            quick, slow = await client.tasks.create("quick"), await client.tasks.create("slow")
            for _ in range(2):
                await asyncio.wait_for(begun.acquire(), WITHIN_S)
            agents.stop()
            await eventually(lambda: _is_draining(client), "the mesh is told", 5)
            may_end.set()
            late = await client.tasks.create("comes too late for this agent")
        assert (await client.tasks.get(quick.id)).result == "done in time"
        slow = await client.tasks.get(slow.id)
        assert (slow.status, slow.attempt, slow.error["type"]) == ("pending", 2, "Stopped")
        assert (await client.tasks.get(late.id)).attempt == 1


async def _is_draining(client: Client) -> bool:
    return [agent.status async for agent in client.agents.each()] == ["draining"]


async def test_what_comes_while_one_process_stops_is_left_to_another_of_its_name(
    mesh: Mesh, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "devmesh.client")
    begun, may_end = asyncio.Event(), asyncio.Event()

    def of_one_name(number: int) -> Agents:
        agents = Agents(mesh.ws_url, tenant)

        @agents.agent("rolling", concurrency=4)
        async def work(task: TaskContext) -> Any:
            if task.title == "long":
                begun.set()
                await may_end.wait()
            return number

        return agents

    old, new = of_one_name(1), of_one_name(2)
    async with Client(mesh.ws_url, tenant) as client, at_work(old):
        long = await client.tasks.create("long")
        await asyncio.wait_for(begun.wait(), WITHIN_S)
        async with at_work(new):
            await eventually(lambda: _sessions(client, 2), "the new one is there")
            old.stop()
            await eventually(lambda: "another process goes on" in caplog.text, "the old one knows of the new one")
            made = await client.tasks.create_many([{"title": "quick"} for _ in range(12)])
            for task in made:
                found = await client.tasks.wait(task.id, timeout_s=WITHIN_S)
                assert (found.status, found.result, found.attempt) == ("completed", 2, 1)
            may_end.set()
            assert (await client.tasks.wait(long.id, timeout_s=WITHIN_S)).result == 1


async def _sessions(client: Client, count: int) -> bool:
    return [agent.sessions async for agent in client.agents.each()] == [count]


async def test_an_agent_of_a_bound_key_says_that_it_stops(mesh: Mesh, tenant: str) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()
    async with Client(mesh.ws_url, tenant) as client:
        async with Client(mesh.ws_url, tenant) as before:
            agent = await before.agents.register("bound", concurrency=2)
        made = await client.call("key.create", kind="agent", agent=agent.id)
        agents = Agents(mesh.ws_url, made["secret"])

        @agents.agent("bound", concurrency=2)
        async def work(task: TaskContext) -> None:
            begun.set()
            await may_end.wait()

        async with at_work(agents):
            await eventually(lambda: _sessions(client, 2), "it stands there, and its heart as well")
            long = await client.tasks.create("long")
            await asyncio.wait_for(begun.wait(), WITHIN_S)
            agents.stop()
            await eventually(lambda: _is_draining(client), "the mesh is told", 5)
            late = await client.tasks.create("comes too late for this agent")
            may_end.set()
            assert (await client.tasks.wait(long.id, timeout_s=WITHIN_S)).status == "completed"
        assert (await client.tasks.get(late.id)).attempt == 1
