"""`devmesh doctor`: each check green where all is well, and red where the real thing is broken. Settings and this machine."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from devmesh.cli.checks.running import CHECKS
from tests.cli.commands import Up, devmesh, environment
from tests.cli.doctoring import NEVER_HANGS_S, OWN_PORTS, Found, doctor, found_by, relay
from tests.cli.ill_server import IllServer
from tests.harness import Mesh, free_port, wait_until

SETTLED_S = 10.0
AFTER_DATABASE = [check.name for check in CHECKS[[check.name for check in CHECKS].index("database") + 1 :]]


# All is well


def test_a_running_mesh_is_well_and_its_secrets_are_not_told(up: Up) -> None:
    found = _settled(up)
    assert found.code == 0, found.text
    assert list(dict.fromkeys(line["check"] for line in found.lines)) == [check.name for check in CHECKS]
    assert {frozenset(line) for line in found.lines} == {frozenset({"check", "state", "found", "advice"})}
    assert found.one("ports")["found"] == f"{up.port + 1} rest-api, {up.port} mcp-server, {up.port + 2} worker"
    for offset, service in enumerate(("mcp-server", "rest-api", "worker")):
        assert found.one(service)["found"] == f"healthy at http://127.0.0.1:{up.port + offset}"
    shown = devmesh(up.directory, "doctor")
    assert shown.returncode == 0
    assert shown.stdout.rstrip().endswith("All is well.")
    for secret in (up.dev_env()["DEVMESH_API_KEY"], up.dev_env()["DATABASE_DSN"]):
        assert secret not in found.text + shown.stdout + shown.stderr


def _settled(up: Up) -> Found:
    """What is said of a mesh some moments after its start, when all its loops have passed."""
    ends_at = time.monotonic() + SETTLED_S
    while True:
        found = found_by(devmesh(up.directory, "doctor", "--json"))
        if found.states() <= {"ok", "note"}:
            return found
        assert time.monotonic() < ends_at, found.text


def test_settings_are_shown_as_the_settings_command_does(tmp_path: Path) -> None:
    settings = {"DATABASE_DSN": "postgresql://mesh:s3cretpass@db/mesh"}
    shown = devmesh(tmp_path, "doctor", "--settings", settings=settings)
    assert shown.stdout == devmesh(tmp_path, "settings", settings=settings).stdout
    assert "s3cretpass" not in shown.stdout
    assert "DEVMESH_LOG_LEVEL" in shown.stdout
    malformed = devmesh(tmp_path, "doctor", "--settings", settings={"DEVMESH_OUTBOX_BYTES_MAX": "plenty"})
    assert malformed.returncode == 2
    assert "error: DEVMESH_OUTBOX_BYTES_MAX is 'plenty'" in malformed.stderr
    assert "DEVMESH_OUTBOX_BYTES_MAX" in malformed.stdout


# Nothing there, or not to be reached


def test_nothing_runs_and_nothing_is_set(tmp_path: Path) -> None:
    found = doctor(tmp_path)
    assert found.code == 3
    assert "DATABASE_DSN is not set" in found.one("database")["found"]
    assert found.states("rest-api", "mcp-server", "worker", "data directory") == {"note"}
    for name in AFTER_DATABASE:
        line = found.one(name)
        assert (line["state"], line["found"]) == ("skipped", "not looked at: the database cannot be reached")


@pytest.mark.parametrize(
    ("dsn", "said", "advice"),
    [
        ("postgresql://mesh:s3cretpass@127.0.0.1:1/mesh", "Connect call failed", "pg_isready -h 127.0.0.1 -p 1"),
        ("postgresql://mesh:s3cretpass@no.such.host.invalid/mesh", "cannot reach the database", "start PostgreSQL"),
        ("postgresql://mesh:s3cret/pass@127.0.0.1/mesh", "address cannot be understood", "%2F"),
    ],
    ids=["refused", "no host", "unescaped"],
)
def test_a_database_that_cannot_be_reached(tmp_path: Path, dsn: str, said: str, advice: str) -> None:
    found = doctor(tmp_path, dsn)
    line = found.one("database")
    assert found.code == 3
    assert line["state"] == "problem"
    assert said in line["found"]
    assert any(advice in item for item in line["advice"]), line
    assert "s3cret" not in found.text
    assert "Traceback" not in found.text
    assert found.states(*AFTER_DATABASE) == {"skipped"}


def test_a_database_that_lets_us_not_in(server: IllServer, migrated: str, tmp_path: Path) -> None:
    server.sql("create role strict login password 'the-right-one'")
    server.ask_for_passwords("strict")
    assert doctor(tmp_path, server.dsn("well", "strict", "the-right-one")).one("database")["state"] == "ok"
    wrong = doctor(tmp_path, server.dsn("well", "strict", "the/wrong@one"))
    assert wrong.code == 3
    assert 'password authentication failed for user "strict"' in wrong.one("database")["found"]
    assert "alter role strict password" in wrong.one("database")["advice"][0]
    assert "the/wrong@one" not in wrong.text
    assert "the%2Fwrong%40one" not in wrong.text
    nowhere = doctor(tmp_path, server.dsn("nowhere"))
    assert nowhere.one("database")["advice"] == ["create database nowhere owner postgres;"]
    nobody = doctor(tmp_path, server.dsn("well", "nobody"))
    assert "create role nobody login" in nobody.one("database")["advice"][0]


@pytest.mark.soak
def test_it_ends_when_the_database_does_not_answer(server: IllServer, migrated: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with server.postgres.frozen():
        found = doctor(tmp_path, migrated)
    assert time.monotonic() - began < NEVER_HANGS_S
    assert found.code == 3
    assert "no answer within 4 s" in found.one("database")["found"]


@pytest.mark.soak
def test_it_ends_when_the_database_falls_silent_half_way(server: IllServer, migrated: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with relay(migrated, silent_after=b"datfrozenxid") as through:
        found = doctor(tmp_path, through)
    assert time.monotonic() - began < NEVER_HANGS_S
    assert found.one("clock")["state"] == "ok"
    assert found.one("transaction ids")["state"] == "problem"
    assert found.states("migrations", "drift", "statements", "tenants") == {"skipped"}
    assert found.code == 1


# Settings


def test_each_setting_that_cannot_be_used_has_its_line_and_the_rest_is_looked_at(migrated: str, tmp_path: Path) -> None:
    settings = {
        "DEVMESH_OUTBOX_BYTES_MAX": "plenty", "DEVMESH_LOG_LEVEL": "loud", "DEVMESH_LOG_LEVLE": "info",
        "ENCRYPTION_MASTER_KEY": "s3cretpass", "DEVMESH_GATHER_QUEUE_MAX": "1",
    }  # fmt: skip
    (tmp_path / ".env").write_text("no assignment s3cretpass\n")
    found = doctor(tmp_path, migrated, **settings)
    assert found.code == 1
    lines = {line["found"]: line["state"] for line in found.of("settings")}
    for name in ("DEVMESH_OUTBOX_BYTES_MAX is 'plenty'", "DEVMESH_LOG_LEVEL is 'loud'", "ENCRYPTION_MASTER_KEY is '*",
                 "DEVMESH_GATHER_BATCH_MAX (128) must not be greater"):  # fmt: skip
        assert [state for said, state in lines.items() if said.startswith(name)] == ["problem"], lines
    assert [state for said, state in lines.items() if ".env, line 1" in said] == ["problem"], lines
    assert [state for said, state in lines.items() if "did you mean DEVMESH_LOG_LEVEL?" in said] == ["warning"], lines
    assert found.one("migrations")["state"] == "ok"
    assert "s3cretpass" not in found.text


def test_a_malformed_address_of_the_database_is_its_own_line(tmp_path: Path) -> None:
    found = doctor(tmp_path, "mysql://root:s3cretpass@db/mesh")
    assert found.code == 3
    assert found.one("settings")["found"].startswith("DATABASE_DSN is '")
    assert "s3cretpass" not in found.text


# This machine


def test_the_directory_of_up(migrated: str, tmp_path: Path) -> None:
    data = tmp_path / ".devmesh"
    data.write_text("")
    assert "is not a directory" in doctor(tmp_path, migrated).one("data directory")["found"]
    data.unlink()
    data.mkdir()
    (data / "dev.env").touch(mode=0o644)
    line = doctor(tmp_path, migrated).one("data directory")
    assert line["state"] == "problem"
    assert line["advice"][0] == f"chmod 600 {data / 'dev.env'}"
    subprocess.run(line["advice"][0].split(), check=True)
    assert doctor(tmp_path, migrated).one("data directory")["state"] == "ok"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else(migrated: str, tmp_path: Path) -> None:
    data = tmp_path / ".devmesh"
    data.mkdir(mode=0o700)
    os.chown(data, 65534, 65534)
    settings = {**OWN_PORTS, "DATABASE_DSN": migrated}
    line = _run(tmp_path, settings, through=["setpriv", "--bounding-set=-dac_override,-dac_read_search"]).one(
        "data directory"
    )
    assert line["state"] == "problem"
    assert "it belongs to user 65534" in line["found"]


def test_few_open_files(migrated: str, tmp_path: Path) -> None:
    for limit, state in ((200, "problem"), (1024, "warning")):
        found = _run(tmp_path, {**OWN_PORTS, "DATABASE_DSN": migrated}, files=limit)
        assert found.one("open files")["state"] == state


def _run(directory: Path, settings: dict[str, str], *, files: int = 8192, through: Sequence[str] = ()) -> Found:
    """In a process that may do less."""
    done = subprocess.run(
        [*through, sys.executable, "-m", "devmesh", "doctor", "--json"], cwd=directory, env=environment(settings),
        capture_output=True, text=True, timeout=30, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
    )  # fmt: skip
    return found_by(done)


def test_ports_that_others_hold_are_named_with_their_holders(up: Up, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        found = doctor(tmp_path, DEVMESH_REST_PORT=str(port), DEVMESH_WS_PORT=str(up.port + 2), DEVMESH_WORKER_PORT="0")
    stranger, other = found.of("ports")
    assert f"port {port} of 127.0.0.1, which rest-api needs, is taken by process {os.getpid()}" in stranger["found"]
    assert "which mcp-server needs, is taken by DevMesh's worker" in other["found"]
    assert "another port with DEVMESH_WS_PORT" in other["advice"][0]
    nowhere = doctor(tmp_path, DEVMESH_HOST="192.0.2.1", DEVMESH_REST_PORT=str(port))
    assert "cannot be had: Cannot assign requested address" in nowhere.one("ports")["found"]


def test_services_that_are_not_ready_say_why_and_frozen_ones_do_not_hold_us_up(
    server: IllServer, tmp_path: Path
) -> None:
    server.sql("create database unready")
    mesh = Mesh(server.dsn("unready"), tmp_path)
    worker = mesh.add("worker")
    worker.start()
    try:
        wait_until(lambda: "000001_foundation is pending" in worker.tail(), "the worker waits for migrations", 20.0)
        ports = {"DEVMESH_WORKER_PORT": str(worker.port)}
        line = doctor(tmp_path, **ports).of("worker")[0]
        assert line["state"] == "problem"
        assert "000001_foundation is pending" in line["found"], line
        worker.signal(signal.SIGSTOP)
        frozen = doctor(tmp_path, **ports)
        assert "does not answer as DevMesh does" in frozen.one("ports")["found"]
        assert frozen.one("worker")["state"] == "note"
    finally:
        mesh.end()
