"""One `devmesh up` that the tests of commands share; none of them may break it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devmesh.store.embedded import EmbeddedPostgres
from tests.cli.commands import Up


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
