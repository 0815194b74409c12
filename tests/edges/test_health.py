"""What a service says of itself: alive at once, ready when it is, and never held up by a component that hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from devmesh.core.components import Component, degraded, healthy
from devmesh.core.errors import unavailable
from devmesh.edges.boundary import application
from devmesh.edges.health import AGE_S_MAX, LOOK_INTERVAL_S, Health, Migrations, routes
from devmesh.edges.questions import ANSWER_LIMIT_S
from devmesh.store.connections import DatabaseUnreachable
from tests.edges.rest import Rest, new_key, new_task, problem_of
from tests.harness import Mesh, eventually, wait_until
from tests.wire import Wire

SERVICES = ("rest-api", "mcp-server", "worker")


def url(mesh: Mesh, service: str, path: str) -> str:
    return f"http://127.0.0.1:{mesh.of(service)[0].port}{path}"


@pytest.mark.parametrize("service", SERVICES)
async def test_every_service_says_how_it_is(rest: Rest, mesh: Mesh, service: str) -> None:
    alive = await rest.http.get(url(mesh, service, "/healthz"))
    assert (alive.status_code, alive.json()) == (200, {"status": "alive"})
    ready = await rest.http.get(url(mesh, service, "/readyz"))
    assert (ready.status_code, ready.json()["ready"], ready.json()["reasons"]) == (200, True, [])
    assert 0 <= ready.json()["age_ms"] < AGE_S_MAX * 1000
    whole: dict[str, Any] = {}

    async def has_seen_the_migration_end() -> bool:
        whole.update((await rest.http.get(url(mesh, service, "/health"))).json())
        return whole["migrations"]["in_progress"] is False

    await eventually(has_seen_the_migration_end, "its last look at the migrations is later than their end")
    assert (whole["status"], whole["ready"], whole["service"]) == ("healthy", True, service)
    assert whole["components"]["database"]["status"] == "healthy"
    assert whole["components"]["database"]["latency_ms"] > 0
    for component in whole["components"].values():
        assert component["status"] == "healthy"
        assert 0 <= component["age_ms"] < AGE_S_MAX * 1000
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


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("query", ["details=maybe", "details=", "details=true&details=false", "detials=true", "x=1"])
async def test_a_question_that_means_nothing_is_refused(rest: Rest, mesh: Mesh, service: str, query: str) -> None:
    problem = problem_of(await rest.http.get(url(mesh, service, f"/health?{query}")))
    assert (problem["status"], problem["field"]) == (400, query.partition("=")[0])


@pytest.mark.parametrize("service", SERVICES)
async def test_the_migration_status_is_for_administrators(rest: Rest, mesh: Mesh, tenant: str, service: str) -> None:
    place = url(mesh, service, "/admin/migration-status")
    assert problem_of(await rest.http.get(place))["kind"] == "unauthenticated"
    reader = (await new_key(rest, tenant))["secret"]
    assert problem_of(await rest.http.get(place, headers={"X-API-Key": reader}))["kind"] == "forbidden"
    answer = await rest.http.get(place, headers={"X-API-Key": tenant})
    assert (answer.status_code, answer.json()["completed"]) == (200, True)


def test_a_service_that_waits_is_alive_and_says_what_for(empty_database: str, tmp_path: Path) -> None:
    """Nobody migrates here."""
    mesh = Mesh(empty_database, tmp_path, {"SKIP_MIGRATIONS": "true"})
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


@pytest.fixture
async def health() -> AsyncIterator[Health]:
    """Of a service that has started. It looks when a test tells it to, or at intervals once it is started itself."""
    health = Health("tests")
    health.waiting_for = []
    yield health
    await health.stop()


async def test_a_component_that_hangs_holds_nobody_up_and_is_asked_once(health: Health) -> None:
    asked = 0

    async def hang() -> Component:
        nonlocal asked
        asked += 1
        while True:  # not even a cancellation ends it at once
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(3 * ANSWER_LIMIT_S)
                raise

    async def answer() -> Component:
        return healthy("as ever")

    health.add("hanging", hang)
    health.add("well", answer)
    health.start()
    async with client_of(health) as http:
        await eventually(lambda: "no answer" in health.components["hanging"].message, "the limit is over")
        began = time.monotonic()
        answers = await asyncio.gather(*(http.get("/health") for _ in range(50)))
        assert time.monotonic() - began < ANSWER_LIMIT_S / 2
        await eventually(lambda: health.components["well"].age_ms < 100, "the other one is asked anew")
    assert asked == 1
    for found in answers:
        assert found.status_code == 503
        components: dict[str, Any] = found.json()["components"]
        assert components["hanging"]["status"] == "unhealthy"
        assert "no answer" in components["hanging"]["message"]
        assert (components["well"]["status"], components["well"]["message"]) == ("healthy", "as ever")
        assert found.json()["reasons"] == [f"hanging: {components['hanging']['message']}"]


async def test_a_component_that_was_not_asked_yet_is_not_taken_for_well(health: Health) -> None:
    async def answer() -> Component:
        return healthy()

    health.add("new", answer)
    assert health.reasons == ["new: it was not looked at yet"]
    await health.run_once()
    assert health.reasons == []


async def test_readiness_does_not_rest_on_old_answers(health: Health) -> None:
    """The loop does not run here: it is as if it hung."""

    async def answer() -> Component:
        return healthy()

    health.add("well", answer)
    await health.run_once()
    async with client_of(health) as http:
        assert (await http.get("/readyz")).status_code == 200
        health._questions["well"]._answered_at = time.monotonic() - AGE_S_MAX - 1
        ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()["age_ms"] > AGE_S_MAX * 1000) == (503, True)
    assert "has not looked at itself" in ready.json()["reasons"][0]


async def test_a_component_is_asked_at_its_own_intervals(health: Health) -> None:
    asked = {"often": 0, "seldom": 0}

    def check_of(name: str) -> Callable[[], Awaitable[Component]]:
        async def check() -> Component:
            asked[name] += 1
            return healthy()

        return check

    health.add("often", check_of("often"))
    health.add("seldom", check_of("seldom"), interval_s=3600.0)
    health.start()
    await eventually(lambda: asked["often"] >= 3, "it is asked again", 5 * LOOK_INTERVAL_S)
    assert asked["seldom"] == 1


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (unavailable("the database is away for the moment"), "the database is away for the moment"),
        (DatabaseUnreachable("cannot reach 10.1.2.3", is_permanent=False), None),
        (RuntimeError("the password is tiger"), None),
    ],
)
async def test_a_component_that_fails_makes_the_service_not_ready(
    health: Health, failure: Exception, said: str | None
) -> None:
    async def fail() -> Component:
        raise failure

    health.add("failing", fail)
    await health.run_once()
    async with client_of(health) as http:
        ready = await http.get("/readyz")
    assert ready.status_code == 503
    [reason] = ready.json()["reasons"]
    assert reason.startswith("failing: ")
    assert said is None or reason == f"failing: {said}"
    assert "tiger" not in reason
    assert "10.1.2.3" not in reason


async def test_a_degraded_component_leaves_the_service_ready(health: Health) -> None:
    async def limp() -> Component:
        return degraded("its last pass failed")

    health.add("limping", limp)
    await health.run_once()
    async with client_of(health) as http:
        whole = await http.get("/health")
    assert (whole.status_code, whole.json()["status"], whole.json()["ready"]) == (200, "degraded", True)


async def test_details_are_shown_under_their_names(health: Health) -> None:
    health.add_details("pools", lambda: {"size": 3})
    health.add_details("queues", lambda: [1, 2])
    async with client_of(health) as http:
        assert "details" not in (await http.get("/health?details=false")).json()
        assert (await http.get("/health?details=true")).json()["details"] == {"pools": {"size": 3}, "queues": [1, 2]}


async def test_what_was_known_of_migrations_stays_known_but_not_ready(health: Health) -> None:
    looks = iter([True, False])

    async def look() -> Migrations:
        if not next(looks):
            raise DatabaseUnreachable("away", is_permanent=False)
        return Migrations(False, True, True, 7, None, 12.0, [])

    health.look_at_migrations(look)
    assert not health.migrations.ready
    await health.run_once()
    assert health.migrations.ready
    health._migrations._answered_at = float("-inf")  # as if it were long ago
    await health.run_once()
    known = health.migrations
    assert (known.version, known.completed, known.ready) == (7, True, False)
    assert known.problems


async def test_a_service_that_stops_is_alive_and_not_ready(health: Health) -> None:
    health.is_stopping = True
    async with client_of(health) as http:
        assert (await http.get("/healthz")).status_code == 200
        ready = (await http.get("/readyz")).json()
        assert (ready["ready"], ready["reasons"]) == (False, ["the service is stopping"])


async def test_details_are_pools_queues_partitions_and_connections(rest: Rest, mesh: Mesh, tenant: str) -> None:
    async def details(service: str) -> dict[str, Any]:
        found: dict[str, Any] = (await rest.http.get(url(mesh, service, "/health?details=true"))).json()["details"]
        return found

    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        agent = (await wire.call("agent.register", name="holder"))["agent"]
        await new_task(rest, tenant)
        await new_task(rest, tenant)
        await wire.call("task.claim", agent_id=agent["id"])
        await wire.call("job.enqueue", type="t")
        for service in SERVICES:
            shown = await details(service)
            assert shown["pool"]["size"] >= 1
            assert {"idle", "waiting"} <= shown["pool"].keys()
            assert {"events", "audit_log"} <= {table["table"] for table in shown["partitions"]}

            async def are_counted(service: str = service) -> bool:
                shown = await details(service)
                tasks, jobs = shown["tasks"], shown["jobs"]
                is_counted = tasks["pending"] and tasks["held"] and tasks["pending"] <= tasks["counted_max"]
                return bool(is_counted and jobs.get("waiting") and "dead_letters" in jobs)

            await eventually(are_counted, f"{service} counts tasks and jobs", 15.0)
        gateway = await details("mcp-server")
        assert gateway["connections"]["open"] >= 1
        assert gateway["connections"]["outbox_bytes"] >= gateway["connections"]["fullest_outbox_bytes"] >= 0
    assert (await details("rest-api"))["event_streams"]["open"] >= 0
    assert isinstance((await details("rest-api"))["calls"], dict)


async def test_readiness_is_answered_in_five_milliseconds_and_asks_nobody(rest: Rest, mesh: Mesh) -> None:
    """The best of many, because the machine may be busy with other tests; what is asked takes longer than that."""
    durations_s = []
    for _ in range(100):
        began = time.perf_counter()
        assert (await rest.http.get(url(mesh, "rest-api", "/readyz"))).status_code == 200
        durations_s.append(time.perf_counter() - began)
    assert min(durations_s) < 0.005
