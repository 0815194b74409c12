"""`--health-check` exits with 0 when the service is ready, and with 1 whatever else is the case: Docker knows no other code."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.commands import SERVICES, devmesh
from tests.harness import Mesh, free_port, wait_until


def check(directory: Path, service: str, port: int, **settings: str) -> tuple[int, str, str]:
    done = devmesh(directory, service, "--health-check", "--port", str(port), settings=settings)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_of_a_service_that_is_ready(mesh: Mesh, tmp_path: Path, service: str) -> None:
    code, said, _ = check(tmp_path, service, mesh.of(service)[0].port)
    assert (code, json.loads(said)["ready"]) == (0, True)
    assert check(tmp_path, service, mesh.of(service)[0].port, DEVMESH_HOST="0.0.0.0")[0] == 0


def test_of_a_service_that_is_not(empty_database: str, tmp_path: Path) -> None:
    """Nobody migrates here."""
    mesh = Mesh(empty_database, tmp_path, {"SKIP_MIGRATIONS": "true"})
    child = mesh.add("worker")
    child.start()
    try:
        wait_until(lambda: is_alive(child.port), "it is alive", 20.0)
        code, said, _ = check(tmp_path, "worker", child.port)
        assert (code, json.loads(said)["ready"]) == (1, False)
    finally:
        child.end()


def is_alive(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_of_nobody(tmp_path: Path) -> None:
    port = free_port()
    code, _, complaint = check(tmp_path, "worker", port)
    assert (code, f"127.0.0.1:{port}" in complaint) == (1, True)
    code, _, complaint = check(tmp_path, "worker", 0)
    assert (code, "--port" in complaint) == (1, True)


def test_with_a_setting_that_cannot_be_read(tmp_path: Path) -> None:
    code, _, complaint = check(tmp_path, "worker", free_port(), DEVMESH_OUTBOX_BYTES_MAX="plenty")
    assert (code, "DEVMESH_OUTBOX_BYTES_MAX" in complaint) == (1, True)


@pytest.fixture
def stranger() -> Iterator[int]:
    """The port of some other server that answers 200 to everything."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>welcome</html>")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_of_somebody_else(tmp_path: Path, stranger: int) -> None:
    code, _, complaint = check(tmp_path, "worker", stranger)
    assert (code, "is not worker" in complaint) == (1, True)
