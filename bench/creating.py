"""How many durable tasks callers can create over the WebSocket, while a crowd of connections is open."""

from __future__ import annotations

import asyncio
import itertools
import time

import msgspec

from bench.figures import Figure, percentile
from bench.pgbench import creating_limit
from bench.stage import Running, Stage
from bench.wire import Connection, frame, is_result, request
from devmesh.settings import Settings

ACTIVE = 500
TASK = {"title": "measure", "parameters": {"path": "docs/guide.md"}, "required_capabilities": ["summarize"]}
CREATE = request("task.create", TASK)
KEYED = msgspec.json.encode(
    {"jsonrpc": "2.0", "id": 1, "method": "task.create", "params": {**TASK, "idempotency_key": "KEY"}}
)
_keys = itertools.count(1)


class Caller:
    """Creates one task after another, each when the one before it is durable."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sent_at = 0.0
        self._is_stopping = False
        self.is_keyed = False
        self.latencies_s: list[float] = []
        self.errors = 0
        connection.receiver = self._answered

    def begin(self) -> None:
        self._sent_at = time.perf_counter()
        self._connection.send(frame(KEYED.replace(b"KEY", b"%d" % next(_keys))) if self.is_keyed else CREATE)

    def stop(self) -> None:
        self._is_stopping = True

    def _answered(self, payload: bytes) -> None:
        self.latencies_s.append(time.perf_counter() - self._sent_at)
        if not is_result(payload):
            self.errors += 1
        if not self._is_stopping:
            self.begin()


async def measure(stage: Stage) -> list[Figure]:
    extent = stage.extent
    async with stage.mesh("mcp-server", "worker") as mesh:
        crowd = await mesh.connect(extent.connections)
        callers = [Caller(connection) for connection in crowd[:ACTIVE]]
        for caller in callers:
            caller.begin()
        await asyncio.sleep(extent.warm_up_s)
        latencies_s, rate, costs = await _round(mesh, callers, extent.measured_s)
        for caller in callers:
            caller.is_keyed = True
        _, keyed_rate, keyed_costs = await _round(mesh, callers, extent.measured_s / 2)
        for caller in callers:
            caller.stop()
        await asyncio.sleep(0.5)
        errors = sum(caller.errors for caller in callers) + sum(connection.is_closed for connection in crowd)
        for connection in crowd:
            connection.close()
    limit = await creating_limit(stage, batch=Settings.gather_batch_max)
    p50_ms, p95_ms = (percentile(latencies_s, share) * 1000 for share in (0.5, 0.95))
    name = f"task.create, {ACTIVE} active of {extent.connections:,} connections"
    return [
        Figure(name=name, value=rate, unit="/s", at_least=7_000, limit=limit, note=costs),
        Figure(name="… p50", value=p50_ms, unit="ms"),
        Figure(name="… p95", value=p95_ms, unit="ms", at_most=100),
        Figure(name="… errors", value=errors, unit="", at_most=0),
        Figure(name="… with an idempotency key each", value=keyed_rate, unit="/s", note=keyed_costs),
    ]


async def _round(mesh: Running, callers: list[Caller], duration_s: float) -> tuple[list[float], float, str]:
    """What the callers see in a while: how long each call took, calls a second, and what one costs."""
    for caller in callers:
        caller.latencies_s.clear()
    before, began = mesh.costs(), time.perf_counter()
    await asyncio.sleep(duration_s)
    latencies_s = [latency_s for caller in callers for latency_s in caller.latencies_s]
    elapsed_s = time.perf_counter() - began
    return latencies_s, len(latencies_s) / elapsed_s, mesh.costs().each(before, len(latencies_s))
