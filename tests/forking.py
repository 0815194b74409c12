"""Python programs as processes that are quick to start: forks of one process that has DevMesh loaded, and does nothing else.

Half of what a short command costs is the loading of its modules, and the suite starts several hundred. What is forked is a
process of its own like any other: it is given its arguments, its directory, its environment and its files, it may be
stopped, killed and waited for, and it ends by itself. What is to be run from another place, or with a library before all
others, is started anew; so are `devmesh up`, its children and the demo, whose command lines are looked at.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

START_VARIABLES = ("PYTHONPATH", "LD_PRELOAD")  # decide what is loaded, before anything of ours is
_LENGTH = struct.Struct("!I")
_STATUS = struct.Struct("!i")
_lock = threading.Lock()


class Forked:
    """What `subprocess.Popen` is for a process that was started anew."""

    def __init__(self, pid: int, status: int) -> None:
        """`status` is a file from which the exit code can be read when there is one."""
        self.pid, self._status = pid, status
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, or minus the signal that ended it. Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            poller = select.poll()  # `select` takes no file with a number over 1,023, and tests open many
            poller.register(self._status, select.POLLIN)
            if not poller.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            [self.returncode] = _STATUS.unpack(os.read(self._status, _STATUS.size))
            os.close(self._status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = Forked | subprocess.Popen[bytes]


def start(
    arguments: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: IO[Any] | None = None,
    stdout: IO[Any],
    stderr: IO[Any] | None = None,
) -> Process:
    """Starts `python -m ARGUMENTS` in this environment alone. Errors go where the output does, or to their own place."""
    if any(env.get(name) != os.environ.get(name) for name in START_VARIABLES):
        return start_anew(arguments, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr)
    reading, writing = os.pipe()
    request = json.dumps({"arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}).encode()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, writing)
        given = stdin or stack.enter_context(Path(os.devnull).open("rb"))
        with _lock:
            channel = _server()
            files = [writing, given.fileno(), stdout.fileno(), (stderr or stdout).fileno()]
            socket.send_fds(channel, [_LENGTH.pack(len(request))], files)
            channel.sendall(request)
    [pid] = _STATUS.unpack(os.read(reading, _STATUS.size))
    return Forked(pid, reading)


def start_anew(
    arguments: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: IO[Any] | None = None,
    stdout: IO[Any],
    stderr: IO[Any] | None = None,
) -> subprocess.Popen[bytes]:
    """The same by a Python of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=cwd, env=env, stdin=stdin or subprocess.DEVNULL, stdout=stdout, stderr=stderr or subprocess.STDOUT,
    )  # fmt: skip


def run(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: str = "", timeout: float
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m ARGUMENTS` to its end, as `subprocess.run` does."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin.encode())
        given.seek(0)
        process = start(arguments, cwd=cwd, env=env, stdin=given, stdout=out, stderr=err)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(list(arguments), code, out.read().decode(), err.read().decode())


@functools.cache
def _server() -> socket.socket:
    """The way to the process that is forked. It ends when this one does."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", __name__, str(theirs.fileno())]
    root = Path(__file__).parent.parent
    process = subprocess.Popen(
        command, cwd=root, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _serve(channel: socket.socket) -> Sequence[str]:
    """Forks for each request. Returns in the forked process, with the arguments that it is to run with."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is meant for what was forked
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the keepers, that nobody waits for
    while True:
        head, files, _, _ = socket.recv_fds(channel, _LENGTH.size, 4)
        if not head:
            os._exit(0)
        [length] = _LENGTH.unpack(head)
        body = channel.recv(length, socket.MSG_WAITALL)
        if os.fork() == 0:
            return _keep(json.loads(body), files)
        for file in files:
            os.close(file)


def _keep(request: dict[str, Any], files: list[int]) -> Sequence[str]:
    """Forks once more, and tells of the pid and of the exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        return _become(request, files)
    os.write(files[0], _STATUS.pack(pid))
    for file in files[1:]:
        os.close(file)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):  # nobody asks any more
        os.write(files[0], _STATUS.pack(code))
    os._exit(0)


def _become(request: dict[str, Any], files: list[int]) -> Sequence[str]:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for place, file in enumerate(files[1:]):
        os.dup2(file, place)
    os.closerange(3, 256)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[0] = request["cwd"]
    time.tzset()
    random.seed()
    arguments: list[str] = request["arguments"]
    return arguments


def _load() -> None:
    """Everything that commands and services import, and what they prepare from it alone."""
    import httpcore  # these two are imported when they are first needed
    import typer._adapters

    from devmesh import app, client, operations
    from devmesh.cli import application, checks, demo_mesh, loading, local_mesh, readiness, tables, wire

    loaded = (
        app,
        application,
        checks,
        client,
        demo_mesh,
        httpcore,
        loading,
        local_mesh,
        readiness,
        tables,
        typer,
        wire,
    )
    assert all(loaded)
    operations.load_all()
    application.commands()


if __name__ == "__main__":
    _load()
    gc.freeze()
    program, *sys.argv[1:] = _serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module(program, run_name="__main__", alter_sys=True)
