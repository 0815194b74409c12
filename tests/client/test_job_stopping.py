"""Workers of jobs that stop: at once when they hold nothing, heard of by everybody, and with nothing left in their hands."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest_asyncio

from devmesh.client import BlockingJobContext, Client, JobContext
from devmesh.client import Mesh as Agents
from tests.client.agents import at_work
from tests.client.disturbing import Bench, new_bench, well
from tests.harness import READY_LIMIT_S, Mesh, eventually

BRIEF = """
import asyncio
from devmesh.client import Mesh

mesh = Mesh(drain_limit_s=0.1)


@mesh.job("long")
async def long(job):
    await asyncio.sleep(600)
"""
REFUSED = """

for number in range(101):  # more queues than a worker may have
    mesh.job(f"long-{number}", queue=f"q{number}")(long)
"""
AT_ONCE_S = 3.0  # no claim waits for so short a time


@pytest_asyncio.fixture
async def bench(mesh: Mesh, tenant: str) -> AsyncIterator[Bench]:
    async with new_bench(mesh, tenant, well, capacity=10, lease_s=60.0) as made:
        yield made


async def test_a_worker_that_holds_nothing_stops_at_once_and_has_left(mesh: Mesh, tenant: str) -> None:
    queue = f"q{uuid.uuid4().hex}"
    agents = Agents(mesh.ws_url, tenant, worker=queue)

    @agents.job("well", queue=queue)
    async def well(job: JobContext) -> str:
        return "well"

    async with Client(mesh.ws_url, tenant) as client:

        async def statuses() -> list[str]:
            return [each["status"] for each in (await client.call("worker.list"))["workers"]]

        async with at_work(agents):
            await eventually(statuses, "it has registered, and waits for jobs")
            assert await statuses() == ["ACTIVE"]
            began_s = time.monotonic()
        assert time.monotonic() - began_s < AT_ONCE_S
        assert await statuses() == ["TERMINATED"]


async def test_a_plain_function_hears_that_its_job_was_given_back_when_its_worker_stops(bench: Bench) -> None:
    """It may go on for longer than its worker, in a process that does."""
    told = list[str | None]()

    @bench.job
    def polite(job: BlockingJobContext) -> str:
        while not job.is_lost:
            time.sleep(0.01)
        told.append(job.lost_reason)
        return "this is no result"

    worker = bench.worker()
    running = asyncio.create_task(worker.run())
    job_id = await bench.enqueue("polite")
    await eventually(lambda: bench.is_held(job_id), "it runs")
    await worker.drain(0.0)
    await running
    await eventually(lambda: told, "it is told", AT_ONCE_S)
    assert told == ["its worker stops"]
    assert set(await bench.outcomes(job_id)) == {"RELEASED"}


async def test_a_coroutine_is_cancelled_once_when_its_worker_stops(bench: Bench) -> None:
    cleaned = list[str]()

    @bench.job
    async def tidy(_: JobContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _turn in range(3):
                await asyncio.sleep(0.01)
            cleaned.append("all of it")

    async with bench.at_work() as running:
        job_id = await bench.enqueue("tidy")
        await eventually(lambda: bench.is_held(job_id), "it runs")
    assert running.done()
    assert cleaned == ["all of it"]


async def test_a_coroutine_may_say_how_far_it_came_when_its_worker_stops(bench: Bench) -> None:
    """The job is its own until it is given back."""
    said = list[bool]()

    @bench.job
    async def tidy(job: JobContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await job.progress(0.5, "half of it")
            said.append(job.is_lost)

    async with bench.at_work():
        job_id = await bench.enqueue("tidy")
        await eventually(lambda: bench.is_held(job_id), "it runs")
    assert said == [False]
    assert set(await bench.outcomes(job_id)) == {"RELEASED"}


async def test_a_worker_that_has_left_comes_back_under_its_name(bench: Bench) -> None:
    jobs = []
    for _ in range(2):
        async with bench.at_work():
            job_id = await bench.enqueue("well")
            await eventually(lambda: bench.is_over(job_id), "it is done")  # noqa: B023
            worker = await bench.worker_of(job_id)
            assert (worker["name"], worker["status"]) == (bench.queue, "ACTIVE")
            jobs.append(job_id)
    assert [(await bench.worker_of(job_id))["status"] for job_id in jobs] == ["TERMINATED"] * 2


async def test_jobs_that_come_while_a_worker_stops_are_for_others_at_once(bench: Bench) -> None:
    bench.disturbed.late["job.claim"] = asyncio.Event()
    async with bench.at_work():
        job_id = await bench.enqueue("well", max_retries=0)
        await eventually(lambda: bench.is_held(job_id), "it is given out, though its worker has not heard so")
    assert [(await bench.get(job_id))[name] for name in ("status", "retry_count")] == ["PENDING", 0]
    assert set(await bench.outcomes(job_id)) == {"RELEASED"}


@contextlib.asynccontextmanager
async def at_work_after_another(bench: Bench) -> AsyncIterator[asyncio.Task[None]]:
    """Lets a worker work while one that had its name before wants to leave, which is given."""
    first = bench.worker()
    running = asyncio.create_task(first.run())
    await eventually(lambda: bench.disturbed.asked["job.claim"], "it waits for jobs")
    async with bench.at_work():
        await eventually(lambda: bench.disturbed.asked["job.claim"] >= 2, "the other does, too")
        await first.drain(1.0)
        await eventually(lambda: bench.disturbed.asked["worker.deregister"], "the first one wants to leave")
        yield running


async def test_who_stops_does_not_end_another_process_that_goes_by_its_name(bench: Bench) -> None:
    async with at_work_after_another(bench) as first:
        job_id = await bench.enqueue("well")
        await eventually(lambda: bench.is_over(job_id), "the other goes on")
        assert (await bench.worker_of(job_id))["status"] == "ACTIVE"
        first.cancel()
        await asyncio.wait([first])


async def test_beside_the_database_handlers_have_the_time_that_their_application_gives_them(
    own_mesh: Callable[..., Mesh], tmp_path: Path
) -> None:
    """However much more the service would have."""
    mesh = own_mesh("rest-api", "mcp-server")
    (tmp_path / "brief.py").write_text(BRIEF)
    worker = mesh.add("worker", DEVMESH_WORKER_APP="brief:mesh", DEVMESH_SHUTDOWN_GRACE_S="600")
    worker.start()
    async with Client(mesh.ws_url, mesh.admin_key) as client:
        job_id = (await client.call("job.enqueue", type="long"))["job"]["id"]

        async def status() -> str:
            return str((await client.call("job.get", job_id=job_id))["job"]["status"])

        async def is_held() -> bool:
            return await status() == "PROCESSING"

        await eventually(is_held, "it is at work", READY_LIMIT_S)
        worker.signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.wait) == 0
        assert await status() == "PENDING"


async def test_beside_the_database_a_worker_that_cannot_run_stops_at_once(
    own_mesh: Callable[..., Mesh], tmp_path: Path
) -> None:
    """It begins nothing any more, and does not wait for the end of its grace."""
    mesh = own_mesh("rest-api")
    (tmp_path / "refused.py").write_text(BRIEF + REFUSED)
    worker = mesh.add("worker", DEVMESH_WORKER_APP="refused:mesh", DEVMESH_SHUTDOWN_GRACE_S="600")
    worker.start()
    await eventually(lambda: "no jobs are run for the moment" in worker.tail(), "it says so", READY_LIMIT_S)
    worker.signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait) == 0


async def test_who_stops_does_not_end_the_process_that_had_its_name_before(bench: Bench) -> None:
    async with bench.at_work():
        await eventually(lambda: bench.disturbed.asked["job.claim"], "it waits for jobs")
        async with bench.at_work():
            await eventually(lambda: bench.disturbed.asked["job.claim"] >= 2, "the other does, too")
        job_id = await bench.enqueue("well")
        await eventually(lambda: bench.is_over(job_id), "the one that nobody has stopped goes on")
        assert (await bench.worker_of(job_id))["status"] == "ACTIVE"


async def test_a_worker_that_somebody_has_deregistered_lets_go_of_its_jobs_and_comes_back(bench: Bench) -> None:
    cancelled = list[int]()

    @bench.job
    async def hang(job: JobContext) -> None:
        try:
            await asyncio.wait_for(asyncio.Event().wait(), None if job.attempt == 1 else 0.0)
        except asyncio.CancelledError:
            cancelled.append(job.attempt)
            raise

    async with bench.at_work():
        job_id = await bench.enqueue("hang", max_retries=0)
        await eventually(lambda: bench.is_held(job_id), "it runs")
        [worker_id] = [each["id"] for each in (await bench.client.call("worker.list"))["workers"]]
        await bench.client.call("worker.deregister", worker_id=worker_id)
        await eventually(lambda: bench.is_over(job_id), "it is run again")
        assert (await bench.worker_of(job_id))["id"] != worker_id
        assert cancelled == [1]
    assert await bench.outcomes(job_id) == ["RELEASED", "FAILED"]


async def test_processes_of_one_name_that_stop_together_all_end_well(bench: Bench) -> None:
    async with at_work_after_another(bench) as first:
        pass
    await asyncio.wait_for(first, 10)
