"""Agents as processes of their own, treated roughly: kept busy, stopped, killed, told to end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from devmesh.core.tasks import FINISHED
from tests.client.agents import Script, script
from tests.harness import Mesh, free_port, wait_until

WITHIN_S = 25.0

BUSY = """
import time
from devmesh.client import Mesh
mesh = Mesh()

@mesh.agent("busy")
async def work(task):
    print("begun", flush=True)
    ends_at = time.monotonic() + task.parameters["seconds"]
    while time.monotonic() < ends_at:  # never awaits: the event loop stands still
        pass
    return {"attempt": task.attempt, "is_lost": task.is_lost}

mesh.run()
print("ended well", flush=True)
"""

STOPPED = """
import asyncio
from devmesh.client import Mesh
mesh = Mesh()

@mesh.agent("stopped")
async def work(task):
    print("begun", task.attempt, flush=True)
    if task.attempt > 1:
        return "second"
    try:
        await asyncio.sleep(600)
    finally:
        print("told:", task.is_lost, task.lost_reason, flush=True)

mesh.run()
"""

PATIENT = """
import pathlib, asyncio
from devmesh.client import Mesh
mesh = Mesh(drain_limit_s=10)

@mesh.agent("patient")
async def work(task):
    print("begun", task.attempt, flush=True)
    while not pathlib.Path(task.parameters["until"]).exists():
        await asyncio.sleep(0.01)
    return "in time"

mesh.run()
print("ended well", flush=True)
"""

HANGING = """
import threading
from devmesh.client import Mesh
mesh = Mesh(drain_limit_s=0.5)

@mesh.agent("hanging")
def work(task):
    print("begun", task.attempt, flush=True)
    threading.Event().wait()

mesh.run()
print("ended well", flush=True)
"""


class Caller:
    """Asks the mesh over REST, so that what an agent did is judged by another wire."""

    def __init__(self, mesh: Mesh, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=f"{mesh.rest_url}/api/v1", headers=headers, timeout=10, trust_env=False)

    def create(self, title: str, **details: Any) -> str:
        answer = self._http.post("/tasks", json={"title": title, **details})
        assert answer.status_code == 201, answer.text
        task_id: str = answer.json()["task"]["id"]
        return task_id

    def get(self, task_id: str) -> dict[str, Any]:
        answer = self._http.get(f"/tasks/{task_id}")
        assert answer.status_code == 200, answer.text
        task: dict[str, Any] = answer.json()["task"]
        return task

    def ended(self, task_id: str, within_s: float = WITHIN_S) -> dict[str, Any]:
        wait_until(lambda: self.get(task_id)["status"] in FINISHED, f"task {task_id} has ended", within_s)
        return self.get(task_id)

    def outcomes(self, task_id: str) -> list[str]:
        attempts = self._http.get(f"/tasks/{task_id}/history").json()["attempts"]
        return [attempt["outcome"] for attempt in attempts]

    def close(self) -> None:
        self._http.close()


@contextmanager
def agent(mesh: Mesh, key: str, directory: Path, name: str, code: str) -> Iterator[tuple[Script, Caller]]:
    caller = Caller(mesh, key)
    try:
        with script(directory, name, code, mesh.ws_url, key) as running:
            running.until_said("is connected")
            yield running, caller
    finally:
        caller.close()


def test_a_handler_that_keeps_the_processor_busy_for_several_leases_keeps_its_task(
    mesh: Mesh, tenant: str, tmp_path: Path
) -> None:
    with agent(mesh, tenant, tmp_path, "busy", BUSY) as (_, caller):
        task = caller.ended(caller.create("busy", lease_s=1.0, parameters={"seconds": 5}))
        assert (task["status"], task["result"]) == ("completed", {"attempt": 1, "is_lost": False})
        assert caller.outcomes(task["id"]) == ["completed"]


def test_an_agent_stopped_past_its_lease_is_told_and_its_attempt_is_over(
    mesh: Mesh, tenant: str, tmp_path: Path
) -> None:
    with agent(mesh, tenant, tmp_path, "stopped", STOPPED) as (running, caller):
        task_id = caller.create("long", lease_s=1.0)
        running.until_said("begun 1")
        running.signal(signal.SIGSTOP)
        wait_until(lambda: caller.get(task_id)["attempt"] == 2, "the lease has ended", 10)
        running.signal(signal.SIGCONT)
        running.until_said("told: True")
        task = caller.ended(task_id)
        assert task["result"] == "second"
        assert task["attempt"] >= 2
        assert set(caller.outcomes(task_id)[:-1]) == {"lease_expired"}


def test_sigterm_lets_a_handler_end_and_exits_with_0(mesh: Mesh, tenant: str, tmp_path: Path) -> None:
    with agent(mesh, tenant, tmp_path, "patient", PATIENT) as (running, caller):
        until = tmp_path / "go"
        task_id = caller.create("patient", parameters={"until": str(until)})
        running.until_said("begun 1")
        running.signal(signal.SIGTERM)
        running.until_said("stopping")
        until.touch()
        assert running.wait() == 0
        assert "ended well" in running.said()
        task = caller.get(task_id)
        assert (task["status"], task["result"], task["attempt"]) == ("completed", "in time", 1)


def test_a_handler_that_hangs_does_not_keep_its_process_alive_nor_its_task(
    mesh: Mesh, tenant: str, tmp_path: Path
) -> None:
    with agent(mesh, tenant, tmp_path, "hanging", HANGING) as (running, caller):
        task_id = caller.create("hangs", lease_s=2.0)
        running.until_said("begun 1")
        running.signal(signal.SIGINT)
        assert running.wait() == 0
        assert "ended well" in running.said()
        wait_until(lambda: caller.get(task_id)["attempt"] == 2, "the task is free again", 10)
        assert caller.get(task_id)["status"] == "pending"


def test_an_agent_killed_and_started_again_takes_its_work_up_anew(mesh: Mesh, tenant: str, tmp_path: Path) -> None:
    with agent(mesh, tenant, tmp_path, "patient", PATIENT) as (running, caller):
        until = tmp_path / "go"
        task_id = caller.create("patient", lease_s=1.0, parameters={"until": str(until)})
        running.until_said("begun 1")
        running.signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        until.touch()
        running.restart()
        task = caller.ended(task_id)
        assert (task["status"], task["attempt"]) == ("completed", 2)
        assert caller.outcomes(task_id) == ["lease_expired", "completed"]


def test_a_wrong_key_is_one_line_and_exit_code_1(mesh: Mesh, tmp_path: Path) -> None:
    with script(tmp_path, "wrong", PATIENT, mesh.ws_url, "dm_" + "A" * 43) as running:
        assert running.wait() == 1
        assert running.said().strip().splitlines()[-1] == "devmesh: this key is not known"
        assert "Traceback" not in running.said()


def test_no_key_is_one_line_and_exit_code_1(mesh: Mesh, tmp_path: Path) -> None:
    with script(tmp_path, "keyless", PATIENT, mesh.ws_url, "") as running:
        assert running.wait() == 1
        assert running.said().startswith("devmesh: no API key: set DEVMESH_API_KEY")
        assert len(running.said().strip().splitlines()) == 1


def test_an_agent_may_be_started_before_its_server(mesh: Mesh, tmp_path: Path) -> None:
    with script(tmp_path, "early", PATIENT, f"ws://127.0.0.1:{free_port()}/ws", "dm_" + "A" * 43) as running:
        running.until_said("no connection yet")
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
        assert "ended well" in running.said()


def test_a_handler_so_busy_that_its_connection_is_given_up_keeps_its_task_all_the_same(
    own_mesh: Callable[..., Mesh], tmp_path: Path
) -> None:
    mesh = own_mesh(DEVMESH_PING_INTERVAL_S="0.5")
    with agent(mesh, mesh.admin_key, tmp_path, "busy", BUSY) as (running, caller):
        task = caller.ended(caller.create("busy", lease_s=1.0, parameters={"seconds": 4}))
        assert (task["status"], task["result"]) == ("completed", {"attempt": 1, "is_lost": False})
        running.until_said("the connection was lost")
        again = caller.ended(caller.create("again", lease_s=1.0, parameters={"seconds": 0}))
        assert again["status"] == "completed"
