"""What all tests stand on: one real PostgreSQL for the run, and a database of its own for each test that asks."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from devmesh.store.embedded import MAJOR_VERSION, EmbeddedPostgres, find_binaries

PSQL = find_binaries(MAJOR_VERSION) / "psql"


def run_sql(dsn: str, sql: str) -> str:
    """Runs SQL and returns what it prints, without a driver or an event loop."""
    command = [str(PSQL), dsn, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.strip()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The DSN of the run's server: TEST_DATABASE_DSN where it is set, otherwise an embedded one."""
    if given := os.environ.get("TEST_DATABASE_DSN"):
        yield given
        return
    directory = Path(tempfile.mkdtemp(prefix="devmesh-tests-"))
    server = EmbeddedPostgres(directory)
    try:
        yield server.start()
    finally:
        server.stop("immediate")
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def create_database(postgres: str) -> Iterator[Callable[[], str]]:
    """Makes empty databases that are dropped when the run ends; for fixtures of wider scope than a test."""
    names = (f"test_{os.getpid()}_{number}" for number in itertools.count(1))
    created = []

    def create() -> str:
        name = next(names)
        run_sql(postgres, f"CREATE DATABASE {name}")
        created.append(name)
        return urlsplit(postgres)._replace(path=f"/{name}").geturl()

    yield create
    if "TEST_DATABASE_DSN" in os.environ:
        for name in created:
            run_sql(postgres, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def fresh_database(postgres: str, create_database: Callable[[], str]) -> Iterator[str]:
    """The DSN of an empty database that only this test uses."""
    dsn = create_database()
    yield dsn
    run_sql(postgres, f"DROP DATABASE {urlsplit(dsn).path[1:]} WITH (FORCE)")
