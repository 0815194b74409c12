"""W8: whatever makes a credential invalid ends what stands on it within 5 s: connections, streams, and calls that wait."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from tests.harness import Mesh, eventually
from tests.wire import Wire, WireError

REVOKED_WITHIN_S = 5.0
CLAIMS = 'devmesh_calls_total{operation="task.claim"}'  # those that were answered, or let wait


class Streaming:
    """A stream of server-sent events, read until it ends."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> str:
        text = ""
        async for piece in self._response.aiter_text():
            text += piece
        return text

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])

    @property
    def is_open(self) -> bool:
        return not self._reading.done()

    async def ended(self, within_s: float) -> dict[str, Any]:
        """What its last message says."""
        async with asyncio.timeout(within_s):
            text = await self._reading
        event, data = text.strip().rpartition("\n\n")[2].split("\n", 1)
        assert event == "event: error", text
        problem: dict[str, Any] = json.loads(data.removeprefix("data: "))
        return problem


class Opened:
    """What one key has opened: a connection at each gateway, and a stream at each REST service."""

    def __init__(self, wires: list[Wire], streams: list[Streaming]) -> None:
        self.wires, self.streams = wires, streams

    async def end_within(self, limit_s: float) -> None:
        began = time.monotonic()
        codes = await asyncio.gather(*(wire.closed(limit_s) for wire in self.wires))
        assert codes == [4001] * len(self.wires)
        problems = await asyncio.gather(*(stream.ended(limit_s) for stream in self.streams))
        assert [problem["kind"] for problem in problems] == ["unauthenticated"] * len(self.streams)
        assert time.monotonic() - began < limit_s

    async def are_open(self) -> None:
        for wire in self.wires:
            assert (await wire.call("ping"))["pong"] is True
        assert all(stream.is_open for stream in self.streams)


@contextlib.asynccontextmanager
async def opened(mesh: Mesh, secret: str) -> AsyncIterator[Opened]:
    async with contextlib.AsyncExitStack() as stack:
        wires = [
            await stack.enter_async_context(await Wire.connect(f"ws://127.0.0.1:{child.port}/ws", secret))
            for child in mesh.of("mcp-server")
        ]
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=30.0, trust_env=False))
        streams = []
        for child in mesh.of("rest-api"):
            place = f"http://127.0.0.1:{child.port}/api/v1/events"
            response = await stack.enter_async_context(http.stream("GET", place, headers={"X-API-Key": secret}))
            assert response.status_code == 200
            streams.append(Streaming(response))
            stack.push_async_callback(streams[-1].close)
        yield Opened(wires, streams)


@pytest.fixture
async def several(own_mesh: Callable[..., Mesh]) -> Mesh:
    """Two gateways and two REST services."""
    return own_mesh("rest-api", "mcp-server", "rest-api", "mcp-server")


async def in_a_moment(seconds: float) -> str:
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)).isoformat()


async def test_w8_a_key_that_ends_ends_everything_that_it_opened_at_every_node(several: Mesh) -> None:
    """Revoked, replaced and expired ones, each while others of the same tenant go on."""
    tenant = several.new_tenant()
    async with await Wire.connect(several.ws_url, tenant) as admin, opened(several, tenant) as bystander:
        revoked = await admin.call("key.create", kind="user")
        async with opened(several, revoked["secret"]) as doomed:
            await admin.call("key.revoke", key_id=revoked["key"]["id"])
            await doomed.end_within(REVOKED_WITHIN_S)

        first = await admin.call("key.create", kind="user")
        async with opened(several, first["secret"]) as doomed:
            second = await admin.call("key.rotate", key_id=first["key"]["id"])
            async with opened(several, second["secret"]) as successor:
                await doomed.are_open()
                refreshed, *others = doomed.wires
                await refreshed.call("session.refresh", token=second["secret"])
                await admin.call("key.confirm", key_id=second["key"]["id"])
                await Opened(others, doomed.streams).end_within(REVOKED_WITHIN_S)
                assert (await refreshed.call("ping"))["pong"] is True
                await successor.are_open()

        brief = await admin.call("key.create", kind="user", expires_at=await in_a_moment(3.0))
        async with opened(several, brief["secret"]) as doomed:
            await doomed.end_within(3.0 + REVOKED_WITHIN_S)
            assert datetime.datetime.now(datetime.UTC) > datetime.datetime.fromisoformat(brief["key"]["expires_at"])
        await bystander.are_open()


async def test_w8_a_suspended_tenant_is_shut_out_and_another_is_not(several: Mesh) -> None:
    async with await Wire.connect(several.ws_url, several.admin_key) as operator:
        made = await operator.call("tenant.create", name="doomed")
        other = await operator.call("tenant.create", name="bystander")
        async with opened(several, made["secret"]) as doomed, opened(several, other["secret"]) as bystander:
            await operator.call("tenant.suspend", tenant_id=made["tenant"]["id"])
            await doomed.end_within(REVOKED_WITHIN_S)
            await bystander.are_open()
        with pytest.raises(WireError) as refused:
            await Wire.connect(several.ws_url, made["secret"])
        assert refused.value.reason == "credential.suspended"
        await operator.call("tenant.suspend", tenant_id=made["tenant"]["id"], suspended=False)
        async with opened(several, made["secret"]) as lifted:
            await lifted.are_open()


async def test_w8_a_claim_that_waits_is_given_nothing_once_its_key_is_revoked(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as admin:
        made = await admin.call("key.create", kind="agent")
        headers = {"X-API-Key": made["secret"]}
        async with httpx.AsyncClient(base_url=mesh.rest_url, timeout=40.0, trust_env=False, headers=headers) as http:
            agent = (await http.post("/api/v1/agents", json={"name": "revoked"})).json()["agent"]
            asked = {"agent_id": agent["id"], "wait_ms": 30_000}
            asked_of = [*mesh.of("rest-api"), *mesh.of("mcp-server")]
            looks = [child.metric(CLAIMS) for child in asked_of]
            over_rest = asyncio.create_task(http.post("/api/v1/tasks/claim", json=asked))
            doomed = await Wire.connect(mesh.ws_url, made["secret"])
            over_ws = asyncio.create_task(doomed.call("task.claim", **asked))
            await eventually(
                lambda: all(child.metric(CLAIMS) > before for child, before in zip(asked_of, looks, strict=True)),
                "both claims have looked, and wait",
            )
            await admin.call("key.revoke", key_id=made["key"]["id"])
            assert await doomed.closed(within_s=REVOKED_WITHIN_S) == 4001
            async with asyncio.timeout(REVOKED_WITHIN_S):
                answer = await over_rest
            assert (answer.status_code, answer.json()["reason"]) == (401, "credential.ended")
            with pytest.raises(ConnectionError):
                await over_ws
        task = (await admin.call("task.create", title="for somebody else", assign="pull"))["task"]
        heir = (await admin.call("agent.register", name="heir"))["agent"]
        claimed = await admin.call("task.claim", agent_id=heir["id"], wait_ms=10_000)
        assert [found["id"] for found in claimed["tasks"]] == [task["id"]]


async def test_a_claim_that_waits_is_given_nothing_once_its_connection_has_ended(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        gone = (await wire.call("agent.register", name="gone"))["agent"]
        heir = (await wire.call("agent.register", name="heir"))["agent"]
        for _ in range(5):
            leaving = await Wire.connect(mesh.ws_url, tenant)
            waiting = asyncio.create_task(leaving.call("task.claim", agent_id=gone["id"], wait_ms=30_000))
            assert await leaving.call("task.claim", agent_id=gone["id"]) == {"tasks": []}  # behind the one that waits
            await leaving.close()
            with pytest.raises(ConnectionError):
                await waiting
        claiming = asyncio.create_task(wire.call("task.claim", agent_id=heir["id"], wait_ms=20_000))
        task = (await wire.call("task.create", title="for the one who is there", assign="pull"))["task"]
        assert [found["id"] for found in (await claiming)["tasks"]] == [task["id"]]
