"""T7, T8, T11: agents and services die, stall and repeat themselves, and no work is lost or done twice."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import WebSocketException

from tests import forking
from tests.fleet import Agent, create, get, refusal, wait
from tests.harness import Mesh, eventually
from tests.wire import Wire, WireError

ROOT = Path(__file__).parents[2]
LEASE_S = 0.5


class Holder:
    """An agent process: see tests/agents/holder.py."""

    def __init__(self, process: forking.Process, log: Path) -> None:
        self.process, self._log = process, log

    def lines(self) -> list[dict[str, Any]]:
        """What it has said: its lines of JSON."""
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    async def until(self, happened: str, within_s: float = 10.0) -> dict[str, Any]:
        await eventually(
            lambda: happened in [line["happened"] for line in self.lines()], f"the agent is {happened}", within_s
        )
        return next(line for line in self.lines() if line["happened"] == happened)


@contextlib.contextmanager
def holder(mesh: Mesh, key: str, directory: Path) -> Iterator[Holder]:
    log = directory / "holder.log"
    command = ["tests.agents.holder", mesh.ws_url, "holder", "hold"]
    with log.open("wb") as output:
        process = forking.start(command, cwd=ROOT, env={**os.environ, "AGENT_KEY": key}, stdout=output)
    try:
        yield Holder(process, log)
    finally:
        process.kill()
        process.wait()


async def test_t07_an_agent_killed_mid_task_is_replaced(mesh: Mesh, tenant: str, tmp_path: Path) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as creator:
        with holder(mesh, tenant, tmp_path) as killed:
            await killed.until("registered")
            created = await create(creator, required_capabilities=["hold"], lease_s=LEASE_S)
            await killed.until("holding")
            dead_id = (await get(creator, created))["assigned_to"]
            await creator.call("subscribe", topics=[f"task:{created['id']}"])
            killed.process.kill()
            killed.process.wait()
            died_at = datetime.datetime.now(datetime.UTC)
            expired = await creator.next_event("task.lease_expired", within_s=LEASE_S + 2)
        patch = expired["data"]["task"]
        assert (patch["status"], patch["attempt"], patch["assigned_to"], patch["progress"]) == ("pending", 2, None, 0.0)
        assert (datetime.datetime.fromisoformat(expired["at"]) - died_at).total_seconds() < LEASE_S + 2
        async with await Agent.join(mesh, tenant, "successor", "hold") as successor:
            task = await successor.next_task()
            assert (task["id"], task["attempt"]) == (created["id"], 2)
            for verb, params in (("complete", {"result": "from the grave"}), ("heartbeat", {}), ("fail", {})):
                stale = {"task_id": task["id"], "attempt": 1, "agent_id": dead_id, **params}
                assert (await refusal(creator, f"task.{verb}", **stale)).reason == "task.stale_attempt"
            await successor.complete(task, "alive")
        ended = await wait(creator, created)
        assert (ended["result"], ended["attempt"], ended["retry_count"]) == ("alive", 2, 0)
        history = await creator.call("task.history", task_id=created["id"])
        tried = [(step["agent_name"], step["outcome"]) for step in history["attempts"]]
        assert tried == [("holder", "lease_expired"), ("successor", "completed")]


async def test_t08_a_stopped_agent_that_wakes_up_is_refused_and_told(mesh: Mesh, tenant: str, tmp_path: Path) -> None:
    async with await Agent.join(mesh, tenant, "other", "other") as other:
        with holder(mesh, tenant, tmp_path) as stopped:
            await stopped.until("registered")
            created = await create(other.wire, required_capabilities=["hold"], lease_s=LEASE_S)
            await other.wire.call("subscribe", topics=[f"task:{created['id']}"])
            await stopped.until("holding")
            stopped.process.send_signal(signal.SIGSTOP)
            await other.wire.next_event("task.lease_expired", within_s=LEASE_S + 2)
            await other.wire.call("agent.update", capabilities=["hold"])
            task = await other.next_task()
            stopped.process.send_signal(signal.SIGCONT)
            assert (await stopped.until("lost"))["reason"] == "task.stale_attempt"
            await stopped.until("done")
            refused = [(line["verb"], line["reason"]) for line in stopped.lines() if line["happened"] == "refused"]
            assert refused == [(verb, "task.stale_attempt") for verb in ("progress", "complete", "fail")]
            assert await get(other.wire, created) == task, "nothing that it wrote has left a trace"
            await other.complete(task, "by the other")
        assert (await get(other.wire, created))["result"] == "by the other"


async def test_a_heartbeat_keeps_a_lease_far_beyond_its_length(mesh: Mesh, tenant: str, tmp_path: Path) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as creator:
        with holder(mesh, tenant, tmp_path) as steady:
            await steady.until("registered")
            created = await create(creator, required_capabilities=["hold"], lease_s=LEASE_S)
            await steady.until("holding")
            first_end = (await get(creator, created))["lease_until"]

            async def is_far_beyond() -> bool:
                task = await get(creator, created)
                assert (task["status"], task["attempt"]) == ("running", 1)
                beyond = datetime.datetime.fromisoformat(task["lease_until"]) - datetime.datetime.fromisoformat(
                    first_end
                )
                return beyond.total_seconds() > 3 * LEASE_S

            await eventually(is_far_beyond, "the lease was renewed several times")


async def test_t11_one_key_a_hundred_times_over_three_nodes_and_both_wires(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api", "mcp-server", "mcp-server")
    key = mesh.admin_key
    params = {"title": "once", "assign": "pull", "idempotency_key": "the same", "parameters": {"b": 1, "a": [2]}}
    urls = [f"ws://127.0.0.1:{child.port}/ws" for child in mesh.of("mcp-server")]
    async with contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(await Wire.connect(url, key)) for url in urls for _ in range(2)]
        rest = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=20))

        async def over_rest() -> dict[str, Any]:
            headers = {"Authorization": f"Bearer {key}"}
            answer = await rest.post(f"{mesh.rest_url}/api/v1/tasks", json=params, headers=headers)
            assert answer.status_code == 201, answer.text
            body: dict[str, Any] = answer.json()
            return body

        over_ws = [wires[number % len(wires)].call("task.create", **params) for number in range(80)]
        answers = await asyncio.gather(*over_ws, *(over_rest() for _ in range(20)))
        assert all(answer == answers[0] for answer in answers)
        listed = await wires[0].call("task.list")
        assert [task["id"] for task in listed["tasks"]] == [answers[0]["task"]["id"]]
        other = await refusal(wires[1], "task.create", **{**params, "title": "another"})
        assert other.kind == "idempotency_mismatch"


LOST_CONNECTION = (OSError, TimeoutError, WebSocketException, WireError)


async def insist(url: str, key: str, act: Callable[[Wire], Any], until: asyncio.Event) -> None:
    """Does something on a connection again and again, whatever becomes of the connection."""
    while not until.is_set():
        with contextlib.suppress(*LOST_CONNECTION):
            async with await Wire.connect(url, key) as wire:
                while not until.is_set():
                    await act(wire)


@pytest.mark.soak
@pytest.mark.timeout(240)
async def test_every_service_may_be_killed_and_no_acknowledged_work_is_lost(own_mesh: Callable[..., Mesh]) -> None:
    """Each in turn while tasks come and go: whatever was acknowledged is completed in the end."""
    mesh = own_mesh()
    acknowledged: list[dict[str, Any]] = []
    is_submitted, is_enough = asyncio.Event(), asyncio.Event()

    async def submit(wire: Wire) -> None:
        acknowledged.append(await create(wire, lease_s=LEASE_S))

    async def work(wire: Wire) -> None:
        """As an agent would: what it is told of, and what it finds that it holds after it was away."""
        agent = (await wire.call("agent.register", name="worker", concurrency=10))["agent"]
        while not is_enough.is_set():
            held = await wire.call("task.list", assigned_to=agent["id"], status=["assigned", "accepted", "running"])
            for task in held["tasks"]:
                await wire.call("task.complete", task_id=task["id"], attempt=task["attempt"])

    acts = ((submit, is_submitted), (submit, is_submitted), (work, is_enough))
    running = [asyncio.ensure_future(insist(mesh.ws_url, mesh.admin_key, act, end)) for act, end in acts]
    for child in mesh.children:
        reached = len(acknowledged) + 30
        await eventually(functools.partial(has_reached, acknowledged, reached), "work goes on", 20)
        child.kill()
        child.start()
        await eventually(child.is_ready, f"{child.service} is back", 20)
    is_submitted.set()
    async with await Wire.connect(mesh.ws_url, mesh.admin_key) as wire:
        for created in acknowledged[:]:
            assert (await wait(wire, created, within_s=20))["status"] == "completed"
    is_enough.set()
    await asyncio.gather(*running)


def has_reached(things: list[dict[str, Any]], count: int) -> bool:
    return len(things) >= count
