"""From commit to subscriber: how long it takes at a steady rate, and how much one gateway delivers to many."""

from __future__ import annotations

import asyncio
import datetime
import time

import msgspec

from bench.figures import Figure, percentile
from bench.pgbench import committing_times, reading_limit
from bench.stage import Stage
from bench.wire import Connection, request

RATE_PER_S = 1_000
TICK_S = 0.002
WATCHERS = 10
SUBSCRIBERS = 1_000
OPEN_CALLS = 50
CREATE = request("task.create", {"title": "measure", "assign": "pull"})


class _Event(msgspec.Struct):
    at: datetime.datetime


class _Params(msgspec.Struct):
    events: list[_Event]


class _Message(msgspec.Struct):
    params: _Params | None = None


_decode = msgspec.json.Decoder(_Message).decode


class Watcher:
    """Notes how old each event is when it comes. An event's time is taken just before its commit."""

    def __init__(self, connection: Connection) -> None:
        self.ages_s: list[float] = []
        connection.receiver = self._received

    def _received(self, payload: bytes) -> None:
        now = time.time()
        params = _decode(payload).params
        self.ages_s += [now - event.at.timestamp() for event in params.events] if params is not None else []


async def measure(stage: Stage) -> list[Figure]:
    return [*await _latency(stage), *await _throughput(stage)]


async def _latency(stage: Stage) -> list[Figure]:
    extent = stage.extent
    async with stage.mesh("mcp-server") as mesh:
        watching = await mesh.connect(WATCHERS)
        for connection in watching:
            await connection.call("subscribe", topics=["tenant"])
        watchers = [Watcher(connection) for connection in watching]
        publishers = await mesh.connect(20)
        await _publish(publishers, extent.warm_up_s)
        for watcher in watchers:
            watcher.ages_s.clear()
        before = mesh.costs()
        rate = await _publish(publishers, extent.measured_s)
        await asyncio.sleep(0.5)
        ages_s = [age_s for watcher in watchers for age_s in watcher.ages_s]
        costs = mesh.costs().each(before, len(ages_s) // WATCHERS)
    limits_s = await committing_times(stage, RATE_PER_S)
    name = f"commit to delivery at {rate:,.0f} events/s, {WATCHERS} subscribers"
    (p50, p50_limit), (p99, p99_limit) = (
        (percentile(ages_s, share) * 1000, percentile(limits_s, share) * 1000) for share in (0.5, 0.99)
    )
    return [
        Figure(name=f"{name}, p50", value=p50, unit="ms", at_most=10, limit=p50_limit, note=costs),
        Figure(name="… p99", value=p99, unit="ms", at_most=50, limit=p99_limit, note="pgbench: to commit, no delivery"),
    ]


async def _publish(publishers: list[Connection], duration_s: float) -> float:
    """Creates tasks at a steady rate, waiting for nothing. Answers with the rate that came of it."""
    began = time.perf_counter()
    sent = 0
    while (elapsed_s := time.perf_counter() - began) < duration_s:
        while sent < elapsed_s * RATE_PER_S:
            publishers[sent % len(publishers)].send(CREATE)
            sent += 1
        await asyncio.sleep(TICK_S)
    return sent / duration_s


async def _throughput(stage: Stage) -> list[Figure]:
    extent = stage.extent
    delivered = 0

    def count(payload: bytes) -> None:
        nonlocal delivered
        delivered += payload.count(b'"topic":')

    is_stopping = False
    async with stage.mesh("mcp-server") as mesh:
        subscribers = await mesh.connect(SUBSCRIBERS)
        for connection in subscribers:
            await connection.call("subscribe", topics=["tenant"])
            connection.receiver = count
        [publisher] = await mesh.connect(1)

        def answered(_: bytes) -> None:
            if not is_stopping:
                publisher.send(CREATE)

        publisher.receiver = answered
        for _ in range(OPEN_CALLS):
            publisher.send(CREATE)
        await asyncio.sleep(extent.warm_up_s)
        before, began, delivered = mesh.costs(), time.perf_counter(), 0
        await asyncio.sleep(extent.measured_s)
        rate = delivered / (time.perf_counter() - began)
        costs = mesh.costs().each(before, delivered)
        is_stopping = True
        dropped = sum(connection.is_closed for connection in subscribers)
    limit = await reading_limit(stage, page=1_000)
    name = f"deliveries to {SUBSCRIBERS:,} subscribers of one topic"
    note = f"pgbench: one reader of the log; {costs}"
    return [
        Figure(name=name, value=rate, unit="/s", at_least=50_000, limit=limit, note=note),
        Figure(name="… subscribers that were too slow", value=dropped, unit="", at_most=0),
    ]
