"""What all tests stand on: one real PostgreSQL for the run, and a database of its own for each test that asks."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from devmesh.store.embedded import MAJOR_VERSION, EmbeddedPostgres, find_binaries
from devmesh.store.migrator import Migrator
from tests.harness import Mesh, running_mesh

PSQL = find_binaries(MAJOR_VERSION) / "psql"
IN_MEMORY = Path("/dev/shm")  # what Linux has for it
IN_MEMORY_BYTES_MIN = 4 << 30  # a run needs a quarter of it
QUICK = {  # so that tests need not wait long
    "DEVMESH_REAPER_INTERVAL_S": "0.25",
    "DEVMESH_PRESENCE_INTERVAL_S": "0.5",
    "DEVMESH_PROMOTER_INTERVAL_S": "0.5",
    "DEVMESH_QUEUE_DEPTHS_INTERVAL_S": "1",
    "DEVMESH_SCHEDULER_INTERVAL_S": "0.25",
}

# No test fails because the machine had something else to do.
hypothesis_settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("tests")

# Each client would read all certificate authorities again: 20 ms that waiting for a service would spend over and over.
httpx._transports.default.create_ssl_context = functools.cache(httpx.create_ssl_context)  # type: ignore[attr-defined]


def pytest_configure() -> None:
    """Has everything that the run writes written to memory, where there is room: databases are thousands of small files."""
    if "TMPDIR" not in os.environ and IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free >= IN_MEMORY_BYTES_MIN:
        os.environ["TMPDIR"] = tempfile.tempdir = str(IN_MEMORY)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows what the services have logged last beside a test that failed."""
    report = yield
    if report.failed:
        for child in [child for mesh in Mesh.running for child in mesh.children]:
            report.sections.append((f"log of {child.service} on port {child.port}", child.tail()))
    return report


def run_sql(dsn: str, sql: str) -> str:
    """Runs SQL and returns what it prints, without a driver or an event loop."""
    command = [str(PSQL), dsn, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.strip()


def without_syncing(dsn: str) -> str:
    """Has a server leave its writes to the operating system. That outlives every death of the server, but not a machine's."""
    run_sql(dsn, "alter system set fsync = off")
    run_sql(dsn, "select pg_reload_conf()")
    return dsn


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The DSN of the run's server: TEST_DATABASE_DSN where it is set, otherwise an embedded one."""
    if given := os.environ.get("TEST_DATABASE_DSN"):
        yield given
        return
    directory = Path(tempfile.mkdtemp(prefix="devmesh-tests-"))
    server = EmbeddedPostgres(directory)
    try:
        yield without_syncing(server.start())
    finally:
        server.stop("immediate")
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def create_database(postgres: str) -> Iterator[Callable[..., str]]:
    """Makes databases that are dropped when the run ends; for fixtures of wider scope than a test.

    Empty ones, or copies of one that was migrated: to migrate each anew takes as long as all else that a service does to start.
    """
    names = (f"test_{os.getpid()}_{number}" for number in itertools.count(1))
    created = []

    @functools.cache
    def migrated() -> str:
        """The name of the one that others are copied from."""
        dsn = create(is_empty=True)
        with ThreadPoolExecutor(1) as aside:  # the caller may run in a loop already
            aside.submit(asyncio.run, Migrator(dsn).up()).result()
        return urlsplit(dsn).path[1:]

    def create(*, is_empty: bool = False) -> str:
        name = next(names)
        # Eight hundred small files are copied in a fifth of the time that it takes to write them through the log.
        template = "template1" if is_empty else migrated()
        run_sql(postgres, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        created.append(name)
        return urlsplit(postgres)._replace(path=f"/{name}").geturl()

    yield create
    if "TEST_DATABASE_DSN" in os.environ:
        for name in created:
            run_sql(postgres, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def empty_database(postgres: str, create_database: Callable[..., str]) -> Iterator[str]:
    """The DSN of an empty database that only this test uses."""
    dsn = create_database(is_empty=True)
    yield dsn
    run_sql(postgres, f"DROP DATABASE {urlsplit(dsn).path[1:]} WITH (FORCE)")


@pytest.fixture
def fresh_database(postgres: str, create_database: Callable[..., str]) -> Iterator[str]:
    """The DSN of a database that only this test uses, with the complete schema and nothing in it."""
    dsn = create_database()
    yield dsn
    run_sql(postgres, f"DROP DATABASE {urlsplit(dsn).path[1:]} WITH (FORCE)")


@pytest.fixture(scope="session")
def mesh(create_database: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One mesh for the run: each test works in a tenant of its own."""
    services = ("rest-api", "mcp-server", "worker")
    with running_mesh(create_database(), tmp_path_factory.mktemp("mesh"), *services, settings=QUICK) as running:
        yield running


@pytest.fixture
def own_mesh(fresh_database: str, tmp_path: Path) -> Iterator[Callable[..., Mesh]]:
    """Makes a mesh that a test may break: services as named, settings as given."""
    made: list[Mesh] = []

    def start(*services: str, **settings: str) -> Mesh:
        mesh = Mesh(fresh_database, tmp_path, {**QUICK, **settings})
        made.append(mesh)
        mesh.start(*(services or ("rest-api", "mcp-server", "worker")))
        return mesh

    yield start
    for mesh in made:
        mesh.end()


@pytest.fixture
def tenant(mesh: Mesh) -> str:
    """The administrator's key of a new tenant."""
    return mesh.new_tenant()
