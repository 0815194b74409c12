"""Handlers that enqueue what follows, over the WebSocket and beside the database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from devmesh.client import BlockingJobContext, Client, JobContext, MeshError
from devmesh.core.errors import Kind
from tests.client.disturbing import Bench, new_bench
from tests.harness import Mesh, eventually

APP = """
from devmesh.client import Mesh

mesh = Mesh(worker="following")

@mesh.job("first")
async def first(job):
    return [str(await job.enqueue("last", payload=job.payload, unique_key=str(job.id)))]

@mesh.job("threaded")
def threaded(job):
    return [str(job_id) for job_id in job.enqueue_many([{"type": "last", "payload": n} for n in (1, 2)])]

@mesh.job("last")
async def last(job):
    return job.payload
"""


@pytest_asyncio.fixture
async def bench(mesh: Mesh, tenant: str) -> AsyncIterator[Bench]:
    async with new_bench(mesh, tenant) as made:
        yield made


async def test_what_a_handler_enqueues_is_there_once_though_the_answer_was_lost(bench: Bench) -> None:
    @bench.job
    async def follow(job: JobContext) -> list[str]:
        one = await job.enqueue("later", queue=bench.queue, payload=7, delay_ms=60_000)
        return [
            str(one),
            *map(str, await job.enqueue_many([{"type": "later", "queue": bench.queue, "delay_ms": 60_000}] * 3)),
        ]

    bench.disturbed.refuse("job.enqueue", MeshError(Kind.UNAVAILABLE, "the database is away"))
    bench.disturbed.loses |= {"job.enqueue": lambda _: True, "job.enqueue_many": lambda _: True}
    async with bench.at_work():
        job_id = await bench.enqueue("follow", max_retries=0)
        await eventually(lambda: bench.is_over(job_id), "it ends")
    ended = await bench.get(job_id)
    assert ended["status"] == "COMPLETED", ended["error"]
    waiting = (await bench.client.call("job.list", queue=bench.queue, status=["PENDING"]))["jobs"]
    assert sorted(each["id"] for each in waiting) == sorted(ended["result"])
    assert sorted(str(each["payload"]) for each in waiting) == ["7", "{}", "{}", "{}"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"queue": "of two words"}, "queue: expected letters"),
        ({"payload": float("nan")}, "nan"),
        ({"colour": "red"}, "unknown field `colour`"),
        ({"depends_on": ["00000000-0000-7000-8000-000000000000"]}, "there is no job"),
    ],
)
async def test_what_cannot_be_enqueued_fails_the_attempt_and_says_why(
    bench: Bench, asked: dict[str, Any], message: str
) -> None:
    @bench.job
    def follow(job: BlockingJobContext) -> None:
        job.enqueue("later", **asked)

    async with bench.at_work():
        job_id = await bench.enqueue("follow", max_retries=0)
        await eventually(lambda: bench.is_over(job_id), "it ends")
    ended = await bench.get(job_id)
    assert (ended["status"], ended["error"]["type"]) == ("FAILED", "MeshError")
    assert message in ended["error"]["message"]


async def test_beside_the_database_as_well(own_mesh: Callable[..., Mesh], tmp_path: Path) -> None:
    mesh = own_mesh("rest-api", "mcp-server")
    (tmp_path / "following.py").write_text(APP)
    child = mesh.add("worker", DEVMESH_WORKER_APP="following:mesh")
    child.start()
    child.wait_ready()
    async with Client(mesh.ws_url, mesh.admin_key) as client:

        async def ended(job_id: str) -> dict[str, Any]:
            async def is_over() -> bool:
                return (await client.call("job.get", job_id=job_id))["job"]["status"] in ("COMPLETED", "FAILED")

            await eventually(is_over, "it ends")
            found: dict[str, Any] = (await client.call("job.get", job_id=job_id))["job"]
            return found

        for job_type, results in (("first", [5]), ("threaded", [1, 2])):
            enqueued = (await client.call("job.enqueue", type=job_type, payload=5))["job"]
            first = await ended(enqueued["id"])
            assert first["status"] == "COMPLETED", first["error"]
            assert [(await ended(job_id))["result"] for job_id in first["result"]] == results
