"""One `devmesh up` that the tests of commands share, and one ill server that those of doctor do; none of them may break it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devmesh.store.embedded import EmbeddedPostgres
from tests.breaking import own_postgres
from tests.cli.commands import Up
from tests.cli.doctoring import migrated_database
from tests.cli.ill_server import IllServer


@pytest.fixture
def own_up() -> Iterator[Up]:
    """Not started yet; whatever a test did to it is gone afterwards."""
    yield from _an_up()


@pytest.fixture(scope="package")
def up() -> Iterator[Up]:
    """Running."""
    for made in _an_up():
        made.start()
        yield made


def _an_up() -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="devmesh-cli-") as directory:
        made = Up(Path(directory))
        yield made
        if made.process is not None and made.process.poll() is None:
            made.end()
        EmbeddedPostgres(made.data / "postgres").stop("immediate")


@pytest.fixture(scope="package")
def server() -> Iterator[IllServer]:
    """A PostgreSQL to be made ill; each test leaves it well."""
    with own_postgres() as postgres:
        yield IllServer(postgres)


@pytest.fixture(scope="package")
def migrated(server: IllServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database on which all is well, to be left so."""
    return migrated_database(server, "well", tmp_path_factory.mktemp("well"))


@pytest.fixture
def own(server: IllServer, tmp_path: Path) -> str:
    """A database that a test may break."""
    return migrated_database(server, f"own_{time.monotonic_ns()}", tmp_path)
