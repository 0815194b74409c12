"""A PostgreSQL whose clock can be stepped, while nobody else's is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libfaketime  # type: ignore[import-untyped]  # it has no types
import pytest

from devmesh.store import embedded
from tests.breaking import Postgres

LIBRARY = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"


class Clock:
    """The clock of one PostgreSQL, and of nobody else."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)

    def set(self, offset_s: float) -> None:
        self._file.write_text(f"{offset_s:+g}\n")
        self._file.chmod(0o644)


class SteppedPostgres(Postgres):
    """Its processes, and no others, are told another time by a library that is loaded before libc."""

    def __init__(self, directory: Path) -> None:
        directory.chmod(0o755)
        library, offset = directory / LIBRARY.name, directory / "offset"
        shutil.copy(LIBRARY, library)
        self.clock = Clock(offset)
        self._told = {
            "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DISABLE_SHM": "1",
        }  # fmt: skip
        with self._telling():
            super().__init__(directory / "postgres")

    def restart(self) -> None:
        """Without a checkpoint. Nobody else may start a process meanwhile: it would be told the same."""
        with self._telling():
            super().restart()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(embedded, "ENVIRONMENT_NAMES", (*embedded.ENVIRONMENT_NAMES, *self._told))
            for name, value in self._told.items():
                patch.setenv(name, value)
            yield


@contextmanager
def stepped_postgres() -> Iterator[SteppedPostgres]:
    directory = Path(tempfile.mkdtemp(prefix="devmesh-clock-"))
    postgres = SteppedPostgres(directory)
    try:
        yield postgres
    finally:
        postgres.server.stop("immediate")
        shutil.rmtree(directory)
