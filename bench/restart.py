"""What callers see of a PostgreSQL that is restarted under load: how long the dip is, and that nothing is lost in it.

An open loop of durable creates, each with an idempotency key of its own, at a steady rate over many connections. What is
refused is asked again under the same key, as the client does. The restart is `immediate`: PostgreSQL has to recover.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence

import asyncpg
import msgspec

from bench.figures import Figure
from bench.stage import Stage
from bench.wire import Connection, frame
from devmesh.client.session import Backoff

RATE_PER_S = 2_000
CONNECTIONS = 50
TICK_S = 0.002
WINDOW_S = 0.25
BEFORE_S = 1.0  # without the full rate before the restart, its coming back says nothing
FULL_SHARE = 0.95
SETTLED_WINDOWS = 4  # at the full rate, one after another, before it counts as being back
LEFT_OVER_LIMIT_S = 15.0


class _Data(msgspec.Struct):
    retry_after_ms: float = 0.0


class _Error(msgspec.Struct):
    data: _Data


class _Reply(msgspec.Struct):
    id: int | None = None
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Reply).decode


class Load:
    """Sends creates at their time, asks again for what was refused, and notes when each was acknowledged."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._turn = itertools.cycle(connections)
        self.sent = 0
        self.acknowledged_at: dict[int, float] = {}
        self.refusals = 0
        self._backoffs: dict[int, Backoff] = {}
        self.is_over = False
        for connection in connections:
            connection.receiver = self._receive

    async def run(self) -> None:
        """Until it is told that it is over."""
        began = time.perf_counter()
        while not self.is_over:
            while self.sent < (time.perf_counter() - began) * RATE_PER_S:
                self.sent += 1
                self._send(self.sent)
            await asyncio.sleep(TICK_S)

    def window(self, begin: float) -> float:
        """What was acknowledged in a window of time, a second."""
        return sum(begin <= at < begin + WINDOW_S for at in self.acknowledged_at.values()) / WINDOW_S

    def _send(self, number: int) -> None:
        params = {"title": "measure", "assign": "pull", "idempotency_key": f"restart-{number}"}
        request = {"jsonrpc": "2.0", "id": number, "method": "task.create", "params": params}
        connection = next(self._turn)
        if not connection.is_closed:
            connection.send(frame(msgspec.json.encode(request)))

    def _receive(self, payload: bytes) -> None:
        reply = _decode(payload)
        if reply.id is None:
            return
        if reply.error is not None:
            self.refusals += 1
            backoff = self._backoffs.setdefault(reply.id, Backoff())
            pause_s = max(backoff.next_s(), reply.error.data.retry_after_ms / 1000)
            asyncio.get_running_loop().call_later(pause_s, self._send, reply.id)
        else:
            self.acknowledged_at.setdefault(reply.id, time.perf_counter())


async def measure(stage: Stage) -> list[Figure]:
    extent = stage.extent
    async with stage.mesh("mcp-server") as mesh:
        load = Load(await mesh.connect(CONNECTIONS))
        running = asyncio.create_task(load.run())
        await asyncio.sleep(extent.warm_up_s)
        went_at = time.perf_counter()
        before = sum(went_at - BEFORE_S <= at for at in load.acknowledged_at.values()) / BEFORE_S
        await asyncio.to_thread(stage.server.stop, "immediate")
        await asyncio.to_thread(stage.server.start)
        up_at = time.perf_counter()
        await asyncio.sleep(extent.measured_s)
        load.is_over = True
        await running
        asked = time.perf_counter()
        while len(load.acknowledged_at) < load.sent and time.perf_counter() < asked + LEFT_OVER_LIMIT_S:
            await asyncio.sleep(TICK_S)
        lost, twice = await _held_against(mesh.dsn, set(load.acknowledged_at))
    name = f"back to {RATE_PER_S:,} task.create/s after PostgreSQL is up"
    back_s = _back_at(load, up_at, asked) - up_at
    silent_s = _longest_silence(load, went_at, asked)
    note = f"PostgreSQL was away for {up_at - went_at:.2f} s; {load.refusals:,} refusals, all asked again"
    return [
        Figure(name=name, value=back_s, unit="s", at_most=5, note=note),
        Figure(name="… rate before it", value=before, unit="/s", at_least=FULL_SHARE * RATE_PER_S),
        Figure(name="… longest time without an acknowledgement", value=silent_s, unit="s"),
        Figure(name="… acknowledged and lost", value=lost, unit="", at_most=0, note="held against the database by their keys"),
        Figure(name="… done twice", value=twice, unit="", at_most=0),
        Figure(name="… never acknowledged", value=load.sent - len(load.acknowledged_at), unit="", at_most=0),
    ]  # fmt: skip


def _back_at(load: Load, up_at: float, until: float) -> float:
    """The end of the first window at the full rate that is followed by others."""
    is_full: list[bool] = []
    begin = up_at
    while begin + WINDOW_S <= until:
        is_full.append(load.window(begin) >= FULL_SHARE * RATE_PER_S)
        if is_full[-SETTLED_WINDOWS:] == [True] * SETTLED_WINDOWS:
            return begin - (SETTLED_WINDOWS - 2) * WINDOW_S
        begin += WINDOW_S
    return until


def _longest_silence(load: Load, begin: float, end: float) -> float:
    times = sorted(at for at in load.acknowledged_at.values() if begin <= at <= end)
    return max(later - earlier for earlier, later in itertools.pairwise([begin, *times, end]))


async def _held_against(dsn: str, acknowledged: set[int]) -> tuple[int, int]:
    """How many acknowledged calls have left no task, and how many tasks there are beyond one for each key, at one moment."""
    connection = await asyncpg.connect(dsn)
    try:
        row = await connection.fetchrow(
            "with kept as (select substr(k.idempotency_key, 9)::integer as number from mcp.idempotency_keys k"
            " join mcp.tasks t on t.tenant_id = k.tenant_id and t.task_id = (k.answer -> 'task' ->> 'id')::uuid"
            " where k.idempotency_key like 'restart-%')"
            " select array(select number from kept) as numbers, (select count(*) from mcp.tasks) as tasks"
        )
    finally:
        await connection.close()
    assert row is not None
    return len(acknowledged - set(row["numbers"])), row["tasks"] - len(row["numbers"])
