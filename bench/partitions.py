"""How long writers wait while partitions are made, drained and dropped under them: the longest of all waits is what counts.

Callers create tasks over the WebSocket all the while. Beside their answers, the server is asked at short intervals who waits
for a table's lock, and since when.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg

from bench.creating import Caller
from bench.figures import Figure
from bench.stage import Running, Stage
from devmesh.store import partitions
from devmesh.store.database import Database
from devmesh.store.partitions import Policy

WRITERS = 50
KEEPER = "bench keeper"
SAMPLE_INTERVAL_S = 0.002
LOCK_WAIT_MS_MAX = 100.0
ROWS = 500_000  # in the default partition
OLD_MONTHS = 6
LONGEST_WAIT = f"""
select coalesce(max(extract(epoch from clock_timestamp() - l.waitstart)) * 1000, 0)::float8
from pg_locks l join pg_stat_activity a using (pid)
where not l.granted and l.locktype = 'relation' and a.application_name <> '{KEEPER}'
"""
FILL = """
insert into mcp.events (tenant_id, sequence, at, type, topics, data)
select '00000000-0000-0000-0000-000000000000', n, {at}, 'task.created', '{{tenant,task:x}}', '{{"task": {{"title": "old"}}}}'
from generate_series({first}, {last}) n
"""


class Watch:
    """The longest waits since it was last asked."""

    def __init__(self, dsn: str, callers: list[Caller]) -> None:
        self._dsn, self._callers = dsn, callers
        self._longest_ms = 0.0
        self._task = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        connection = await asyncpg.connect(self._dsn)
        try:
            while True:
                wait_ms = await connection.fetchval(LONGEST_WAIT)
                self._longest_ms = max(self._longest_ms, wait_ms)
                await asyncio.sleep(SAMPLE_INTERVAL_S)
        finally:
            connection.terminate()

    def begin(self) -> None:
        self._longest_ms = 0.0
        for caller in self._callers:
            caller.latencies_s.clear()

    def figures(self, name: str, note: str = "") -> list[Figure]:
        answered_ms = max((max(caller.latencies_s, default=0.0) for caller in self._callers), default=0.0) * 1000
        wait = Figure(
            name=f"{name}: longest wait for a lock",
            value=self._longest_ms,
            unit="ms",
            at_most=LOCK_WAIT_MS_MAX,
            note=note,
        )
        return [wait, Figure(name="… longest time to an answer", value=answered_ms, unit="ms")]

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def measure(stage: Stage) -> list[Figure]:
    rows = ROWS if stage.extent.hold_s > 10 else ROWS // 10
    async with stage.mesh("mcp-server") as mesh:
        await _execute(
            mesh.dsn, "drop table mcp.events_" + await _this_month(mesh.dsn)
        )  # everybody writes to the default
        callers = [Caller(connection) for connection in await mesh.connect(WRITERS)]
        for caller in callers:
            caller.begin()
        watch = Watch(mesh.dsn, callers)
        database = await Database.open(
            mesh.dsn, service=KEEPER, pool_size_min=1, pool_size_max=2, transaction_deadline_s=60.0
        )
        try:
            figures = await _phases(mesh, database, watch, rows, stage.extent.measured_s)
        finally:
            await watch.stop()
            for caller in callers:
                caller.stop()
            await database.close()
    errors = sum(caller.errors for caller in callers)
    return [*figures, Figure(name="answers that were errors", value=errors, unit="", at_most=0)]


async def _phases(mesh: Running, database: Database, watch: Watch, rows: int, measured_s: float) -> list[Figure]:
    async def phase(name: str, work: Callable[[], Awaitable[object]], note: str = "") -> list[Figure]:
        watch.begin()
        await work()
        await asyncio.sleep(measured_s / 10)  # whoever waited has its answer
        return watch.figures(name, note)

    figures = await phase("nothing changes", lambda: asyncio.sleep(measured_s))
    await _execute(mesh.dsn, FILL.format(at="now()", first=1, last=rows))
    figures += await phase(
        "draining the month that is written to",
        lambda: partitions.drain(database, "events"),
        f"{rows:,} rows and what comes",
    )
    spread = f"now() - interval '8 months' - (n % {OLD_MONTHS}) * interval '1 month'"
    await _execute(mesh.dsn, FILL.format(at=spread, first=rows + 1, last=2 * rows))
    figures += await phase(
        f"draining {OLD_MONTHS} old months", lambda: partitions.drain(database, "events"), f"{rows:,} rows"
    )
    figures += await phase(
        "making 12 partitions", lambda: partitions.ensure(database, 24, ["events"]), "of the busiest table"
    )
    figures += await phase(
        f"dropping {OLD_MONTHS} partitions",
        lambda: partitions.prune(database, Policy(12, 6), ["events"]),
        f"{rows:,} rows",
    )
    return figures


async def _this_month(dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        month: str = await connection.fetchval("select to_char(now() at time zone 'UTC', 'YYYY_MM')")
        return month
    finally:
        await connection.close()


async def _execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
