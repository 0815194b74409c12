"""Redis as the bell's carrier: it may be killed, hang, turn us away and come back. Events go on arriving, health says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import QUICK, run_sql
from tests.harness import Child, Mesh, eventually, running_mesh
from tests.redis_server import PASSWORD, RedisServer, redis_server
from tests.wire import Wire

SERVICES = ("rest-api", "mcp-server", "mcp-server", "worker")
SETTINGS = {
    "DEVMESH_REDIS_TIMEOUT_S": "0.3",
    "DEVMESH_BREAKER_FAILURES_MAX": "2",
    "DEVMESH_BREAKER_OPEN_S": "0.5",
}
# Without a bell events come by polling: then one takes so long that a test can tell.
POLL_S = 5.0


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    """Running, whatever the test before has done to it."""
    shared_redis.start()
    return shared_redis


@pytest.fixture(scope="module")
def redis_mesh(
    create_database: Callable[[], str], shared_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mesh]:
    settings = {
        **QUICK, **SETTINGS, "REDIS_URL": shared_redis.url, "DEVMESH_FANOUT_POLL_INTERVAL_S": str(POLL_S),
    }  # fmt: skip
    directory = tmp_path_factory.mktemp("redis-mesh")
    with running_mesh(create_database(), directory, *SERVICES, settings=settings) as running:
        yield running


@pytest.fixture
async def mesh(redis: RedisServer, redis_mesh: Mesh) -> Mesh:
    await everywhere(redis_mesh, "healthy")
    return redis_mesh


def component(child: Child, name: str = "redis") -> dict[str, Any]:
    answer = httpx.get(f"http://127.0.0.1:{child.port}/health", timeout=5, trust_env=False).json()
    assert answer["ready"] is True, "nothing depends on Redis"
    found: dict[str, Any] = answer["components"][name]
    return found


async def everywhere(mesh: Mesh, status: str, message: str = "") -> None:
    def is_so() -> bool:
        found = [component(child) for child in mesh.children]
        return all(each["status"] == status and message in each["message"] for each in found)

    await eventually(is_so, f"redis is {status} {message!r}", 15.0)


async def arrives(writer: Wire, reader: Wire, within_s: float) -> float:
    """How long an event takes from one process to another."""
    began = time.monotonic()
    task = (await writer.call("task.create", title="news", assign="pull"))["task"]
    await reader.next_event("task.created", within_s, where=lambda event: event["data"]["task"]["id"] == task["id"])
    return time.monotonic() - began


async def best_of(writer: Wire, reader: Wire, tries: int = 3) -> float:
    """One event may come by the poll that was due, so it is not one alone that tells of the bell."""
    return min([await arrives(writer, reader, POLL_S + 2) for _ in range(tries)])


def connections(child: Child, port: int) -> int:
    assert child.process is not None
    open_ones = psutil.Process(child.process.pid).net_connections("tcp")
    return sum(1 for each in open_ones if bool(each.raddr) and each.raddr.port == port)


@pytest.mark.soak
@pytest.mark.timeout(240)
async def test_events_go_on_arriving_whatever_becomes_of_redis(mesh: Mesh, redis: RedisServer) -> None:
    first, second = mesh.of("mcp-server")
    async with (
        await Wire.connect(f"ws://127.0.0.1:{first.port}/ws", mesh.admin_key) as writer,
        await Wire.connect(f"ws://127.0.0.1:{second.port}/ws", mesh.admin_key) as reader,
    ):
        await reader.call("subscribe", topics=["tenant"])
        assert 0 < component(first)["latency_ms"] < 300
        before = first.metric('devmesh_rings_sent_total{carrier="redis"}')
        assert await best_of(writer, reader) < 1.0
        assert first.metric('devmesh_rings_sent_total{carrier="redis"}') > before
        kept = [connections(child, redis.port) for child in mesh.children]
        assert kept == [2] * len(SERVICES)

        redis.kill()
        assert await arrives(writer, reader, POLL_S + 2) < 1.0, "the first ring that fails goes by NOTIFY"
        await everywhere(mesh, "degraded", "PostgreSQL carries the bell meanwhile: ")
        assert await best_of(writer, reader) < 1.0
        await eventually(lambda: first.metric('devmesh_breaker_state{dependency="redis"}') == 2, "the breaker opens")
        redis.start()
        await everywhere(mesh, "healthy")

        with redis.frozen():
            assert await arrives(writer, reader, POLL_S + 2) < 1.5, "it waits for Redis once, and not for long"
            await everywhere(mesh, "degraded")
            assert await best_of(writer, reader) < 1.0
        await everywhere(mesh, "healthy")
        before = first.metric('devmesh_rings_sent_total{carrier="redis"}')
        assert await best_of(writer, reader) < 1.0
        assert first.metric('devmesh_rings_sent_total{carrier="redis"}') > before
    await eventually(
        lambda: [connections(child, redis.port) for child in mesh.children] == kept, "no connection leaks", 25.0
    )
    await eventually(lambda: redis.info("connected_clients") == 2 * len(SERVICES) + 1, "nor on the other side")


async def test_redis_carries_the_bell_while_notify_cannot(mesh: Mesh) -> None:
    first, second = mesh.of("mcp-server")
    run_sql(mesh.dsn, "revoke execute on function pg_notify(text, text) from public")
    try:
        async with (
            await Wire.connect(f"ws://127.0.0.1:{first.port}/ws", mesh.admin_key) as writer,
            await Wire.connect(f"ws://127.0.0.1:{second.port}/ws", mesh.admin_key) as reader,
        ):
            await reader.call("subscribe", topics=["tenant"])
            assert await best_of(writer, reader) < 1.0
        assert component(first, "bell")["status"] == "healthy"
    finally:
        run_sql(mesh.dsn, "grant execute on function pg_notify(text, text) to public")


@pytest.mark.soak
async def test_a_redis_that_is_away_from_the_start_hinders_nobody_and_floods_no_log(
    own_mesh: Callable[..., Mesh], redis: RedisServer
) -> None:
    redis.kill()
    mesh = own_mesh("rest-api", "mcp-server", **SETTINGS, REDIS_URL=redis.url)
    await everywhere(mesh, "degraded", "PostgreSQL carries the bell meanwhile: ")
    [gateway] = mesh.of("mcp-server")
    await eventually(lambda: gateway.metric('devmesh_breaker_state{dependency="redis"}') == 2, "it is left alone")
    began = time.monotonic()
    async with await Wire.connect(mesh.ws_url, mesh.admin_key) as wire:
        await wire.call("subscribe", topics=["tenant"])
        while time.monotonic() - began < 3:
            await wire.call("task.create", title="x", assign="pull")
            await wire.next_event("task.created")
    about_redis = [line for line in gateway.log.read_text().splitlines() if "redis" in line and '"warning"' in line]
    assert len([line for line in about_redis if "redis is away" in line]) == 1
    assert len(about_redis) < 10
    redis.start()
    await everywhere(mesh, "healthy")
    logs = "".join(child.log.read_text() for child in mesh.children)
    assert "redis carries the bell" in logs
    assert PASSWORD not in logs


async def test_a_redis_that_turns_us_away_is_said_without_its_password(
    own_mesh: Callable[..., Mesh], redis: RedisServer
) -> None:
    wrong = redis.url.replace(PASSWORD, "wr0ng-s3cret")
    mesh = own_mesh("rest-api", **SETTINGS, REDIS_URL=wrong)
    await everywhere(mesh, "degraded", "password")
    assert "wr0ng-s3cret" not in "".join(child.log.read_text() for child in mesh.children)
    assert "wr0ng-s3cret" not in str(component(mesh.children[0]))


async def test_what_others_publish_on_the_channel_is_ignored(mesh: Mesh, redis: RedisServer) -> None:
    logged = [child.log.stat().st_size for child in mesh.children]
    for noise in (b"nonsense", b":", b"x:" + b"f" * 32 + b",", b"x:" + b"\xff" * 10, b"x:*", b'""'):
        redis._ask(b"PUBLISH devmesh_bell " + noise)
    first, second = mesh.of("mcp-server")
    async with (
        await Wire.connect(f"ws://127.0.0.1:{first.port}/ws", mesh.admin_key) as writer,
        await Wire.connect(f"ws://127.0.0.1:{second.port}/ws", mesh.admin_key) as reader,
    ):
        await reader.call("subscribe", topics=["tenant"])
        assert await best_of(writer, reader) < 1.0
    await everywhere(mesh, "healthy")
    for child, size in zip(mesh.children, logged, strict=True):
        assert "redis is away" not in child.log.read_text()[size:]


async def test_without_a_redis_nobody_speaks_of_one(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api")
    answer = httpx.get(f"{mesh.rest_url}/health", timeout=5, trust_env=False).json()
    assert "redis" not in answer["components"]
