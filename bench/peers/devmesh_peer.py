"""DevMesh in the comparison: enqueued by a process beside the database, as the peers do, and its worker as people run it."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import psutil
from tests.harness import Mesh, create_admin_key

from bench.figures import percentile
from bench.jobs import AT_ONCE, MANY_CALLERS, SINGLE_CALLERS, Queue, queue_on, rate
from devmesh.client import Client

CAPACITY, PREFETCHED = 1_000, 8_000
LATENCY_PER_S = 100
IDLE_S = 10.0
BACKLOG = 200_000


async def measure(dsn: str, directory: Path, seconds: float) -> dict[str, float]:
    """Every figure by its name."""
    found: dict[str, float] = {}
    shutil.copy(Path(__file__).with_name("devmesh_app.py"), directory)
    async with queue_on(dsn) as queue:
        noop = _batch("noop")
        found["enqueue in thousands"] = await rate(seconds, *[lambda: _enqueue(queue, noop)] * MANY_CALLERS)
        one = {"type": "noop", "queue": "noop"}
        found["enqueue one at a time"] = await rate(seconds, *[lambda: _enqueue_one(queue, one)] * SINGLE_CALLERS)
        connection = await asyncpg.connect(dsn)
        try:
            while await _waiting(connection) < BACKLOG:
                await _enqueue(queue, noop)
            async with _mesh(dsn, directory, "noop", PREFETCHED):
                found["no-op"] = await _processed(connection, seconds)
            await _emptied(connection)
            for _ in range(60):
                await _enqueue(queue, _batch("sleep"))
            async with _mesh(dsn, directory, "sleep", CAPACITY):
                found["10 ms handlers"] = await _processed(connection, seconds / 2)
            await _emptied(connection)
            async with _mesh(dsn, directory, "timed", CAPACITY, "mcp-server") as mesh:
                latencies = await _latencies(lambda spec: queue.call("job.enqueue", spec), connection, seconds)
                found |= dict(zip(("latency p50", "latency p99"), latencies, strict=True))
                async with Client(mesh.ws_url, await create_admin_key(dsn, "default")) as client:
                    latencies = await _latencies(lambda spec: client.call("job.enqueue", **spec), connection, seconds)
                found |= dict(zip(("WebSocket p50", "WebSocket p99"), latencies, strict=True))
                found["idle worker"] = await _idle(mesh)
        finally:
            await connection.close()
    return found


def _batch(name: str) -> dict[str, object]:
    return {"jobs": [{"type": name, "queue": name}] * AT_ONCE}


async def _enqueue(queue: Queue, batch: dict[str, object]) -> int:
    await queue.call("job.enqueue_many", batch)
    return AT_ONCE


async def _enqueue_one(queue: Queue, spec: dict[str, object]) -> int:
    await queue.call("job.enqueue", spec)
    return 1


@asynccontextmanager
async def _mesh(dsn: str, directory: Path, handler: str, capacity: int, *services: str) -> AsyncIterator[Mesh]:
    """`devmesh worker --app` as a process of its own, and perhaps other services."""
    app = {"DEVMESH_WORKER_APP": "devmesh_app:mesh", "PEER_CAPACITY": str(capacity), "PEER_HANDLER": handler}
    mesh = Mesh(dsn, directory, app)
    try:
        await asyncio.to_thread(mesh.start, "worker", *services)
        yield mesh
    finally:
        await asyncio.to_thread(mesh.end)


async def _processed(connection: asyncpg.Connection, seconds: float) -> float:
    """Jobs that are completed in a second, counted by their rows."""
    count = "select count(*) from mcp.job_executions"
    begun = await connection.fetchval(count)
    while await connection.fetchval(count) == begun:
        await asyncio.sleep(0.01)
    before, began = await connection.fetchval(count), time.perf_counter()
    await asyncio.sleep(seconds)
    after = await connection.fetchval(count)
    done: int = after - before
    return done / (time.perf_counter() - began)


async def _emptied(connection: asyncpg.Connection) -> None:
    """Takes away what is left of the last measure, with the rows that are gone: that is our doing, not the queue's."""
    await connection.execute("delete from mcp.jobs_ready")
    await connection.execute("vacuum mcp.jobs_ready")


async def _waiting(connection: asyncpg.Connection) -> int:
    waiting: int = await connection.fetchval("select count(*) from mcp.jobs_ready")
    return waiting


async def _latencies(
    enqueue: Callable[[dict[str, object]], Awaitable[object]], connection: asyncpg.Connection, seconds: float
) -> list[float]:
    """From before the call to the first line of the handler, p50 and p99 in milliseconds."""
    count = 0
    await connection.execute("truncate mcp.job_executions")
    await asyncio.sleep(1)
    began = time.perf_counter()
    while (now := time.perf_counter() - began) < seconds:
        if (wait_s := count / LATENCY_PER_S - now) > 0:
            await asyncio.sleep(wait_s)
        await enqueue({"type": "timed", "queue": "timed", "payload": time.time()})
        count += 1
    query = "select result::text::float8 from mcp.job_executions where result is not null and result::text <> 'null'"
    while len(rows := await connection.fetch(query)) < count:
        await asyncio.sleep(0.05)
    delays_ms = [row[0] for row in rows]
    return [percentile(delays_ms, 0.5), percentile(delays_ms, 0.99)]


async def _idle(mesh: Mesh) -> float:
    """The share of a processor, in percent, that a worker takes that has nothing to do."""
    [child] = mesh.of("worker")
    assert child.process is not None
    process = psutil.Process(child.process.pid)
    before = process.cpu_times()
    await asyncio.sleep(IDLE_S)
    after = process.cpu_times()
    return 100 * (after.user + after.system - before.user - before.system) / IDLE_S
