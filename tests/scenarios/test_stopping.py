"""S11: a service that is told to stop finishes what it has begun, sends everybody elsewhere and ends with 0."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import websockets

from tests.breaking import Postgres, proxy_to
from tests.conftest import run_sql
from tests.harness import Child, Mesh, eventually, free_port, signal_twice, until_a_signal_is_another
from tests.wire import Wire, WireError

MakeMesh = Callable[..., Mesh]
SOON_S = 4.0  # what a stop may take that has nothing to wait for, on a loaded machine
LETTING_GO_S = 4.0  # beyond the grace


@contextlib.asynccontextmanager
async def rest_of(mesh: Mesh) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {mesh.admin_key}"}
    async with httpx.AsyncClient(base_url=mesh.rest_url, headers=headers, trust_env=False, timeout=30.0) as http:
        yield http


def has_logged(child: Child, words: str) -> bool:
    return words in child.log.read_text()


async def end_of(child: Child, within_s: float = SOON_S) -> tuple[int, float]:
    """The exit code of a service that was told to stop, and how long it took."""
    began = time.monotonic()
    return await asyncio.to_thread(child.wait, within_s), time.monotonic() - began


class Load:
    """Creates tasks over both wires, one after another on each connection, until nobody answers any more."""

    def __init__(self) -> None:
        self.acknowledged: set[str] = set()
        self.close_codes: list[int] = []

    def has_come_to(self, count: int) -> bool:
        return len(self.acknowledged) >= count

    async def over_websocket(self, mesh: Mesh) -> None:
        wire = await Wire.connect(mesh.ws_url, mesh.admin_key)
        with contextlib.suppress(ConnectionError, websockets.ConnectionClosed):
            while True:
                answer = await wire.ask("task.create", {"title": "kept", "assign": "pull"})
                if "result" not in answer:
                    assert answer["error"]["data"]["kind"] == "unavailable"
                    break
                self.acknowledged.add(answer["result"]["task"]["id"])
        self.close_codes.append(await wire.closed())

    async def over_rest(self, mesh: Mesh) -> None:
        async with rest_of(mesh) as http:
            with contextlib.suppress(httpx.TransportError):
                while True:
                    answer = await http.post("/api/v1/tasks", json={"title": "kept", "assign": "pull"})
                    if answer.status_code != 201:
                        assert (answer.status_code, answer.json()["kind"]) == (503, "unavailable")
                        assert answer.json()["retry_after_ms"]
                        break
                    self.acknowledged.add(answer.json()["task"]["id"])


async def test_s11_stopped_under_load_every_service_ends_with_0_and_nothing_acknowledged_is_lost(
    own_mesh: MakeMesh, fresh_database: str
) -> None:
    mesh = own_mesh()
    rest, gateway, worker = mesh.children
    load = Load()
    for child, work in ((gateway, load.over_websocket), (rest, load.over_rest)):
        before = len(load.acknowledged)
        loads = [asyncio.create_task(work(mesh)) for _ in range(12)]
        await eventually(functools.partial(load.has_come_to, before + 200), "there is load")
        child.signal(signal.SIGTERM)
        assert (await end_of(child))[0] == 0
        await asyncio.gather(*loads)
    worker.signal(signal.SIGTERM)
    assert (await end_of(worker))[0] == 0
    assert load.close_codes == [1012] * 12
    kept = run_sql(fresh_database, "select task_id from mcp.tasks").splitlines()
    assert load.acknowledged <= set(kept)
    for child in mesh.children:
        assert "requests were cut off" not in child.log.read_text()


async def test_s11_whoever_waits_for_something_to_happen_is_sent_away_at_once(own_mesh: MakeMesh) -> None:
    mesh = own_mesh("rest-api", "mcp-server", DEVMESH_SHUTDOWN_GRACE_S="20")
    rest, gateway = mesh.children
    wire = await Wire.connect(mesh.ws_url, mesh.admin_key)
    await wire.call("agent.register", name="patient", capabilities=["wait"])
    task = (await wire.call("task.create", title="never done", assign="pull", required_capabilities=["none"]))["task"]
    waits = [
        asyncio.create_task(wire.call("task.wait", task_id=task["id"], timeout_ms=60_000)),
        asyncio.create_task(wire.call("task.claim", wait_ms=60_000)),
    ]
    async with rest_of(mesh) as http, http.stream("GET", "/api/v1/events") as stream:
        lines = stream.aiter_lines()
        assert "subscribed" in [await anext(lines), await anext(lines), await anext(lines)][2]
        path = f"/api/v1/tasks/{task['id']}/wait"
        long_poll = asyncio.create_task(http.get(path, params={"timeout_ms": 60_000}))
        answered = asyncio.gather(*waits, long_poll, return_exceptions=True)
        await wire.call("ping")  # the waits have reached the gateway
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(answered), 0.3)  # they do wait
        for child in (gateway, rest):
            child.signal(signal.SIGTERM)
        rest_of_stream = [line async for line in lines]
        for child in (gateway, rest):
            code, took_s = await end_of(child)
            assert (code, took_s < SOON_S) == (0, True)
    *refused, polled = await answered
    assert [error.kind for error in refused if isinstance(error, WireError)] == ["unavailable", "unavailable"]
    assert isinstance(polled, httpx.Response)
    assert (polled.status_code, polled.json()["kind"]) == (503, "unavailable")
    assert await wire.closed() == 1012
    assert "event: error" in rest_of_stream
    assert any("reconnect and resume" in line for line in rest_of_stream)


async def test_s11_presence_ends_with_the_gateway_and_not_with_a_time_limit(
    own_mesh: MakeMesh, fresh_database: str
) -> None:
    mesh = own_mesh("rest-api", "mcp-server")
    wires = [await Wire.connect(mesh.ws_url, mesh.admin_key) for _ in range(5)]
    for number, wire in enumerate(wires):
        await wire.call("agent.register", name=f"agent-{number}")
    assert run_sql(fresh_database, "select count(*) from mcp.agent_sessions") == "5"
    [gateway] = mesh.of("mcp-server")
    gateway.signal(signal.SIGTERM)
    assert (await end_of(gateway))[0] == 0
    assert run_sql(fresh_database, "select count(*) from mcp.agent_sessions") == "0"


@pytest.mark.parametrize("state", ["away", pytest.param("frozen", marks=pytest.mark.soak)])
async def test_s11_a_database_that_is_gone_does_not_hold_up_the_stop(
    broken: Postgres, mesh_on: MakeMesh, state: str
) -> None:
    grace_s = 2.0
    mesh = mesh_on(broken.database(), DEVMESH_SHUTDOWN_GRACE_S=str(grace_s))
    await asyncio.to_thread(mesh.start, "rest-api", "mcp-server", "worker")
    wire = await Wire.connect(mesh.ws_url, mesh.admin_key)
    await wire.call("agent.register", name="stranded")
    async with rest_of(mesh) as http:
        with contextlib.ExitStack() as stack:
            if state == "frozen":
                stack.enter_context(broken.frozen())
            else:
                broken.server.stop("immediate")
                stack.callback(broken.server.start)
            asked: list[asyncio.Future[Any]] = [
                asyncio.ensure_future(wire.ask("task.create", {"title": "in flight"})),
                asyncio.ensure_future(http.post("/api/v1/tasks", json={"title": "in flight"})),
            ]
            answered = asyncio.gather(*asked, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(answered), 0.5)
            assert answered.done() == (state == "away")
            for child in mesh.children:
                child.signal(signal.SIGTERM)
            ends = await asyncio.gather(*(end_of(child, grace_s + LETTING_GO_S) for child in mesh.children))
            assert [code for code, _ in ends] == [0, 0, 0]
            assert "Traceback" not in "".join(child.log.read_text() for child in mesh.children)
            await answered


async def test_s11_a_second_signal_hurries(broken: Postgres, mesh_on: MakeMesh) -> None:
    mesh = mesh_on(broken.database(), DEVMESH_SHUTDOWN_GRACE_S="30")
    await asyncio.to_thread(mesh.start, "rest-api", "mcp-server")
    [gateway] = mesh.of("mcp-server")
    wire = await Wire.connect(mesh.ws_url, mesh.admin_key)
    with broken.frozen():
        in_flight = asyncio.ensure_future(wire.ask("task.create", {"title": "in flight"}))
        assert (await wire.ask("ping", {}))["result"] == {"pong": True}
        gateway.signal(signal.SIGTERM)
        await eventually(lambda: '"stopping"' in gateway.log.read_text(), "it is told to stop")
        assert gateway.process is not None
        assert gateway.process.poll() is None
        await asyncio.to_thread(until_a_signal_is_another)
        gateway.signal(signal.SIGTERM)
        assert (await end_of(gateway))[0] == 0
        with contextlib.suppress(ConnectionError):
            await in_flight


async def test_s11_a_signal_that_timeout_sends_twice_is_one(broken: Postgres, mesh_on: MakeMesh) -> None:
    mesh = mesh_on(broken.database(), DEVMESH_SHUTDOWN_GRACE_S="20")
    await asyncio.to_thread(mesh.start, "rest-api")
    [rest] = mesh.children
    assert rest.process is not None
    async with rest_of(mesh) as http:
        with broken.frozen():
            in_flight = asyncio.ensure_future(http.post("/api/v1/tasks", json={"title": "in flight"}))
            assert (await http.get("/healthz")).status_code == 200
            signal_twice(rest.process, signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):  # it does not go before it has answered
                await asyncio.to_thread(rest.wait, 2.5)
        assert (await in_flight).status_code == 201
    assert (await end_of(rest))[0] == 0


@pytest.mark.parametrize("waits_for", ["the database", "migrations", "an answer"])
async def test_s11_a_service_stops_during_its_start(broken: Postgres, mesh_on: MakeMesh, waits_for: str) -> None:
    dsn = broken.database()
    async with proxy_to(dsn) as proxy:
        if waits_for == "an answer":
            proxy.stall()
        nowhere = f"postgresql://postgres@127.0.0.1:{free_port()}/none"
        address = {"the database": nowhere, "migrations": dsn, "an answer": proxy.dsn}[waits_for]
        mesh = mesh_on(address, SKIP_MIGRATIONS="true")
        children = [mesh.add(service) for service in ("rest-api", "mcp-server", "worker")]
        for child in children:
            child.start()
        said = {"the database": "try 1 of 10", "migrations": "000001_foundation", "an answer": '"the database"'}
        for child in children:
            await eventually(functools.partial(has_logged, child, said[waits_for]), f"it waits for {waits_for}")
        for child in children:
            child.signal(signal.SIGTERM)
        ends = await asyncio.gather(*(end_of(child) for child in children))
        assert [code for code, _ in ends] == [0, 0, 0]


async def test_s11_what_is_in_flight_is_finished_and_who_comes_now_is_sent_elsewhere(
    broken: Postgres, mesh_on: MakeMesh
) -> None:
    mesh = mesh_on(broken.database(), DEVMESH_SHUTDOWN_GRACE_S="20")
    await asyncio.to_thread(mesh.start, "rest-api")
    [rest] = mesh.children
    async with rest_of(mesh) as http:
        with broken.frozen():
            in_flight = asyncio.ensure_future(http.post("/api/v1/tasks", json={"title": "in flight"}))
            assert (await http.get("/healthz")).status_code == 200
            rest.signal(signal.SIGTERM)
            await eventually(lambda: '"stopping"' in rest.log.read_text(), "it is told to stop")
            late = await http.post("/api/v1/tasks", json={"title": "late"})
            assert (late.status_code, late.json()["kind"], late.headers["connection"]) == (503, "unavailable", "close")
            assert "stopping" in late.json()["detail"]
            ready = await http.get("/readyz")
            assert (ready.status_code, ready.json()["reasons"]) == (503, ["the service is stopping"])
            assert (await http.get("/healthz")).status_code == 200
            with pytest.raises(subprocess.TimeoutExpired):  # it does not go before it has answered
                await asyncio.to_thread(rest.wait, 2.5)
        assert (await in_flight).status_code == 201
        assert (await end_of(rest))[0] == 0
