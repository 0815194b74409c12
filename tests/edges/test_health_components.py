"""Each component of each service in each of its states, by breaking what it stands on."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import signal
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import httpx
import pytest

from tests.breaking import Postgres, own_postgres
from tests.conftest import QUICK, run_sql
from tests.harness import Mesh, eventually
from tests.wire import Wire

SERVICES = ("rest-api", "mcp-server", "worker")
STUCK_AFTER_S = 1.5
SETTINGS = {
    **QUICK,
    "DEVMESH_LOOP_PASS_S_MAX": str(STUCK_AFTER_S),
    "DEVMESH_DATABASE_POOL_SIZE_MAX": "4",
    "DEVMESH_QUEUE_DEPTHS_INTERVAL_S": "0.5",
    "DEVMESH_KEY_CHECK_INTERVAL_S": "0.5",
    "DEVMESH_SCHEMA_CHECK_INTERVAL_S": "0.5",
    "DEVMESH_REENCRYPTION_INTERVAL_S": "0.5",
    "DEVMESH_PARTITION_CHECK_INTERVAL_S": "0.5",
    "DEVMESH_CONTEXT_KEEPER_INTERVAL_S": "0.5",
    "ENCRYPTION_MASTER_KEY": base64.b64encode(bytes(range(32))).decode(),
}

# What some loops cannot do without. A pass fails while its table has another name, and hangs while it is locked.
TABLES = {
    ("worker", "assigner"): "tasks",
    ("worker", "reaper"): "tasks",
    ("worker", "job-reaper"): "jobs_leased",
    ("worker", "job-limits-keeper"): "jobs_limited",
    ("worker", "job-promoter"): "jobs_ready",
    ("worker", "context-keeper"): "execution_contexts",
    ("worker", "scheduler"): "schedules",
    ("worker", "worker-watch"): "workers",
    ("worker", "snapshotter"): "snapshot_policies",
    ("worker", "presence"): "agent_sessions",
    ("mcp-server", "session-keeper"): "agent_sessions",
    ("mcp-server", "key-watch"): "api_keys",
    ("rest-api", "key-watch"): "api_keys",
    ("mcp-server", "fanout"): "events",
    ("rest-api", "fanout"): "events",
    ("mcp-server", "api-log"): "api_logs",
    ("rest-api", "api-log"): "api_logs",
    **{(service, "queue-depths"): "tasks" for service in SERVICES},
}
# Those whose every pass asks the database.
ASKING = [
    *((service, name) for service in SERVICES for name in ("notify", "schema")),
    ("rest-api", "limits-keeper"),
    ("mcp-server", "limits-keeper"),
    ("worker", "re-encryption"),
    ("worker", "partition-keeper"),
]

FAILING = "test_loops_whose_passes_fail_are_degraded"
HANGING = "test_loops_whose_passes_hang_are_unhealthy"
TURNED_AWAY = "test_loops_that_the_database_turns_away_are_degraded"
SILENT = "test_a_database_that_hangs_and_the_loops_that_wait_for_it_are_unhealthy"
LOOP = {"degraded": FAILING, "unhealthy": HANGING}
ASKING_LOOP = {"degraded": TURNED_AWAY, "unhealthy": SILENT}

# Which test shows each component in each state that is not healthy, or `-` and why it cannot come to it.
STATES: dict[str, dict[str, str]] = {
    "database": {
        "degraded": "test_a_database_that_answers_others_is_busy_and_not_away",
        "unhealthy": SILENT,
    },
    "migrations": {
        "degraded": "- they are served or they are not",
        "unhealthy": "tests.scenarios.test_starting_schema:test_a_migration_that_becomes_dirty_while_services_run_is_told",
    },
    "schema": {
        "degraded": "tests.scenarios.test_starting_schema:test_s5_what_is_there_besides_warns_and_no_more",
        "unhealthy": "tests.scenarios.test_starting_schema:"
        "test_s5_a_piece_that_is_dropped_is_named_with_its_sql_and_comes_back_without_a_restart",
    },
    "partitions": {
        "degraded": "tests.scenarios.test_s13_partitions:"
        "test_s13_what_is_missing_is_reported_by_every_service_and_mended_by_the_keeper",
        "unhealthy": "tests.scenarios.test_s13_partitions:"
        "test_s13_a_table_that_takes_no_rows_makes_services_not_ready_until_it_does",
    },
    "encryption": {
        "degraded": "tests.store.test_vault:"
        "test_a_service_that_was_not_given_the_new_master_key_reads_on_until_it_is_started_again",
        "unhealthy": "tests.scenarios.test_encryption:test_a_service_with_the_wrong_key_is_not_ready_and_names_the_keys",
    },
    "jwks": {
        "degraded": "tests.scenarios.test_token_keys:test_an_operator_s_keys_outlive_their_server_for_a_while",
        "unhealthy": "tests.scenarios.test_token_keys:test_without_any_keys_the_operator_s_service_is_not_ready",
    },
    "redis": {
        "degraded": "tests.scenarios.test_redis:test_events_go_on_arriving_whatever_becomes_of_redis",
        "unhealthy": "- nothing is lost without it",
    },
    "vectors": {
        "degraded": "tests.scenarios.test_contexts:"
        "test_a_database_without_the_extension_says_what_is_missing_and_does_the_rest",
        "unhealthy": "- nothing is lost without them",
    },
    "context-indexer": {
        "degraded": "tests.scenarios.test_contexts_qdrant:test_while_qdrant_is_away_nothing_is_lost_and_words_are_searched",
        "unhealthy": "- what it asks of Qdrant ends by a limit of its own",
    },
    "context-embedder": {
        "degraded": "tests.engine.test_context_embedder:test_an_embedder_that_is_busy_or_hangs_is_told_and_nothing_is_lost",
        "unhealthy": "tests.engine.test_context_embedder:test_an_embedder_that_is_busy_or_hangs_is_told_and_nothing_is_lost",
    },
    "admission": {
        "degraded": "tests.scenarios.test_overload:test_overload_refuses_what_is_new_and_goes_on_with_what_is_in_hand",
        "unhealthy": "- its passes ask nobody: a process that does not come to them does not come to health either",
    },
    "event-loop": {
        "degraded": "test_a_process_that_was_held_up_is_degraded",
        "unhealthy": "- as admission",
    },
    "bell": {
        "degraded": TURNED_AWAY,
        "unhealthy": "- its sends end by the carriers' own limits",
    },
    "key-sets": {
        "degraded": "- its passes begin fetches and wait for none: what becomes of those is told under jwks",
        "unhealthy": "- as degraded",
    },
    "queue-scout": {
        "degraded": "tests.engine.test_queue_scout:test_a_scout_that_hangs_is_unhealthy_and_one_that_has_failed_degraded",
        "unhealthy": "tests.engine.test_queue_scout:test_a_scout_that_hangs_is_unhealthy_and_one_that_has_failed_degraded",
    },
    "partition-keeper": {"degraded": TURNED_AWAY, "unhealthy": "- a pass may take an hour"},
    **{name: LOOP for _, name in TABLES},
    "notify": {"degraded": TURNED_AWAY, "unhealthy": TURNED_AWAY},
    "limits-keeper": ASKING_LOOP,
    "re-encryption": ASKING_LOOP,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with own_postgres() as postgres:
        yield postgres


@pytest.fixture(scope="module")
def breakable(server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh that is mended again by whoever breaks it."""
    mesh = Mesh(server.database(), tmp_path_factory.mktemp("breakable"), SETTINGS)
    mesh.start(*SERVICES)
    yield mesh
    mesh.end()


class Watcher:
    """Looks at the health of each service."""

    def __init__(self, mesh: Mesh, http: httpx.AsyncClient) -> None:
        self._mesh, self._http = mesh, http
        self.durations_s: list[float] = []

    async def look(self, service: str, path: str = "/health?details=true") -> httpx.Response:
        began = time.monotonic()
        answer = await self._http.get(f"http://127.0.0.1:{self._mesh.of(service)[0].port}{path}")
        self.durations_s.append(time.monotonic() - began)
        return answer

    async def component(self, service: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.look(service)).json()["components"][name]
        return found

    async def becomes(self, service: str, name: str, status: str, message: str = "") -> dict[str, Any]:
        """The whole health, once a component is in a state and says why."""
        return await self._become(service, {name}, status, message)

    async def all_become(self, names: Collection[tuple[str, str]], status: str, message: str = "") -> None:
        """Each of (service, component), not necessarily at the same time."""
        of_service = {service: {name for at, name in names if at == service} for service, _ in names}
        await asyncio.gather(*(self._become(service, ours, status, message) for service, ours in of_service.items()))

    async def _become(
        self, service: str, names: set[str], status: str, message: str, within_s: float = 15.0
    ) -> dict[str, Any]:
        left, seen = set(names), {}

        async def is_so() -> bool:
            nonlocal seen
            seen = (await self.look(service)).json()
            components = seen["components"]
            so = {
                name for name in left if components[name]["status"] == status and message in components[name]["message"]
            }
            named = {name for name in so if any(reason.startswith(f"{name}: ") for reason in seen["reasons"])}
            assert named == (so if status == "unhealthy" else set()), f"readiness rests on what is unhealthy: {seen}"
            assert not so or seen["status"] != "healthy" or status == "healthy"
            left.difference_update(so)
            return not left

        try:
            await eventually(is_so, f"{', '.join(names)} of {service} {status}", within_s)
        except AssertionError as late:
            raise AssertionError(
                f"{late}; left: { {name: seen.get('components', {}).get(name) for name in left} }"
            ) from None
        return seen


@pytest.fixture
async def watcher(breakable: Mesh) -> AsyncIterator[Watcher]:
    async with httpx.AsyncClient(timeout=5.0, trust_env=False) as http:
        watcher = Watcher(breakable, http)
        yield watcher
        for service in SERVICES:  # whatever was broken is mended, and is seen to be

            async def is_well(service: str = service) -> bool:
                return bool((await watcher.look(service)).json()["status"] == "healthy")

            await eventually(is_well, f"{service} is healthy again", 20.0)
        assert statistics.median(watcher.durations_s) < 0.1, "health never waits for what it tells of"


@asynccontextmanager
async def at_work(mesh: Mesh) -> AsyncIterator[None]:
    """An agent that is connected, a stream of events, and calls that fail: what some loops have nothing to do without."""
    headers = {"Authorization": f"Bearer {mesh.admin_key}"}
    async with await Wire.connect(mesh.ws_url, mesh.admin_key) as wire, httpx.AsyncClient(trust_env=False) as http:
        await wire.call("agent.register", name="present")

        async def fail_again_and_again() -> None:
            while True:
                await wire.ask("task.nothing", {})
                with contextlib.suppress(httpx.HTTPError):
                    await http.get(f"{mesh.rest_url}/api/v1/tasks/{uuid.uuid4()}", headers=headers)
                await asyncio.sleep(0.1)

        async with http.stream("GET", f"{mesh.rest_url}/api/v1/events", headers=headers) as stream:
            assert stream.status_code == 200
            failing = asyncio.create_task(fail_again_and_again())
            try:
                yield
            finally:
                failing.cancel()
                await asyncio.wait([failing])


async def test_every_component_is_shown_in_every_state(watcher: Watcher) -> None:
    registered = {name for service in SERVICES for name in (await watcher.look(service)).json()["components"]}
    assert registered | {"redis", "jwks", "context-embedder", "context-indexer"} == set(STATES), (
        "each has a line in STATES"
    )
    for name, states in STATES.items():
        assert states.keys() == {"degraded", "unhealthy"}, name
        for shown in states.values():
            module, _, test = shown.rpartition(":")
            if not shown.startswith("-"):
                place = importlib.import_module(module) if module else sys.modules[__name__]
                assert callable(getattr(place, test, None)), f"{name}: there is no {shown}"


async def test_everything_is_healthy_when_nothing_is_broken(watcher: Watcher) -> None:
    for service in SERVICES:
        for name in (await watcher.look(service)).json()["components"]:
            await watcher.becomes(service, name, "healthy")


async def test_loops_whose_passes_fail_are_degraded(breakable: Mesh, watcher: Watcher) -> None:
    async with at_work(breakable):
        for tables in ({"api_logs"}, set(TABLES.values()) - {"api_logs"}):  # its entries come of the others' work
            run_sql(breakable.dsn, ";".join(f"alter table mcp.{table} rename to {table}_gone" for table in tables))
            try:
                ours = [place for place, table in TABLES.items() if table in tables]
                await watcher.all_become(ours, "degraded", "failed: ")
            finally:
                run_sql(breakable.dsn, ";".join(f"alter table mcp.{table}_gone rename to {table}" for table in tables))


async def test_loops_whose_passes_hang_are_unhealthy(breakable: Mesh, watcher: Watcher) -> None:
    async with at_work(breakable):
        connection = await asyncpg.connect(breakable.dsn)
        try:
            for tables in ({"api_logs"}, set(TABLES.values()) - {"api_logs"}):  # its entries come of the others' work
                async with connection.transaction():
                    for table in sorted(tables):
                        await connection.execute(f"lock table mcp.{table}")
                    ours = [place for place, table in TABLES.items() if table in tables]
                    await watcher.all_become(ours, "unhealthy", "a pass has been under way for")
        finally:
            await connection.close()


async def test_loops_that_the_database_turns_away_are_degraded(
    server: Postgres, breakable: Mesh, watcher: Watcher
) -> None:
    with turned_away(server, breakable):
        server.terminate_backends("devmesh%")
        await watcher.all_become(ASKING, "degraded", "failed: ")
        await everywhere(watcher, "bell", "degraded", "does not reach other processes")
        await everywhere(watcher, "notify", "degraded", "the database refuses this server; an operator has to mend it")
        with server.frozen():  # it takes connections, for the system does that, and says nothing
            await everywhere(watcher, "notify", "unhealthy", "a pass has been under way for")


async def test_a_database_that_hangs_and_the_loops_that_wait_for_it_are_unhealthy(
    server: Postgres, watcher: Watcher
) -> None:
    with server.frozen():
        await everywhere(watcher, "database", "unhealthy", "no answer")
        ready = await watcher.look("rest-api", "/readyz")
        assert (ready.status_code, ready.json()["age_ms"] < 5000) == (503, True)
        patient = ("partition-keeper", "notify")  # one may take an hour, the other asks now and then
        asking = [place for place in ASKING if place[1] not in patient]
        await watcher.all_become(asking, "unhealthy", "a pass has been under way for")


@contextmanager
def turned_away(server: Postgres, mesh: Mesh) -> Iterator[None]:
    """Nobody may connect to the mesh's database; who is connected stays so."""
    name = mesh.dsn.rpartition("/")[2].partition("?")[0]
    server.sql(f"alter database {name} allow_connections false")
    try:
        yield
    finally:
        server.sql(f"alter database {name} allow_connections true")


# The database


async def everywhere(watcher: Watcher, name: str, status: str, message: str = "") -> None:
    await watcher.all_become([(service, name) for service in SERVICES], status, message)


async def test_a_database_that_is_made_read_only_is_unhealthy(
    server: Postgres, breakable: Mesh, watcher: Watcher
) -> None:
    name = breakable.dsn.rpartition("/")[2].partition("?")[0]
    server.sql(f"alter database {name} set default_transaction_read_only = on")
    server.terminate_backends("devmesh%")
    try:
        await everywhere(watcher, "database", "unhealthy", "read-only")
    finally:
        server.sql(f"alter database {name} reset default_transaction_read_only")
        server.terminate_backends("devmesh%")


async def test_a_standby_is_unhealthy(server: Postgres, watcher: Watcher) -> None:
    server.server.stop("fast")
    (server.server.data / "standby.signal").touch()
    server.server.start()
    try:
        await everywhere(watcher, "database", "unhealthy", "a standby")
    finally:
        server.sql("select pg_promote()")


async def test_a_database_that_answers_others_is_busy_and_not_away(breakable: Mesh, watcher: Watcher) -> None:
    """Every transaction is slow, and there are more of them than connections."""
    slow = "create function mcp.slow() returns trigger language plpgsql as $$ begin perform pg_sleep(1.2); return new; end $$"
    run_sql(breakable.dsn, f"{slow}; create trigger slow before insert on mcp.tasks execute function mcp.slow()")
    keys = [breakable.new_tenant() for _ in range(12)]  # of one tenant, the calls would go together
    async with httpx.AsyncClient(base_url=breakable.rest_url, timeout=30.0, trust_env=False) as http:

        async def create_again_and_again(key: str) -> None:
            while True:
                task = {"title": "slow", "assign": "pull"}
                await http.post("/api/v1/tasks", json=task, headers={"X-API-Key": key})

        creating = [asyncio.create_task(create_again_and_again(key)) for key in keys]
        try:
            seen = await watcher.becomes("rest-api", "database", "degraded", "connections are in use")
            assert seen["details"]["pool"]["waiting"] > 0
            assert seen["details"]["calls"]["task.create"]["batches_in_flight"] > 0
            await watcher.becomes("rest-api", "encryption", "degraded", "connections are in use")
        finally:
            for task in creating:
                task.cancel()
            await asyncio.wait(creating)
            run_sql(breakable.dsn, "drop trigger slow on mcp.tasks; drop function mcp.slow()")


# The process


async def test_a_process_that_was_held_up_is_degraded(breakable: Mesh, watcher: Watcher) -> None:
    for service in SERVICES:
        [child] = breakable.of(service)
        assert child.process is not None
        child.signal(signal.SIGSTOP)
        await asyncio.sleep(1.3)  # not a wait for a condition: this is how long it is held up
        child.signal(signal.SIGCONT)
    await everywhere(watcher, "event-loop", "degraded", "held up for 1.")
