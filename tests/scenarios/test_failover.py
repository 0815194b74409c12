"""S10 and its kin: whatever becomes of PostgreSQL, services stay up, say so, and go on by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sized
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import asyncpg
import httpx
import pytest
import pytest_asyncio

from devmesh.client import Client
from devmesh.core.errors import MeshError
from devmesh.engine import notify_bell
from devmesh.engine.notify_bell import NotifyBell
from devmesh.store import notifications
from devmesh.store.database import Database, Transaction
from devmesh.store.statements import load
from tests.breaking import Postgres, Proxy, proxy_to
from tests.conftest import QUICK
from tests.harness import Child, Mesh, eventually
from tests.wire import Wire

CLOCK = load("clock")
DEADLINE_S = 2.0
ANSWER_S = DEADLINE_S + 6.0  # beyond the deadline: counting rates, undoing, looking at late ones; and a loaded machine
NOTICE_S = 6.0
RECOVERY_S = 10.0
MakeMesh = Callable[..., Mesh]


class Broken(NamedTuple):
    """What a test of this file breaks: a mesh, its PostgreSQL, and the wire between them."""

    mesh: Mesh
    postgres: Postgres
    proxy: Proxy
    http: httpx.AsyncClient

    async def create(self) -> httpx.Response:
        return await self.http.post("/api/v1/tasks", json={"title": "during the fault", "assign": "pull"})

    async def readiness(self, child: Child) -> tuple[int, str]:
        answer = await self.http.get(f"http://127.0.0.1:{child.port}/readyz")
        return answer.status_code, "; ".join(answer.json()["reasons"])

    async def all_ready(self) -> bool:
        return all([(await self.readiness(child))[0] == 200 for child in self.mesh.children])

    async def none_ready(self, reason: str) -> bool:
        found = [await self.readiness(child) for child in self.mesh.children]
        return all(code == 503 and reason in why for code, why in found)


@pytest_asyncio.fixture(scope="module")
async def parts(_own_postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broken]:
    """Three services that reach their database through a proxy. They are never restarted: they have to recover."""
    directory: Path = tmp_path_factory.mktemp("failover")
    async with proxy_to(_own_postgres.database()) as proxy:
        settings = {
            **QUICK,
            "DEVMESH_TRANSACTION_DEADLINE_S": str(DEADLINE_S),
            "DEVMESH_GATHER_BATCH_MAX": "32",
            "DEVMESH_GATHER_IN_FLIGHT_MAX": "2",
        }
        mesh = Mesh(proxy.dsn, directory, settings)
        try:
            await asyncio.to_thread(mesh.start, "rest-api", "mcp-server", "worker")
            headers = {"Authorization": f"Bearer {mesh.admin_key}"}
            async with httpx.AsyncClient(
                base_url=mesh.rest_url, headers=headers, trust_env=False, timeout=30.0
            ) as http:
                yield Broken(mesh, _own_postgres, proxy, http)
        finally:
            mesh.end()


@asynccontextmanager
async def stopped(parts: Broken) -> AsyncIterator[None]:
    await asyncio.to_thread(parts.postgres.server.stop, "immediate")
    yield
    await asyncio.to_thread(parts.postgres.server.start)


@asynccontextmanager
async def killed(parts: Broken) -> AsyncIterator[None]:
    await asyncio.to_thread(parts.postgres.kill)
    yield
    await asyncio.to_thread(parts.postgres.server.start)


@asynccontextmanager
async def frozen(parts: Broken) -> AsyncIterator[None]:
    with parts.postgres.frozen():
        yield


@asynccontextmanager
async def read_only(parts: Broken) -> AsyncIterator[None]:
    parts.postgres.sql("alter system set default_transaction_read_only = on")
    parts.postgres.sql("select pg_reload_conf()")
    yield
    parts.postgres.sql("alter system reset default_transaction_read_only")
    parts.postgres.sql("select pg_reload_conf()")


@asynccontextmanager
async def stalled(parts: Broken) -> AsyncIterator[None]:
    parts.proxy.stall()
    yield
    parts.proxy.flow()


@asynccontextmanager
async def unreachable(parts: Broken) -> AsyncIterator[None]:
    await parts.proxy.refuse()
    parts.proxy.cut()
    yield
    await parts.proxy.open()


@asynccontextmanager
async def used_up(parts: Broken) -> AsyncIterator[None]:
    """Somebody else holds every connection that the server has."""
    holders: list[asyncpg.Connection] = []
    try:
        while True:
            parts.proxy.cut()  # what the services held is taken as well
            with contextlib.suppress(asyncpg.TooManyConnectionsError):
                while True:
                    holders.append(await asyncpg.connect(parts.postgres.dsn))
            if not [child for child in parts.mesh.children if (await parts.readiness(child))[0] == 200]:
                break
            await asyncio.sleep(0.05)
        yield
    finally:
        for holder in holders:
            await holder.close()


class Fault(NamedTuple):
    """How it is brought about, and what whoever asks is told meanwhile."""

    bring_about: Callable[[Broken], AbstractAsyncContextManager[None]]
    reason: str
    kinds: tuple[str, ...]


AWAY = ("unavailable",)
SILENT = ("timeout", "unavailable")  # a call that was in flight is late; one that found no connection is turned away
FAULTS = {
    "stopped": Fault(stopped, "database: the database is away", AWAY),
    "killed": Fault(killed, "database: the database is away", AWAY),
    "frozen": Fault(frozen, "database: no answer", SILENT),
    "read-only": Fault(read_only, "database: the database takes no writes", AWAY),
    "stalled": Fault(stalled, "database: no answer", SILENT),
    "unreachable": Fault(unreachable, "database: the database is away", AWAY),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.soak] if name in ("stalled", "unreachable") else []) for name in FAULTS],
)
async def test_s10_services_outlive_what_becomes_of_the_database_and_say_what_it_is(parts: Broken, name: str) -> None:
    fault = FAULTS[name]
    pids = [child.process.pid for child in parts.mesh.children if child.process]
    async with await Wire.connect(parts.mesh.ws_url, parts.mesh.admin_key) as wire:
        async with fault.bring_about(parts):
            await eventually(lambda: parts.none_ready(fault.reason), f"all say {fault.reason!r}", NOTICE_S)
            began = time.monotonic()
            over_rest, over_websocket = await asyncio.gather(
                parts.create(), wire.ask("task.create", {"title": "during the fault", "assign": "pull"})
            )
            assert time.monotonic() - began < ANSWER_S
            for problem in (over_rest.json(), over_websocket["error"]["data"]):
                assert problem["kind"] in fault.kinds
                assert problem["retryable"] is True
                assert (problem["kind"] != "unavailable") or problem["retry_after_ms"] > 0
            for child in parts.mesh.children:
                url = f"http://127.0.0.1:{child.port}"
                assert (await parts.http.get(f"{url}/healthz", timeout=1.0)).status_code == 200
                whole = await parts.http.get(f"{url}/health", timeout=1.0)
                assert (whole.status_code, whole.json()["status"]) == (503, "unhealthy")
                assert whole.json()["components"]["database"]["status"] == "unhealthy"
        await eventually(parts.all_ready, "all are ready again", RECOVERY_S)
        await _works_again(parts, wire)
    assert pids == [child.process.pid for child in parts.mesh.children if child.process]


async def _works_again(parts: Broken, wire: Wire) -> None:
    """Within the recovery time, on connections that were there before the fault, with the worker doing its part."""
    ends_at = time.monotonic() + RECOVERY_S
    while (answer := await parts.create()).status_code != 201:
        assert time.monotonic() < ends_at, answer.text
        assert answer.json()["retryable"] is True
    agent = (await wire.call("agent.register", name="survivor", capabilities=["survive"]))["agent"]
    task = (await wire.call("task.create", title="after the fault", required_capabilities=["survive"]))["task"]
    assigned = await wire.next_event(
        "task.assigned", RECOVERY_S, lambda event: event["data"]["task"]["id"] == task["id"]
    )
    assert assigned["data"]["task"]["assigned_to"] == agent["id"]
    await wire.call("task.complete", task_id=task["id"], attempt=1)


@pytest.mark.soak
async def test_s10_connections_used_up_by_somebody_else_are_waited_for(parts: Broken) -> None:
    parts.postgres.sql("alter system set max_connections = 40")
    await asyncio.to_thread(parts.postgres.restart)
    await eventually(parts.all_ready, "all are ready on a small server", RECOVERY_S)
    async with used_up(parts):
        await eventually(lambda: parts.none_ready("no connection or memory to spare"), "they say why", NOTICE_S)
        answer = await parts.create()
        assert (answer.status_code, answer.json()["kind"]) == (503, "unavailable")
        assert answer.json()["retry_after_ms"] > 0
    await eventually(parts.all_ready, "all are ready again", RECOVERY_S)
    assert (await parts.create()).status_code == 201
    parts.postgres.sql("alter system reset max_connections")
    await asyncio.to_thread(parts.postgres.restart)
    await eventually(parts.all_ready, "all are ready again", RECOVERY_S)


async def test_s10_sessions_that_an_administrator_or_a_crash_ends_are_replaced(parts: Broken) -> None:
    await eventually(parts.all_ready, "all are ready", RECOVERY_S)
    parts.postgres.terminate_backends("devmesh %")
    assert (await parts.create()).status_code == 201  # what was idle is replaced before anybody notices
    backend = int(
        parts.postgres.sql("select pid from pg_stat_activity where application_name = 'devmesh rest-api' limit 1")
    )
    os.kill(backend, signal.SIGKILL)  # PostgreSQL then ends all others and recovers
    ends_at = time.monotonic() + RECOVERY_S
    while (answer := await parts.create()).status_code != 201:
        assert answer.json()["kind"] == "unavailable"
        assert time.monotonic() < ends_at
    await eventually(parts.all_ready, "all are ready again", RECOVERY_S)


@pytest.mark.soak
async def test_s10_connections_that_a_firewall_has_forgotten_cost_one_deadline_and_are_replaced(parts: Broken) -> None:
    await eventually(parts.all_ready, "all are ready", RECOVERY_S)
    await asyncio.gather(*(parts.create() for _ in range(30)))  # there are several connections to forget
    parts.proxy.forget()
    began = time.monotonic()
    answers = await asyncio.gather(*(parts.create() for _ in range(30)))
    assert time.monotonic() - began < 2 * ANSWER_S  # a key's check and the call itself, one after the other
    assert {answer.status_code for answer in answers} <= {201, 503, 504}
    await eventually(parts.all_ready, "all are ready again", RECOVERY_S)
    for _ in range(30):
        began = time.monotonic()
        assert (await parts.create()).status_code == 201
        assert time.monotonic() - began < DEADLINE_S


async def test_s10_one_call_finds_out_for_all_that_the_connections_lead_nowhere(broken: Postgres) -> None:
    async with proxy_to(broken.database()) as proxy:
        database = await Database.open(
            proxy.dsn, service="tests", pool_size_min=4, pool_size_max=4, transaction_deadline_s=1.0
        )
        try:
            await asyncio.gather(*(database.run(_look) for _ in range(4)))
            proxy.forget()
            with pytest.raises(MeshError):
                await database.run(_look)
            assert await asyncio.gather(*(database.run(_look) for _ in range(4))) == [True] * 4
        finally:
            await database.close(0.5)


async def _look(tx: Transaction) -> bool:
    return await tx.fetch_value(CLOCK.now) is not None


@pytest.mark.soak
async def test_s10_whoever_only_listens_finds_out_that_nobody_can_be_heard(
    broken: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify_bell, "PROBE_INTERVAL_S", 0.1)
    monkeypatch.setattr(notifications, "NOTIFY_LIMIT_S", 0.3)
    heard: list[str] = []
    async with proxy_to(broken.database()) as proxy:
        database = await Database.open(
            proxy.dsn, service="tests", pool_size_min=1, pool_size_max=1, transaction_deadline_s=5.0
        )
        bell = NotifyBell(database)
        bell.serve(heard.append, lambda: heard.append("up"))
        bell.start()
        await eventually(lambda: heard == ["up"], "it listens")
        proxy.forget()
        await eventually(lambda: heard == ["up", "up"], "it listens on a new connection")
        other = await asyncpg.connect(proxy.dsn)
        await other.execute(f"notify {notifications.CHANNEL}, 'ring'")
        await eventually(lambda: heard[2:] == ["ring"], "it hears again")
        await other.close()
        await bell.stop()
        await database.close(0.5)


@pytest.mark.soak
async def test_s10_calls_behind_a_silent_database_are_answered_by_their_deadline_too(parts: Broken) -> None:
    """More than fit into what is in flight at once: nobody waits for those before them to fail, one after another."""
    await eventually(parts.all_ready, "all are ready", RECOVERY_S)
    async with await Wire.connect(parts.mesh.ws_url, parts.mesh.admin_key) as wire:
        with parts.postgres.frozen():
            began = time.monotonic()
            asked = [
                asyncio.create_task(wire.ask("task.create", {"title": str(number), "assign": "pull"}))
                for number in range(250)
            ]
            answers = await asyncio.gather(*asked)
            assert time.monotonic() - began < ANSWER_S
        kinds = {answer["error"]["data"]["kind"] for answer in answers}
        assert kinds <= set(SILENT)
    await eventually(parts.all_ready, "all are ready again", RECOVERY_S)


def has_come_to(found: Sized, count: int) -> bool:
    return len(found) >= count


async def test_s10_postgresql_restarted_under_load_loses_nothing_and_the_client_hides_it(parts: Broken) -> None:
    await eventually(parts.all_ready, "all are ready", RECOVERY_S)
    numbers, acknowledged, enough = itertools.count(), dict[str, str](), asyncio.Event()
    async with Client(parts.mesh.ws_url, parts.mesh.admin_key) as client, client.events("tenant") as events:

        async def create() -> None:
            while not enough.is_set():
                title = f"kept {next(numbers)}"
                acknowledged[title] = str((await client.tasks.create(title, assign="pull")).id)

        creators = [asyncio.create_task(create()) for _ in range(24)]
        for _ in range(2):
            more = functools.partial(has_come_to, acknowledged, len(acknowledged) + 200)
            await eventually(more, "they are created at a rate", 20.0)
            await asyncio.to_thread(parts.postgres.restart)
            up_again = time.monotonic()
            await eventually(parts.all_ready, "all are ready again", RECOVERY_S)
            assert time.monotonic() - up_again < RECOVERY_S
        enough.set()
        await asyncio.gather(*creators)  # raises nothing
        told: list[str] = []
        async with asyncio.timeout(20):
            while len(told) < len(acknowledged):
                event = await events.next()
                if event.type == "task.created" and event.data["task"]["title"] in acknowledged:
                    told.append(event.data["task"]["title"])
    assert sorted(told) == sorted(acknowledged)
    name = parts.proxy.dsn.rpartition("/")[2]
    connection = await asyncpg.connect(parts.postgres.dsn.replace("/devmesh?", f"/{name}?"))
    rows = await connection.fetch("select title, task_id::text from mcp.tasks where title like 'kept %'")
    await connection.close()
    assert sorted(tuple(row) for row in rows) == sorted(acknowledged.items())
