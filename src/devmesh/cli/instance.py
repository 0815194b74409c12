"""The directory of one `devmesh up`: that only one runs on it, and what it leaves there for tools.

Services inherit the lock, so that the directory is free when the last of them has ended, not when their parent has.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from devmesh.cli.console import Failure, note
from devmesh.cli.loading import DEV_ENV

POLL_INTERVAL_S = 0.05
HEADER = """\
# Written by `devmesh up` at each start; read by the command line and by clients.
# Keep it to yourself: this key administers the mesh.
"""


class Instance:
    """Holds the directory until the process ends."""

    def __init__(self, directory: Path, patience_s: float) -> None:
        """Raises `Failure` when the directory cannot be used, or another `devmesh up` runs on it."""
        self.directory = directory.absolute()
        with _usable(self.directory):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.lock_fd = os.open(self.directory / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._take_lock(patience_s)
            os.ftruncate(self.lock_fd, 0)
            os.pwrite(self.lock_fd, str(os.getpid()).encode(), 0)
            if not (ignored := self.directory / ".gitignore").exists():
                ignored.write_text("*\n")  # a key and a database are not for anybody's repository

    def _take_lock(self, patience_s: float) -> None:
        ends_at = time.monotonic() + patience_s
        has_told = False
        while True:
            try:
                fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pass
            if pid := self._running_pid():
                hint = "stop it, or give this one a directory of its own with --data-dir, and other ports with --port"
                raise Failure(f"`devmesh up` runs on {self.directory} already (pid {pid})", hint=hint)
            if not has_told:
                note(f"an earlier `devmesh up` on {self.directory} was cut off; waiting for its services to end")
                has_told = True
            if time.monotonic() > ends_at:
                raise Failure(f"services of an earlier `devmesh up` on {self.directory} do not end; end them by hand")
            time.sleep(POLL_INTERVAL_S)

    def _running_pid(self) -> int | None:
        """The process that wrote its number here, if it is still that one: the number may have been reused."""
        with contextlib.suppress(psutil.Error, ValueError):
            process = psutil.Process(int(os.pread(self.lock_fd, 20, 0)))
            if "up" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                return process.pid
        return None

    def write_dev_env(self, variables: Mapping[str, str]) -> Path:
        return self.write(DEV_ENV, HEADER, variables)

    def write(self, name: str, header: str, variables: Mapping[str, str]) -> Path:
        """Writes a file of variables whole or not at all; only its owner may read it."""
        path, draft = self.directory / name, self.directory / f"{name}.draft"
        lines = [f"{name}='{value.replace(chr(39), '%27')}'\n" for name, value in variables.items()]
        with _usable(self.directory):
            draft.unlink(missing_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(header + "".join(lines))
                file.flush()
                os.fsync(file.fileno())
            draft.rename(path)
            directory_fd = os.open(self.directory, os.O_RDONLY)
            os.fsync(directory_fd)  # the name outlives a loss of power as the content does
            os.close(directory_fd)
        return path


@contextlib.contextmanager
def _usable(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "name another directory with --data-dir"
        raise Failure(f"the directory {directory} cannot be used: {error.strerror}", hint=hint) from error
