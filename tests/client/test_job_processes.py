"""Workers of jobs as users start them: scripts that run their mesh, with whatever they start themselves."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.client.agents import script
from tests.client.test_processes import Caller
from tests.harness import Mesh, wait_until

UNGUARDED = """
import os
from devmesh.client import Mesh

mesh = Mesh()

@mesh.job("sum", queue={queue!r}, in_process=True)
def add(job):
    return {{"sum": sum(job.payload), "pid": os.getpid()}}

mesh.run()
"""

FORKED = """
import os
from devmesh.client import Mesh

mesh = Mesh(capacity=1)

@mesh.job("where", queue={queue!r})
def where(job):
    import time
    time.sleep(job.payload)
    return os.getpid()

if os.fork():
    print("forked", flush=True)
mesh.run()
"""

DEAF = """
import asyncio
from devmesh.client import Mesh

mesh = Mesh()

@mesh.job("deaf", queue={queue!r})
async def deaf(job):
    print("begun", flush=True)
    await asyncio.sleep(600)

mesh.run()
"""


LISTENS_TO_NOTHING = """
import asyncio
from devmesh.client import Mesh

mesh = Mesh(drain_limit_s=0.1)

@mesh.job("deaf", queue={queue!r})
async def deaf(job):
    print("begun", flush=True)
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass

mesh.run()
print("has ended", flush=True)
"""

TWICE = """
import asyncio, logging, os, signal
from devmesh.client import Mesh

mesh = Mesh()

class Again(logging.Handler):
    def emit(self, record):
        if record.getMessage().startswith("stopping"):
            logging.getLogger().removeHandler(self)
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)

@mesh.job("brief", queue={queue!r})
async def brief(job):
    logging.getLogger().addHandler(Again())
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(1)

mesh.run()
print("has left", flush=True)
"""


class Owner(Caller):
    """Of jobs."""

    queue = ""

    def enqueue(self, job_type: str, payload: Any = None, **more: Any) -> str:
        asked = {"type": job_type, "payload": payload, "queue": self.queue, **more}
        answer = self._http.post("/jobs", json=asked)
        assert answer.status_code == 200, answer.text
        job_id: str = answer.json()["job"]["id"]
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self._http.get(f"/jobs/{job_id}").json()["job"]
        return job

    def done(self, job_id: str, within_s: float = 25.0) -> Any:
        wait_until(lambda: self.job(job_id)["status"] == "COMPLETED", f"job {job_id} is done", within_s)
        return self.job(job_id)["result"]

    def workers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._http.get("/workers").json()["workers"]
        return found


@pytest.fixture
def owner(mesh: Mesh, tenant: str) -> Iterator[Owner]:
    owner = Owner(mesh, tenant)
    owner.queue = f"q{uuid.uuid4().hex}"
    yield owner
    owner.close()


def test_a_script_that_runs_its_mesh_unguarded_may_have_jobs_in_processes(
    mesh: Mesh, tenant: str, tmp_path: Path, owner: Owner
) -> None:
    code = UNGUARDED.format(queue=owner.queue)
    with script(tmp_path, "unguarded", code, mesh.ws_url, tenant) as running:
        result = owner.done(owner.enqueue("sum", [1, 2, 3], max_retries=0))
        assert (result["sum"], result["pid"] == running.process.pid) == (6, False)
        assert len(owner.workers()) == 1


def test_forked_workers_take_no_jobs_from_each_other(mesh: Mesh, tenant: str, tmp_path: Path, owner: Owner) -> None:
    with script(tmp_path, "forked", FORKED.format(queue=owner.queue), mesh.ws_url, tenant) as running:
        running.until_said("forked")
        [child] = psutil.Process(running.process.pid).children()
        try:
            wait_until(lambda: len(owner.workers()) == 2, "both are there")
            jobs = [owner.enqueue("where", 1.0, max_retries=0) for _ in range(2)]
            assert {owner.done(job_id) for job_id in jobs} == {running.process.pid, child.pid}
            assert [each["status"] for each in owner.workers()] == ["ACTIVE"] * 2
        finally:
            child.kill()


def test_a_handler_that_listens_to_nothing_does_not_keep_its_process(
    mesh: Mesh, tenant: str, tmp_path: Path, owner: Owner
) -> None:
    code = LISTENS_TO_NOTHING.format(queue=owner.queue)
    with script(tmp_path, "nothing", code, mesh.ws_url, tenant) as running:
        owner.enqueue("deaf")
        running.until_said("begun")
        running.signal(signal.SIGTERM)
        running.until_said("has ended")
        assert running.wait(10.0) == 0


def test_one_signal_that_comes_twice_in_a_moment_is_one(mesh: Mesh, tenant: str, tmp_path: Path, owner: Owner) -> None:
    """As `timeout` sends it, which has a process leave and not die."""
    with script(tmp_path, "twice", TWICE.format(queue=owner.queue), mesh.ws_url, tenant) as running:
        job_id = owner.enqueue("brief", max_retries=0)
        running.until_said("has left")
        assert running.wait(5.0) == 0
        assert owner.job(job_id)["status"] == "COMPLETED"
        assert [each["status"] for each in owner.workers()] == ["TERMINATED"]


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_at_once_and_without_a_word(
    mesh: Mesh, tenant: str, tmp_path: Path, owner: Owner, second: signal.Signals
) -> None:
    with script(tmp_path, "deaf", DEAF.format(queue=owner.queue), mesh.ws_url, tenant) as running:
        owner.enqueue("deaf")
        running.until_said("begun")
        running.signal(signal.SIGINT)
        running.until_said("a second signal ends the process at once")
        running.signal(second)
        assert running.wait(5.0) == -second
        assert "Traceback" not in running.said()
