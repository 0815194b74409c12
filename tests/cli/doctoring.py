"""`devmesh doctor` as tests run it, and what they break for it."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from tests.cli.commands import devmesh
from tests.cli.ill_server import IllServer
from tests.conftest import PSQL
from tests.harness import free_port

NEVER_HANGS_S = 20.0
OWN_PORTS = {"DEVMESH_WS_PORT": "0", "DEVMESH_REST_PORT": "0", "DEVMESH_WORKER_PORT": "0"}


class Found(NamedTuple):
    """What one run said."""

    code: int
    lines: list[dict[str, Any]]
    text: str

    def of(self, check: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["check"] == check]

    def one(self, check: str) -> dict[str, Any]:
        [line] = self.of(check)
        return line

    def states(self, *checks: str) -> set[str]:
        return {line["state"] for line in self.lines if not checks or line["check"] in checks}


def doctor(directory: Path, dsn: str | None = None, **settings: str) -> Found:
    given = {**OWN_PORTS, **({"DATABASE_DSN": dsn} if dsn else {}), **settings}
    return found_by(devmesh(directory, "doctor", "--json", settings=given))


def found_by(done: subprocess.CompletedProcess[str]) -> Found:
    assert done.stdout, done.stderr
    return Found(done.returncode, json.loads(done.stdout), done.stdout + done.stderr)


def migrated_database(server: IllServer, name: str, directory: Path) -> str:
    server.sql(f"create database {name}")
    dsn = server.dsn(name)
    for command in (("migrate",), ("keys", "first")):
        done = devmesh(directory, *command, settings={"DATABASE_DSN": dsn})
        assert done.returncode == 0, done.stderr
    return dsn


@contextmanager
def psql(dsn: str, sql: str = "select 1;", application_name: str = "psql") -> Iterator[int]:
    """A session that stays open after some SQL. Gives its process id."""
    with subprocess.Popen(
        [str(PSQL), dsn, "-X", "-q", "-A", "-t"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env={**os.environ, "PGAPPNAME": application_name},
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{sql}\nselect 'pid', pg_backend_pid();\n")
        process.stdin.flush()
        while not (line := process.stdout.readline()).startswith("pid|"):
            assert line, "psql ended"
        yield int(line.split("|")[1])
        process.kill()


@contextmanager
def relay(dsn: str, *, replacing: tuple[bytes, bytes] = (b"", b""), silent_after: bytes = b"") -> Iterator[str]:
    """The DSN of a way to a server on which its answers are changed, or on which it says no more after a question."""
    parts = urlsplit(dsn)
    path = f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.5432"
    silence = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as upstream:
                upstream.connect(path)
                asking = threading.Thread(target=self._ask, args=(upstream,))
                asking.start()
                while data := upstream.recv(1 << 16):
                    if not silence.is_set():
                        self.request.sendall(data.replace(*replacing) if replacing[0] else data)
                asking.join()

        def _ask(self, upstream: socket.socket) -> None:
            while data := self.request.recv(1 << 16):
                if silent_after and silent_after in data:
                    silence.set()
                upstream.sendall(data)
            upstream.shutdown(socket.SHUT_RDWR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", free_port()), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"postgresql://postgres@127.0.0.1:{server.server_address[1]}{parts.path}"
        server.shutdown()
