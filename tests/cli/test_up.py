"""`devmesh up` from the first start to kill -9, as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from devmesh.store.embedded import EmbeddedPostgres
from tests import forking
from tests.cli.commands import END_LIMIT_S, SERVICES, Up, answer, devmesh, environment, three_free_ports
from tests.harness import signal_twice, until_a_signal_is_another, wait_until

BESIDE = """
from devmesh.client import Mesh

mesh = Mesh()


@mesh.job("beside", queue="beside")
def beside(job):
    pass
"""


def test_the_first_start_leaves_a_working_key_that_only_its_owner_may_read(up: Up) -> None:
    variables = up.dev_env()
    assert stat.S_IMODE(up.dev_env_path.stat().st_mode) == 0o600
    assert urlsplit(variables["DEVMESH_WS_URL"])[:3] == ("ws", f"127.0.0.1:{up.port}", "/ws")
    assert variables["DEVMESH_URL"] == f"http://127.0.0.1:{up.port + 1}"
    assert variables["DATABASE_DSN"].startswith("postgresql://")
    ready = json.loads((up.directory / "out").read_text())
    assert ready["url"] == variables["DEVMESH_URL"]
    assert ready["worker_url"] == f"http://127.0.0.1:{up.port + 2}"
    for port in range(up.port, up.port + 3):
        assert httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
    keys = answer(up.directory, "keys", "list", "--json")["keys"]
    [key] = [key for key in keys if key["name"] == "devmesh up"]
    assert key["kind"] == "admin"
    assert variables["DEVMESH_API_KEY"].startswith(key["prefix"])
    assert variables["DEVMESH_API_KEY"] not in up.log()


def test_a_worker_with_an_application_runs_beside_the_mesh_s_own(up: Up) -> None:
    (up.directory / "beside.py").write_text(BESIDE)
    command = ["devmesh", "worker", "--app", "beside:mesh"]
    with (up.directory / "beside.log").open("wb") as log:
        process = forking.start(command, cwd=up.directory, env=environment(), stdout=log)
    try:
        wait_until(lambda: said(process, up.directory / "beside.log", '"event": "ready"'), "it is ready")
        found = re.search(r"port (\d+) is taken, .* port (\d+)", (up.directory / "beside.log").read_text())
        assert found is not None
        assert int(found[1]) == up.port + 2
        assert httpx.get(f"http://127.0.0.1:{found[2]}/readyz", trust_env=False).status_code == 200
    finally:
        process.terminate()
        process.wait(END_LIMIT_S)
    chosen = str(up.port + 2)
    for option, settings in ((["--port", chosen], {}), ([], {"DEVMESH_WORKER_PORT": chosen})):
        refused = devmesh(up.directory, *command[1:], *option, settings=settings)
        assert (refused.returncode, "choose another with --port" in refused.stderr) == (1, True), refused.stderr


def said(process: forking.Process, log: Path, words: str) -> bool:
    assert process.poll() is None, log.read_text()
    return words in log.read_text()


def test_every_service_logs_under_its_name(up: Up) -> None:
    lines = up.log().splitlines()
    for service in SERVICES:
        assert any(line.startswith(service) and " ready" in line for line in lines)


def test_a_segment_of_the_log_is_small_so_that_nobody_waits_long_for_the_next(up: Up) -> None:
    segments = [path for path in EmbeddedPostgres(up.data / "postgres").data.glob("pg_wal/*") if path.is_file()]
    assert {path.stat().st_size for path in segments} == {1 << 20}


def test_a_second_one_on_the_same_directory_is_told_who_runs(up: Up) -> None:
    assert up.process is not None
    refused = devmesh(up.directory, "up", "--port", str(three_free_ports()))
    assert refused.returncode == 1
    assert f"(pid {up.process.pid})" in refused.stderr
    assert refused.stderr.count("error:") == 1


def test_a_taken_port_is_named_with_its_holder_before_anything_starts(tmp_path: Path) -> None:
    port = three_free_ports()
    with socket.create_server(("127.0.0.1", port + 1)):
        refused = devmesh(tmp_path, "up", "--port", str(port))
    assert refused.returncode == 1
    assert f"port {port + 1}, which rest-api needs, is taken by process {os.getpid()}" in refused.stderr
    assert not (tmp_path / ".devmesh" / "postgres").exists()


@pytest.mark.parametrize(
    ("settings", "arguments", "code", "said"),
    [
        ({}, ["--data-dir", "file/below"], 1, "file/below cannot be used: Not a directory"),
        ({"DATABASE_DSN": "postgresql://nobody@127.0.0.1:1/none"}, [], 3, "cannot reach the database"),
        ({"DATABASE_DSN": "nowhere"}, [], 2, "DATABASE_DSN is '********'"),
        ({"DEVMESH_OUTBOX_BYTES_MAX": "plenty"}, [], 2, "DEVMESH_OUTBOX_BYTES_MAX is 'plenty'"),
        ({"DEVMESH_HOST": "no.such.host.invalid"}, [], 2, "cannot listen on 'no.such.host.invalid'"),
        ({}, ["--port", "70000"], 2, "--port"),
    ],
    ids=["directory", "unreachable", "malformed dsn", "malformed setting", "host", "usage"],
)
def test_what_cannot_work_is_one_line_and_an_exit_code(
    tmp_path: Path, settings: dict[str, str], arguments: list[str], code: int, said: str
) -> None:
    (tmp_path / "file").write_text("")
    refused = devmesh(tmp_path, "up", "--port", str(three_free_ports()), *arguments, settings=settings)
    assert refused.returncode == code
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / ".devmesh" / "postgres").exists()


def test_a_killed_service_comes_back_and_a_killed_parent_takes_all_with_it_and_loses_nothing(own_up: Up) -> None:
    own_up.start()
    key = own_up.dev_env()["DEVMESH_API_KEY"]
    task = answer(own_up.directory, "call", "task.create", "title=kept", "assign=pull")["task"]

    gateway = own_up.service("mcp-server")
    gateway.kill()
    wait_until(lambda: _is_ready(own_up.port), "the gateway is back", 20.0)
    assert own_up.service("mcp-server").pid != gateway.pid
    assert "mcp-server was ended by SIGKILL; starting it again in 0.5 s" in own_up.log()

    services = own_up.services()
    assert own_up.end(signal.SIGKILL) == -signal.SIGKILL
    own_up.start()  # it waits for the old services itself
    assert not any(service.is_running() for service in services)
    assert own_up.dev_env()["DEVMESH_API_KEY"] == key
    assert answer(own_up.directory, "call", "task.get", f"task_id={task['id']}")["task"]["title"] == "kept"

    services = own_up.services()
    assert own_up.end(signal.SIGINT) == 0
    assert not any(service.is_running() for service in services)
    assert not EmbeddedPostgres(own_up.data / "postgres").is_running()
    done = devmesh(own_up.directory, "call", "task.list")
    assert done.returncode == 3
    assert "cannot be reached" in done.stderr


@pytest.mark.soak
def test_a_killed_database_comes_back_with_everything_acknowledged(own_up: Up) -> None:
    own_up.start()
    task = answer(own_up.directory, "call", "task.create", "title=kept", "assign=pull")["task"]
    os.kill(int((own_up.data / "postgres" / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
    wait_until(lambda: "PostgreSQL has ended; starting it again" in own_up.log(), "the loss is seen")
    read = ("call", "task.get", f"task_id={task['id']}")
    wait_until(lambda: devmesh(own_up.directory, *read).returncode == 0, "the task can be read again", 20.0)
    assert answer(own_up.directory, *read)["task"]["title"] == "kept"
    assert own_up.end(signal.SIGINT) == 0
    assert not EmbeddedPostgres(own_up.data / "postgres").is_running()


def test_it_stops_while_it_is_still_starting(own_up: Up) -> None:
    own_up.launch()
    wait_until(lambda: (own_up.data / "postgres" / "data").exists(), "its PostgreSQL is there", 20.0)
    assert own_up.end(signal.SIGINT) == 0
    assert not EmbeddedPostgres(own_up.data / "postgres").is_running()
    assert not own_up.dev_env_path.exists()


def test_a_signal_that_timeout_sends_twice_is_one(own_up: Up) -> None:
    own_up.start()
    assert own_up.process is not None
    signal_twice(own_up.process, signal.SIGTERM)
    assert own_up.process.wait(END_LIMIT_S) == 0
    assert "stopping" in own_up.log()
    assert "does not stop" not in own_up.log(), "nothing was cut off"


@pytest.mark.soak
def test_a_new_database_gets_a_new_key_and_a_service_that_does_not_stop_is_ended(
    own_up: Up, empty_database: str
) -> None:
    own_up.start()
    first = own_up.dev_env()["DEVMESH_API_KEY"]
    assert own_up.end(signal.SIGTERM) == 0

    own_up.start(settings={"DATABASE_DSN": empty_database})
    assert own_up.dev_env()["DATABASE_DSN"] == empty_database
    assert own_up.dev_env()["DEVMESH_API_KEY"] != first
    assert answer(own_up.directory, "call", "task.list")["tasks"] == []

    rest = own_up.service("rest-api")
    rest.suspend()
    assert own_up.process is not None
    own_up.process.send_signal(signal.SIGINT)
    wait_until(lambda: own_up.log().rstrip().endswith("stopped"), "the others have stopped")
    until_a_signal_is_another()
    assert own_up.end(signal.SIGINT) == 0  # the second time: without waiting for the grace
    assert "rest-api does not stop; ending it" in own_up.log()
    assert not rest.is_running()


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
