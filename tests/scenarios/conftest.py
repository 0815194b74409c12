"""A PostgreSQL for those who break it, one for each file of tests; and a worker with a queue of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from devmesh.core import envelope
from tests.bearers import SETTINGS
from tests.breaking import Postgres, own_postgres
from tests.conftest import QUICK
from tests.harness import Mesh, running_mesh
from tests.scenarios.archive import Archive, Bystander
from tests.scenarios.jobs import Bench, register
from tests.wire import Wire


@pytest.fixture(scope="module")
def _own_postgres() -> Iterator[Postgres]:
    with own_postgres() as postgres:
        yield postgres


@pytest.fixture
def broken(_own_postgres: Postgres) -> Postgres:
    """Whole again, whatever the test before has done to it."""
    _own_postgres.server.start()
    return _own_postgres


@pytest.fixture
def mesh_on(tmp_path: Path) -> Iterator[Callable[..., Mesh]]:
    """Makes a mesh on any database. Its services are not started yet."""
    made: list[Mesh] = []

    def make(dsn: str, **settings: str) -> Mesh:
        made.append(Mesh(dsn, tmp_path, {**QUICK, **settings}))
        Mesh.running.append(made[-1])
        return made[-1]

    yield make
    for mesh in made:
        mesh.end()


@pytest.fixture(scope="session")
def issuing_mesh(create_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh that believes tokens, and keeps the secrets of those who issue them."""
    settings = {**SETTINGS, "ENCRYPTION_MASTER_KEY": envelope.new_master_key()}
    directory = tmp_path_factory.mktemp("issuing")
    with running_mesh(create_database(), directory, "rest-api", "mcp-server", settings=settings) as running:
        yield running


@pytest_asyncio.fixture
async def bench(mesh: Mesh, tenant: str) -> AsyncIterator[Bench]:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        yield Bench(wire, await register(wire))


@pytest.fixture
def archive(mesh: Mesh, bench: Bench) -> Archive:
    return Archive(mesh, bench)


@pytest_asyncio.fixture
async def bystander(archive: Archive) -> AsyncIterator[Bystander]:
    connection = await asyncpg.connect(archive.mesh.dsn)
    try:
        yield Bystander(connection)
    finally:
        await connection.close()
