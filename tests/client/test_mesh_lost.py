"""Tasks that are taken away from their handlers: who is told of it, how soon, and what becomes of a late result."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

from devmesh.client import BlockingTaskContext, Client, LeaseLost, TaskContext
from devmesh.client import Mesh as Agents
from tests.client.agents import at_work
from tests.harness import Mesh, eventually

WITHIN_S = 20.0


async def test_a_cancelled_task_stops_its_handler_at_once(mesh: Mesh, tenant: str) -> None:
    agents = Agents(mesh.ws_url, tenant)
    begun, told = asyncio.Event(), []

    @agents.agent("endless")
    async def work(task: TaskContext) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            told.append((task.is_lost, task.lost_reason))

    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        task = await client.tasks.create("cancel me", lease_s=600)  # so that no heartbeat could tell in time
        await asyncio.wait_for(begun.wait(), WITHIN_S)
        await client.tasks.cancel(task.id)
        await eventually(lambda: told, "the handler is told", 5)
        assert told == [(True, "it was cancelled")]
        begun.clear()
        other = await client.tasks.create("the agent is free again")
        await asyncio.wait_for(begun.wait(), WITHIN_S)
        await client.tasks.cancel(other.id)


async def test_a_plain_handler_sees_that_its_task_is_lost(mesh: Mesh, tenant: str) -> None:
    agents = Agents(mesh.ws_url, tenant)
    begun, told = threading.Event(), []

    @agents.agent("endless")
    def work(task: BlockingTaskContext) -> str:
        begun.set()
        while not task.is_lost:
            time.sleep(0.005)
        try:
            task.progress(0.5)
        except LeaseLost as lost:
            told.append(lost.message)
        return "too late"

    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        task = await client.tasks.create("reassign me", lease_s=600)
        await eventually(begun.is_set, "the handler begins")
        await client.tasks.cancel(task.id)
        await eventually(lambda: told, "the handler is told", 5)
        assert told == ["it was cancelled"]
        assert (await client.tasks.get(task.id)).result is None


async def test_a_task_that_is_given_to_another_agent_is_lost_and_its_late_result_is_not_sent(
    mesh: Mesh, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "devmesh.client")
    agents = Agents(mesh.ws_url, tenant)
    begun = asyncio.Event()

    @agents.agent("first")
    async def stubborn(task: TaskContext) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "first, although it was cancelled"
        return "never"

    others = Agents(mesh.ws_url, tenant)

    @others.agent("second", capabilities=["other"])
    async def second(task: TaskContext) -> str:
        return f"second, attempt {task.attempt}"

    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        task = await client.tasks.create("mine?")
        await asyncio.wait_for(begun.wait(), WITHIN_S)
        async with at_work(others):
            await eventually(lambda: _names(client, "second"), "the second agent is there")
            [other] = [agent async for agent in client.agents.each() if agent.name == "second"]
            await client.tasks.reassign(task.id, to_agent=other.id)
            found = await client.tasks.wait(task.id, timeout_s=WITHIN_S)
            assert found.result == "second, attempt 2"
        await eventually(lambda: "was lost: it was given to another agent" in caplog.text, "the loss is logged")
        assert (await client.tasks.get(task.id)).result == "second, attempt 2"


async def _names(client: Client, name: str) -> bool:
    return any([agent.name == name async for agent in client.agents.each()])
