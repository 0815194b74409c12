"""What handlers of jobs start themselves: processes that they end by a signal, and tasks that would end the process."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest_asyncio

from devmesh.client import Client
from tests.client.agents import script
from tests.client.test_job_worker import Jobs
from tests.harness import Child, Mesh, eventually

APP = """
import asyncio, multiprocessing, subprocess, time
from devmesh.client import Mesh

mesh = Mesh({more})

def twice(number):
    return 2 * number

def children(job):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        doubled = pool.map(twice, [1, 2])
    forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    forked.start()
    forked.terminate()
    forked.join(5)
    program = subprocess.Popen(["sleep", "60"])
    program.terminate()
    try:
        return [doubled, forked.exitcode, program.wait(5)]
    finally:
        forked.kill()
        program.kill()

@mesh.job("thread")
def in_a_thread(job):
    return children(job)

@mesh.job("loop")
async def in_the_loop(job):
    return children(job)

@mesh.job("process", queue="processes", in_process=True)
def in_a_process(job):
    return children(job)

async def ends():
    raise SystemExit(3)

async def interrupts():
    raise KeyboardInterrupt

@mesh.job("group")
async def in_a_group(job):
    await asyncio.gather(ends(), asyncio.sleep(60))

@mesh.job("forgotten")
async def forgotten(job):
    tasks = [asyncio.create_task(ends()), asyncio.create_task(interrupts())]
    await asyncio.sleep(0.1)
    return "forgotten"

@mesh.job("waits")
async def waits(job):
    await asyncio.sleep(job.payload)
    return "it has lost nothing"

@mesh.job("later")
async def later(job):
    return "it goes on"

if __name__ == "__main__":
    mesh.run()
"""


@pytest_asyncio.fixture
async def apart(own_mesh: Callable[..., Mesh]) -> AsyncIterator[tuple[Mesh, Jobs]]:
    mesh = own_mesh("rest-api", "mcp-server")
    async with Client(mesh.ws_url, mesh.admin_key) as client:
        yield mesh, Jobs(client)


async def all_ended_by_signals(jobs: Jobs) -> None:
    for job_type, queue in (("thread", "default"), ("loop", "default"), ("process", "processes")):
        job = await jobs.ended(await jobs.enqueue(job_type, queue=queue, max_retries=0))
        assert (job["status"], job["result"]) == ("COMPLETED", [[2, 4], -15, -15]), (job_type, job["error"])
    assert (await jobs.ended(await jobs.enqueue("later")))["result"] == "it goes on"


async def all_outlive_an_exit(jobs: Jobs) -> None:
    beside = await jobs.enqueue("waits", 3, max_retries=0)
    await eventually(lambda: jobs.is_held(beside), "it runs")
    group = await jobs.ended(await jobs.enqueue("group", max_retries=0))
    assert (group["status"], group["error"]) == ("FAILED", {"type": "SystemExit", "message": "3"})
    assert (await jobs.ended(await jobs.enqueue("forgotten", max_retries=0)))["result"] == "forgotten"
    assert (await jobs.ended(beside))["result"] == "it has lost nothing"


async def test_what_a_handler_starts_ends_without_its_worker(apart: tuple[Mesh, Jobs], tmp_path: Path) -> None:
    mesh, jobs = apart
    (tmp_path / "children_app.py").write_text(APP.format(more="worker='one'"))
    worker: Child = mesh.add("worker", DEVMESH_WORKER_APP="children_app:mesh")
    worker.start()
    worker.wait_ready()
    await all_ended_by_signals(jobs)
    await all_outlive_an_exit(jobs)
    worker.signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait) == 0


async def test_over_the_websocket_as_well(apart: tuple[Mesh, Jobs], tmp_path: Path) -> None:
    mesh, jobs = apart
    with script(tmp_path, "children_script", APP.format(more=""), mesh.ws_url, mesh.admin_key):
        await all_ended_by_signals(jobs)
        await all_outlive_an_exit(jobs)
