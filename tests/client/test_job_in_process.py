"""Jobs of handlers that run in processes of their own: none is held while it waits for a process, and none begins too late."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from devmesh.client import processes
from tests.client.disturbing import Bench, new_bench, well
from tests.client.process_jobs import held_up, odd
from tests.harness import Mesh, eventually

PROCESSES = 2
BEGIN_LIMIT_S = 30.0  # a process imports much


@pytest_asyncio.fixture
async def bench(mesh: Mesh, tenant: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(processes, "PROCESSES", PROCESSES)
    async with new_bench(mesh, tenant, well, capacity=10, lease_s=20.0) as made:
        yield made


async def enqueue_many(bench: Bench, job_type: str, count: int, payload: Any = None) -> list[str]:
    spec = {"type": job_type, "queue": bench.queue, "payload": payload, "max_retries": 0}
    return [job["id"] for job in (await bench.client.call("job.enqueue_many", jobs=[spec] * count))["jobs"]]


async def held(bench: Bench, jobs: list[str]) -> int:
    return sum([await bench.is_held(job_id) for job_id in jobs])


async def all_done(bench: Bench, jobs: list[str]) -> None:
    for job_id in jobs:
        await eventually(lambda: bench.is_over(job_id), "it is done", BEGIN_LIMIT_S)  # noqa: B023
        assert (await bench.get(job_id))["status"] == "COMPLETED"


def begun(directory: Path) -> set[str]:
    return {path.stem for path in directory.iterdir()} - {"go"}


async def test_no_more_jobs_are_held_than_there_are_free_processes(bench: Bench, tmp_path: Path) -> None:
    bench.job_in_process(held_up, f"{bench.queue}-p")
    bench.queue += "-p"
    jobs = await enqueue_many(bench, "held_up", 6, str(tmp_path))
    async with bench.at_work():
        await eventually(lambda: len(begun(tmp_path)) == PROCESSES, "all processes are busy", BEGIN_LIMIT_S)
        assert await held(bench, jobs) == PROCESSES
        bench.queue = bench.queue.removesuffix("-p")
        await all_done(bench, await enqueue_many(bench, "well", 3))  # others do not wait for a process
        assert await held(bench, jobs) == PROCESSES
        (tmp_path / "go").touch()
        await all_done(bench, jobs)
    assert [await bench.outcomes(job_id) for job_id in jobs] == [["COMPLETED"]] * 6


async def test_jobs_that_come_when_no_process_is_free_are_for_others(bench: Bench, tmp_path: Path) -> None:
    bench.job_in_process(held_up)
    async with bench.at_work():
        await all_done(bench, await enqueue_many(bench, "well", 3))  # that is all that the queue has, it seems
        jobs = await enqueue_many(bench, "held_up", 6, str(tmp_path))
        await eventually(lambda: len(begun(tmp_path)) == PROCESSES, "all processes are busy", BEGIN_LIMIT_S)

        async def are_given_back() -> bool:
            return await held(bench, jobs) == PROCESSES

        await eventually(are_given_back, "the others are given back")
        assert len(begun(tmp_path)) == PROCESSES
        (tmp_path / "go").touch()
        await all_done(bench, jobs)
    assert len(list(tmp_path.iterdir())) == 6 + 1, "each was run once"


async def test_jobs_for_processes_in_a_queue_that_is_not_theirs_are_not_taken_up_again_and_again(
    bench: Bench, tmp_path: Path
) -> None:
    bench.job_in_process(held_up, f"{bench.queue}-p")
    jobs = await enqueue_many(bench, "held_up", 6, str(tmp_path))
    async with bench.at_work():
        await eventually(lambda: len(begun(tmp_path)) == PROCESSES, "all processes are busy", BEGIN_LIMIT_S)
        assert await held(bench, jobs) == PROCESSES
        (tmp_path / "go").touch()
        await all_done(bench, jobs)
    assert {len(await bench.outcomes(job_id)) for job_id in jobs} <= {1, 2}


async def test_a_job_for_a_process_in_a_queue_that_is_not_theirs_takes_the_queue_from_nobody_for_long(
    bench: Bench, tmp_path: Path
) -> None:
    others = bench.queue
    bench.job_in_process(held_up, f"{others}-p")
    (quick := tmp_path / "quick").mkdir()
    (slow := tmp_path / "slow").mkdir()
    (quick / "go").touch()
    async with bench.at_work():
        await all_done(bench, await enqueue_many(bench, "held_up", 1, str(quick)))
        await all_done(bench, await enqueue_many(bench, "well", 1))
        bench.queue = f"{others}-p"
        jobs = await enqueue_many(bench, "held_up", PROCESSES, str(slow))
        await eventually(lambda: len(begun(slow)) == PROCESSES, "all processes are busy", BEGIN_LIMIT_S)
        bench.queue = others
        await all_done(bench, await enqueue_many(bench, "well", 3))
        (slow / "go").touch()
        await all_done(bench, jobs)


async def test_an_attempt_that_is_lost_before_it_begins_is_not_begun(mesh: Mesh, tenant: str, tmp_path: Path) -> None:
    async with new_bench(mesh, tenant, capacity=10, lease_s=1.0) as bench:
        bench.job_in_process(held_up)
        (tmp_path / "go").touch()
        job_id = await bench.enqueue("held_up", str(tmp_path))
        bench.disturbed.late["job.claim"] = asyncio.Event()
        async with bench.at_work():
            await eventually(lambda: bench.is_held(job_id), "it is given out, though its worker has not heard so")

            async def is_lost() -> bool:
                return await bench.outcomes(job_id) == ["LEASE_LOST"]

            await eventually(is_lost, "its lease has ended")
            bench.disturbed.late["job.claim"].set()
            await all_done(bench, [job_id])
        job = await bench.get(job_id)
    assert [path.name for path in tmp_path.iterdir() if path.name != "go"] == [f"{job_id}.{job['result']}"]


async def test_a_result_that_cannot_be_told_fails_its_job_for_good_and_an_exception_does_not(bench: Bench) -> None:
    bench.job_in_process(odd)
    async with bench.at_work():
        results = ("lambda", "deep", "unopened", "cancelled", "object")
        jobs = {what: await bench.enqueue("odd", what, max_retries=1) for what in (*results, "raised", "plugin")}
        for job_id in jobs.values():
            await eventually(lambda: bench.is_over(job_id), "it has failed", BEGIN_LIMIT_S)  # noqa: B023
        for what in results:
            assert (await bench.get(jobs[what]))["error"]["type"] == "UnusableResult", what
            assert await bench.outcomes(jobs[what]) == ["FAILED"], what
        assert (await bench.get(jobs["raised"]))["error"] == {"type": "Unopenable", "message": "its own words"}
        assert (await bench.get(jobs["plugin"]))["error"] == {"type": "Plugged", "message": "its own words"}
        for what in ("raised", "plugin"):
            assert await bench.outcomes(jobs[what]) == ["FAILED"] * 2


async def test_a_module_that_its_process_cannot_import_is_told_as_what_it_is(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that listens on a port when it is imported. It ends no process, nor what others do there."""
    (tmp_path / "imported_once.py").write_text(
        "import multiprocessing\n"
        "if multiprocessing.parent_process() is not None:\n    raise OSError('the port is taken')\n"
        "def once(job):\n    return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    bench.job_in_process(importlib.import_module("imported_once").once)
    bench.job_in_process(held_up)
    async with bench.at_work():
        [other] = await enqueue_many(bench, "held_up", 1, str(tmp_path))
        await eventually(lambda: other in begun(tmp_path), "another has begun", BEGIN_LIMIT_S)
        job_id = await bench.enqueue("once", max_retries=0)
        await eventually(lambda: bench.is_over(job_id), "it has failed", BEGIN_LIMIT_S)
        assert (await bench.get(job_id))["error"] == {"type": "OSError", "message": "the port is taken"}
        (tmp_path / "go").touch()
        await all_done(bench, [other])
