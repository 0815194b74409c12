"""What a service says of itself: alive at once, ready when it is, and never held up by a component that hangs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from devmesh.core.errors import unavailable
from devmesh.edges.boundary import application
from devmesh.edges.health import COMPONENT_LIMIT_S, Component, Health, Migrations, routes
from devmesh.store.connections import DatabaseUnreachable
from tests.edges.rest import Rest, new_key, problem_of
from tests.harness import Mesh, wait_until

SERVICES = ("rest-api", "mcp-server", "worker")


def url(mesh: Mesh, service: str, path: str) -> str:
    return f"http://127.0.0.1:{mesh.of(service)[0].port}{path}"


@pytest.mark.parametrize("service", SERVICES)
async def test_every_service_says_how_it_is(rest: Rest, mesh: Mesh, service: str) -> None:
    alive = await rest.http.get(url(mesh, service, "/healthz"))
    assert (alive.status_code, alive.json()) == (200, {"status": "alive"})
    ready = await rest.http.get(url(mesh, service, "/readyz"))
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "reasons": []})
    whole = (await rest.http.get(url(mesh, service, "/health"))).json()
    assert (whole["status"], whole["ready"], whole["service"]) == ("healthy", True, service)
    assert whole["components"]["database"]["status"] == "healthy"
    assert whole["components"]["database"]["latency_ms"] > 0
    migrations = whole["migrations"]
    assert (migrations["completed"], migrations["ready"], migrations["in_progress"]) == (True, True, False)
    assert migrations["version"] >= 1
    assert migrations["duration_ms"] > 0
    assert migrations["completed_at"] < whole["time"]
    assert "details" not in whole
    assert "details" in (await rest.http.get(url(mesh, service, "/health?details=true"))).json()
    metrics = await rest.http.get(url(mesh, service, "/metrics"))
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "# TYPE devmesh_calls_total counter" in metrics.text


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/health", "/metrics"])
async def test_head_works_too(rest: Rest, path: str) -> None:
    answer = await rest.http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("service", ["rest-api", "mcp-server"])
async def test_the_migration_status_is_for_administrators(rest: Rest, mesh: Mesh, tenant: str, service: str) -> None:
    place = url(mesh, service, "/admin/migration-status")
    assert problem_of(await rest.http.get(place))["kind"] == "unauthenticated"
    reader = (await new_key(rest, tenant))["secret"]
    assert problem_of(await rest.http.get(place, headers={"X-API-Key": reader}))["kind"] == "forbidden"
    answer = await rest.http.get(place, headers={"X-API-Key": tenant})
    assert (answer.status_code, answer.json()["completed"]) == (200, True)


def test_a_service_that_waits_is_alive_and_says_what_for(fresh_database: str, tmp_path: Path) -> None:
    """Nobody migrates here."""
    mesh = Mesh(fresh_database, tmp_path, {"SKIP_MIGRATIONS": "true"})
    child = mesh.add("rest-api")
    child.start()
    try:
        with httpx.Client(base_url=mesh.rest_url, trust_env=False) as http:
            wait_until(lambda: "000001_foundation" in _text(http, "/readyz"), "it says what is missing", 20.0)
            assert http.get("/healthz").status_code == 200
            ready = http.get("/readyz")
            assert (ready.status_code, ready.json()["ready"]) == (503, False)
            assert isinstance(ready.json()["reasons"], list)
            whole = http.get("/health")
            assert (whole.status_code, whole.json()["status"]) == (503, "unhealthy")
            assert whole.json()["migrations"]["completed"] is False
            for path in ("/api/v1/tasks", "/admin/migration-status"):
                problem = problem_of(http.get(path))
                assert (problem["kind"], problem["retryable"]) == ("unavailable", True)
    finally:
        child.end()


def _text(http: httpx.Client, path: str) -> str:
    try:
        return http.get(path).text
    except httpx.HTTPError:
        return ""


def client_of(health: Health) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=application(routes(health))), base_url="http://tests")


def started() -> Health:
    health = Health("tests")
    health.waiting_for = []
    return health


async def test_a_component_that_hangs_hides_no_other_and_is_asked_once() -> None:
    health, asked = started(), 0

    async def hang() -> Component:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()
        raise AssertionError("it never ends")

    async def answer() -> Component:
        return Component("healthy", "as ever")

    health.add("hanging", hang)
    health.add("well", answer)
    async with client_of(health) as http:
        began = time.monotonic()
        answers = await asyncio.gather(*(http.get("/health") for _ in range(20)))
        assert time.monotonic() - began < 2 * COMPONENT_LIMIT_S
    assert asked == 1
    for found in answers:
        assert found.status_code == 503
        components: dict[str, Any] = found.json()["components"]
        assert components["hanging"]["status"] == "unhealthy"
        assert "no answer" in components["hanging"]["message"]
        assert components["well"] == {
            "status": "healthy",
            "message": "as ever",
            "latency_ms": components["well"]["latency_ms"],
        }
        assert found.json()["reasons"] == [f"hanging: {components['hanging']['message']}"]


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (unavailable("the database is away for the moment"), "the database is away for the moment"),
        (DatabaseUnreachable("cannot reach 10.1.2.3", is_permanent=False), None),
        (RuntimeError("the password is tiger"), None),
    ],
)
async def test_a_component_that_fails_makes_the_service_not_ready(failure: Exception, said: str | None) -> None:
    health = started()

    async def fail() -> Component:
        raise failure

    health.add("failing", fail)
    async with client_of(health) as http:
        ready = await http.get("/readyz")
    assert ready.status_code == 503
    [reason] = ready.json()["reasons"]
    assert reason.startswith("failing: ")
    assert said is None or reason == f"failing: {said}"
    assert "tiger" not in reason
    assert "10.1.2.3" not in reason


async def test_a_degraded_component_leaves_the_service_ready() -> None:
    health = started()

    async def limp() -> Component:
        return Component("degraded", "its last pass failed")

    health.add("limping", limp)
    async with client_of(health) as http:
        whole = await http.get("/health")
    assert (whole.status_code, whole.json()["status"], whole.json()["ready"]) == (200, "degraded", True)


async def test_what_was_known_of_migrations_stays_known_but_not_ready() -> None:
    health, looks = started(), iter([True, False])

    async def look() -> Migrations:
        if not next(looks):
            raise DatabaseUnreachable("away", is_permanent=False)
        return Migrations(False, True, True, 7, None, 12.0, [])

    health.look_at_migrations(look)
    assert (await health.migrations()).ready
    health._migrations._answered_at = float("-inf")  # as if it were long ago
    known = await health.migrations()
    assert (known.version, known.completed, known.ready) == (7, True, False)
    assert known.problems


async def test_a_service_that_stops_is_alive_and_not_ready() -> None:
    health = started()
    health.is_stopping = True
    async with client_of(health) as http:
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/readyz")).json() == {"ready": False, "reasons": ["the service is stopping"]}
