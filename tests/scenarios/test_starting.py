"""S1-S3, S12: services, databases and `devmesh up` start in any order, wait for each other, and say what for."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from devmesh import services
from devmesh.edges.health import Health
from devmesh.services import Service, StartRefused
from devmesh.settings import Settings
from devmesh.store.embedded import EmbeddedPostgres
from devmesh.store.migration_files import read_migrations
from tests.breaking import Postgres, proxy_to
from tests.cli.commands import SERVICES, Up, answer
from tests.conftest import run_sql
from tests.harness import Child, Mesh, eventually, free_port, wait_until

MakeMesh = Callable[..., Mesh]


def reasons(child: Child) -> str:
    """What a service says that it waits for; nothing, while it does not answer."""
    try:
        found = httpx.get(f"http://127.0.0.1:{child.port}/readyz", timeout=2.0, trust_env=False).json()
    except httpx.HTTPError:
        return ""
    return "; ".join(found["reasons"])


def has_logged(child: Child, words: str) -> bool:
    return words in child.log.read_text()


def says(child: Child, what: str) -> bool:
    """Both in its log and to who asks."""
    return what in reasons(child) and what in child.log.read_text()


def test_s1_seven_services_started_at_one_instant_on_nothing_migrate_once(
    empty_database: str, mesh_on: MakeMesh
) -> None:
    mesh = mesh_on(empty_database)
    names = ["rest-api"] * 3 + ["mcp-server"] * 2 + ["worker"] * 2
    children = [mesh.add(name) for name in names]
    for child in children:
        child.start()
    for child in children:
        child.wait_ready()
    lines = [json.loads(line) for child in children for line in child.log.read_text().splitlines()]
    migrated = [line["script"] for line in lines if line["event"] == "migrated"]
    assert migrated == [migration.up.file_name for migration in read_migrations()]
    states = run_sql(empty_database, "select distinct state, count(*) from mcp.schema_migrations group by 1")
    assert states == f"applied|{len(migrated)}"


def test_s2_those_who_come_before_the_schema_say_what_is_missing_and_are_ready_5_s_after_it(
    empty_database: str, mesh_on: MakeMesh
) -> None:
    mesh = mesh_on(empty_database)
    early = [mesh.add("mcp-server"), mesh.add("worker")]
    for child in early:
        child.start()
    for child in early:
        wait_until(functools.partial(says, child, "000001_foundation is pending"), "it names what is missing")
        assert not child.is_ready()
    rest = mesh.add("rest-api")
    rest.start()
    newest = read_migrations()[-1].version
    is_done = f"select count(*) from mcp.schema_migrations where version = {newest} and state = 'applied'"
    wait_until(lambda: run_sql(empty_database, "select to_regclass('mcp.schema_migrations')"), "it migrates")
    wait_until(lambda: run_sql(empty_database, is_done) == "1", "it has migrated")
    migrated_at = time.monotonic()
    for child in early:
        child.wait_ready(5.0 - (time.monotonic() - migrated_at))
    rest.wait_ready()


def test_s3_all_wait_for_a_postgresql_that_is_not_there_and_start_when_it_comes(
    broken: Postgres, mesh_on: MakeMesh
) -> None:
    mesh = mesh_on(broken.database())
    broken.server.stop("immediate")
    children = [mesh.add(service) for service in SERVICES]
    for child in children:
        child.start()
    for child in children:
        wait_until(functools.partial(has_logged, child, "try 2 of 10, the next in 2 s"), "it backs off", 20.0)
        assert "cannot reach the database" in reasons(child)
        assert httpx.get(f"http://127.0.0.1:{child.port}/healthz", trust_env=False).status_code == 200
    broken.server.start()
    for child in children:
        child.wait_ready()


async def started(service: Service) -> None:
    """Started, and ended again."""
    try:
        async with asyncio.timeout(30):
            await service.start()
    finally:
        await service.drain(_nothing_in_flight)
        await service.close()


async def _nothing_in_flight() -> None:
    """Nobody asks these services anything."""


def service_of(name: str, dsn: str, **settings: str) -> Service:
    return Service(name, Settings.load({"DATABASE_DSN": dsn, **settings}), Health(name))


async def start_cut_after(broken: Postgres, name: str, dsn: str, messages: int) -> None:
    """Starts a service whose connections are all cut once, after so many messages of its."""
    async with proxy_to(dsn) as proxy:
        proxy.cuts_after = messages
        await started(service_of(name, proxy.dsn))
        assert proxy.cuts_after is None, "the start was over before the cut"


@pytest.mark.parametrize("name", ["rest-api", pytest.param("mcp-server", marks=pytest.mark.soak)])
async def test_s3_a_database_lost_in_any_phase_of_the_start_only_delays_it(
    broken: Postgres, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "BACKOFF_S", (0.1,) * 9)
    monkeypatch.setattr(services, "RETRY_INTERVAL_S", 0.1)
    migrated = broken.database()
    async with proxy_to(migrated) as proxy:
        await started(service_of("rest-api", proxy.dsn))
        in_all = proxy.messages
        if name != "rest-api":
            before = proxy.messages
            await started(service_of(name, proxy.dsn))
            in_all = proxy.messages - before
    assert in_all > 40
    cuts = [in_all * part // 12 for part in range(11)]
    dsns = [broken.database() if name == "rest-api" else migrated for _ in cuts]
    await asyncio.gather(*(start_cut_after(broken, name, dsn, cut) for dsn, cut in zip(dsns, cuts, strict=True)))
    for dsn in dsns:
        assert run_sql(dsn, "select count(*) from mcp.schema_migrations where state <> 'applied'") == "0"


async def test_s3_after_the_last_try_it_goes_on_trying(broken: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "BACKOFF_S", (0.02,) * 9)
    async with proxy_to(broken.database()) as proxy:
        await proxy.refuse()
        service = service_of("rest-api", proxy.dsn)
        starting = asyncio.create_task(started(service))
        await eventually(lambda: "the next try in 0.02 s" in str(service._health.waiting_for), "the tries are used up")
        await proxy.open()
        await starting


async def test_s3_a_database_that_is_made_later_is_waited_for(
    broken: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "REFUSED_RETRY_INTERVAL_S", 0.05)
    dsn = urlsplit(broken.dsn)._replace(path="/made_later").geturl()
    service = service_of("worker", dsn)
    starting = asyncio.create_task(service.start())
    await eventually(
        lambda: '"made_later" does not exist' in str(service._health.waiting_for), "it says which is missing"
    )
    broken.sql("create database made_later")
    await eventually(lambda: "000001_foundation is pending" in str(service._health.waiting_for), "it goes on")
    starting.cancel()
    await asyncio.wait([starting])
    await service.close()


@pytest.mark.parametrize(
    ("path", "fail_fast", "said"),
    [("/absent", "true", '"absent" does not exist'), ("/devmesh?sslmode=bogus", "false", "cannot be understood")],
)
async def test_what_waiting_cannot_mend_is_refused_in_one_line(
    broken: Postgres, path: str, fail_fast: str, said: str
) -> None:
    dsn = f"postgresql://postgres@127.0.0.1:{free_port()}{path}" if "?" in path else ""
    dsn = dsn or urlsplit(broken.dsn)._replace(path=path).geturl()
    with pytest.raises(StartRefused, match=said):
        await started(service_of("worker", dsn, MIGRATIONS_FAIL_FAST=fail_fast))


# devmesh up


@pytest.fixture
def own_up() -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="devmesh-up-") as directory:
        made = Up(Path(directory))
        yield made
        if made.process is not None and made.process.poll() is None:
            made.end()
        EmbeddedPostgres(made.data / "postgres").stop("immediate")


def child_of(up: Up, name: str) -> psutil.Process | None:
    with contextlib.suppress(StopIteration, psutil.Error):
        return up.service(name)
    return None


def ready_services(up: Up) -> int:
    ready = 0
    for port in range(up.port, up.port + 3):
        with contextlib.suppress(httpx.HTTPError):
            ready += httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2.0, trust_env=False).status_code == 200
    return ready


def kill_postgres(up: Up) -> None:
    os.kill(int((up.data / "postgres" / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)


@pytest.mark.soak
def test_devmesh_up_brings_back_whatever_is_killed_also_while_it_starts(own_up: Up) -> None:
    own_up.launch()
    wait_until(lambda: child_of(own_up, "rest-api"), "rest-api is started", 20.0)
    own_up.service("rest-api").kill()
    kill_postgres(own_up)
    wait_until(lambda: (own_up.directory / "out").read_text(), "the mesh is ready", 30.0)
    task = answer(own_up.directory, "call", "task.create", "title=kept", "assign=pull")["task"]
    before = own_up.services()
    for service in before:
        service.kill()
    kill_postgres(own_up)
    psutil.wait_procs(before, timeout=5.0)
    wait_until(lambda: ready_services(own_up) == 3, "everything is up again", 30.0)
    assert {service.pid for service in own_up.services()}.isdisjoint(service.pid for service in before)
    assert answer(own_up.directory, "call", "task.get", f"task_id={task['id']}")["task"]["title"] == "kept"
    assert "PostgreSQL does not start" not in own_up.log()  # what a killed server leaves is cleared at the first try
    assert own_up.end(signal.SIGTERM) == 0


# S12


@pytest.fixture
def secrets() -> dict[str, str]:
    """What no log may hold: each distinct enough to be found in any line."""
    return {name: f"hush-{name}-{os.urandom(6).hex()}" for name in ("user-password", "key", "bearer")}


async def test_s12_no_log_holds_a_password_or_a_key(
    broken: Postgres, mesh_on: MakeMesh, secrets: dict[str, str]
) -> None:
    password = secrets["user-password"]
    broken.sql(f"create role lodger superuser login password '{password}'")
    parts = urlsplit(broken.database())
    base = parts._replace(netloc=f"lodger:{password}@")
    unreachable = f"postgresql://lodger:{password}@127.0.0.1:{free_port()}/none?password={password}"
    misquoted = f"postgresql://lodger:{password}#{password}@127.0.0.1:5432/none"
    absent = base._replace(path="/absent").geturl()
    keys = dict.fromkeys(
        ("DEVMESH_API_KEY", "SOME_ENCRYPTION_KEY", "PGPASSWORD", "DEVMESH_UNKNOWN_SECRET"), secrets["key"]
    )
    settings = {"DEVMESH_LOG_LEVEL": "debug", **keys}
    mesh = mesh_on(base.geturl(), **settings)
    await asyncio.to_thread(mesh.start, *SERVICES)
    for dsn in (unreachable, misquoted, absent):
        other = mesh_on(dsn, **settings)
        other.add("rest-api").start()
        mesh.children += other.children
        await eventually(functools.partial(_has_said_why, other.children[0]), "it says what is the matter")
    async with httpx.AsyncClient(base_url=mesh.rest_url, trust_env=False) as http:
        bearer = f"dm_{secrets['bearer']}"
        refused = await http.get("/api/v1/tasks", headers={"Authorization": f"Bearer {bearer}"})
        assert refused.status_code == 401
        taken = await http.get("/api/v1/tasks", headers={"X-API-Key": mesh.admin_key})
        assert taken.status_code == 200
    logs = "".join(child.log.read_text() for child in mesh.children)
    assert '"event": "ready"' in logs
    assert "cannot reach the database" in logs
    for secret in (*secrets.values(), mesh.admin_key):
        assert secret not in logs
    for child in mesh.children:
        assert password not in reasons(child)


def _has_said_why(child: Child) -> bool:
    text = child.log.read_text()
    return any(
        words in text for words in ("cannot reach the database", "does not exist", "cannot be understood", "DSN")
    )
