"""What becomes of those who are served when twice as much is asked for as can be done.

An open loop: requests are sent at their appointed times whether or not the ones before have been answered, and a latency counts
from the appointed time, so that a server that does not read is not measured as a quick one. The generator is this process; it
shares the machine's processors with the services and PostgreSQL.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence

import msgspec

from bench.creating import TASK, Caller
from bench.figures import Figure, percentile
from bench.stage import Stage
from bench.wire import Connection, frame

CONNECTIONS = 200
CLOSED_LOOP_CALLERS = 200
TICK_S = 0.001  # between looks for what is due; requests of one tick go out together
ROUNDS = 3  # of half and of twice the capacity; medians count
FIRST_ID = 10_000_000  # ids of equal length make frames of equal length
SETTLE_S = 4.0  # until an overload has been noticed, and what was let in before that is done


class Seen(msgspec.Struct):
    """What a generator has seen of one round."""

    offered: int
    elapsed_s: float
    latencies_s: list[float]
    refused: int
    failed: int
    lost: int  # without an answer

    @property
    def goodput(self) -> float:
        return len(self.latencies_s) / self.elapsed_s

    @property
    def refused_share(self) -> float:
        return self.refused / max(self.offered, 1)

    def ms(self, share: float) -> float:
        return percentile(self.latencies_s, share) * 1000


class Generator:
    """Sends creates at a fixed pace over many connections, turn by turn."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections
        whole = {"jsonrpc": "2.0", "id": FIRST_ID, "method": "task.create", "params": TASK}
        head, _, self._tail = frame(msgspec.json.encode(whole)).partition(b"%d" % FIRST_ID)
        self._head = head
        self._sent_ids = itertools.count(FIRST_ID)
        self._first, self._began, self._pace = 0, 0.0, 1.0
        self._counted_from = 0.0
        self._answered = 0
        self._seen = Seen(0, 0.0, [], 0, 0, 0)
        for connection in connections:
            connection.receiver = self._receive

    async def run(self, pace: float, settle_s: float, duration_s: float) -> Seen:
        """What is seen of the requests that were due after the first `settle_s`."""
        self._first = next(self._sent_ids)
        self._pace, self._began = pace, time.perf_counter()
        self._counted_from = self._began + settle_s
        self._seen = Seen(0, duration_s, [], 0, 0, 0)
        self._answered = 0
        total = int(pace * (settle_s + duration_s))
        turn = itertools.cycle(self._connections)
        sent = 0
        while sent < total:
            due = min(int((time.perf_counter() - self._began) * pace), total)
            for _ in range(due - sent):
                next(turn).send(self._head + b"%d" % next(self._sent_ids) + self._tail)
            sent = max(sent, due)
            await asyncio.sleep(TICK_S)
        seen = self._seen
        seen.offered = int(pace * duration_s)
        give_up_at = time.perf_counter() + 5.0
        while self._answered < total and time.perf_counter() < give_up_at:
            await asyncio.sleep(0.05)
        seen.lost = total - self._answered
        return seen

    def _receive(self, payload: bytes) -> None:
        now = time.perf_counter()
        start = payload.find(b'"id":') + 5
        if start < 5:
            return  # events
        due_at = self._began + (int(payload[start : start + 8]) - self._first - 1) / self._pace
        self._answered += 1
        if due_at < self._counted_from:
            return
        if payload.startswith(b',"result":', start + 8):
            self._seen.latencies_s.append(now - due_at)
        elif b'"kind":"unavailable"' in payload or b'"kind":"rate_limited"' in payload:
            self._seen.refused += 1
        else:
            self._seen.failed += 1


async def measure(stage: Stage) -> list[Figure]:
    async with stage.mesh("mcp-server", "worker") as mesh:
        connections = await mesh.connect(CONNECTIONS)
        capacity = await _capacity(connections, stage.extent.measured_s / 2)
        generator = Generator(connections)
        half, twice = [], []
        costs = ""
        for _ in range(ROUNDS):
            half.append(await generator.run(capacity / 2, SETTLE_S, stage.extent.measured_s / 2))
            before = mesh.costs()
            twice.append(await generator.run(capacity * 2, SETTLE_S, stage.extent.measured_s / 2))
            costs = mesh.costs().each(before, int(capacity * 2 * (SETTLE_S + stage.extent.measured_s / 2)))
        for connection in connections:
            connection.close()
    return _figures(capacity, half, twice, costs)


async def _capacity(connections: Sequence[Connection], duration_s: float) -> float:
    """Creates a second that callers get who each wait for one answer before they ask again."""
    callers = [Caller(connection) for connection in connections[:CLOSED_LOOP_CALLERS]]
    for caller in callers:
        caller.begin()
    await asyncio.sleep(1.0)
    for caller in callers:
        caller.latencies_s.clear()
    began = time.perf_counter()
    await asyncio.sleep(duration_s)
    count = sum(len(caller.latencies_s) for caller in callers)
    elapsed_s = time.perf_counter() - began
    for caller in callers:
        caller.stop()
    await asyncio.sleep(0.5)
    return count / elapsed_s


def _figures(capacity: float, half: Sequence[Seen], twice: Sequence[Seen], costs: str) -> list[Figure]:
    def median(rounds: Sequence[Seen], share: float) -> float:
        return statistics.median(seen.ms(share) for seen in rounds)

    ratios = [loaded.ms(0.95) / max(calm.ms(0.95), 1e-9) for calm, loaded in zip(half, twice, strict=True)]
    shared = "generator, services and PostgreSQL share the processors"
    return [
        Figure(name=f"capacity, {CLOSED_LOOP_CALLERS} callers", value=capacity, unit="/s", note=shared),
        Figure(name="half of it: p50", value=median(half, 0.5), unit="ms"),
        Figure(name="half of it: p95", value=median(half, 0.95), unit="ms"),
        Figure(
            name="half of it: refused", value=100 * statistics.median(seen.refused_share for seen in half), unit="%"
        ),
        Figure(name="twice: p50 of the admitted", value=median(twice, 0.5), unit="ms"),
        Figure(name="twice: p95 of the admitted", value=median(twice, 0.95), unit="ms"),
        Figure(name="twice: refused", value=100 * statistics.median(seen.refused_share for seen in twice), unit="%"),
        Figure(name="twice: goodput", value=statistics.median(seen.goodput for seen in twice), unit="/s", note=costs),
        Figure(
            name="p95 at twice / p95 at half",
            value=statistics.median(ratios),
            unit="x",
            at_most=2,
            note="rounds: " + ", ".join(f"{ratio:.2f}" for ratio in ratios),
        ),
        Figure(
            name="failed or lost", value=sum(seen.failed + seen.lost for seen in [*half, *twice]), unit="", at_most=0
        ),
    ]
