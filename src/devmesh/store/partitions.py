"""Growing tables in monthly pieces: made ahead of time, drained from the default one, and dropped whole when they are old.

One keeper at a time changes them, and everybody else goes on working: each change waits only for moments for its locks and is
tried again (see 000003_partitions.up.sql and docs/decisions/0005). Must not know when to do this.
"""

from __future__ import annotations

import asyncio
import datetime
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import structlog

from devmesh import telemetry
from devmesh.core import errors
from devmesh.core.components import Component, State, degraded, healthy, unhealthy
from devmesh.settings import Settings
from devmesh.store import connections
from devmesh.store.database import Database, Record, Transaction
from devmesh.store.faults import translate
from devmesh.store.statements import Statement, load

log = structlog.get_logger(__name__)

SQL = load("partitions")
# Every table that only grows, and what is lost with its old partitions.
TABLES = {
    "events": "the past of every tenant's stream: readers with older cursors are told so (recovered: false)",
    "audit_log": "what administrators did, and what was denied",
    "api_logs": "which calls were answered",
    "jobs": "jobs that are over; a month with a job that is not over is kept",
    "job_executions": "how attempts at jobs ended",
}
MONTHS_AHEAD_WANTED = 3  # fewer are a warning
LOCK_NUMBER = int.from_bytes(b"devmesh partition"[-8:])
BUSY_TRIES_MAX = 12
BUSY_PAUSE_S, BUSY_PAUSE_S_MAX = 0.1, 5.0  # doubled with each try, and jittered
BREATH_S = 0.1  # between two changes of a table: whoever had to wait goes on
DRAINED_MONTHS_MAX = 6  # at once: each makes the moment longer in which everybody waits
DRAINED_BLOCKS = 64  # half a MiB in one transaction
SCAN_LIMIT_S = 600.0  # for what reads or removes a whole partition, while nobody waits
COUNTED_ROWS_MAX = 10_000  # for a report
_random = random.SystemRandom()
Change = Callable[[Transaction], Awaitable[Record | None]]


class Policy(msgspec.Struct, frozen=True):
    """How many months are kept: ahead of this one, and before it."""

    months_ahead: int
    months_kept: int
    months_kept_by_table: dict[str, int] = {}

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        return cls(settings.partition_months_ahead, settings.partition_months_kept, settings.months_kept_by_table)

    def kept(self, table: str) -> int:
        return self.months_kept_by_table.get(table, self.months_kept)


class Partition(msgspec.Struct, frozen=True):
    table: str
    name: str
    is_default: bool
    first_day: datetime.date | None  # None: without a beginning, or the default one
    end_day: datetime.date | None  # the first that is not in it
    default_rows: int | None  # in the default one, counted up to a limit
    bytes: int | None  # None: it went away in this moment, or it was not asked for


class Partitions(msgspec.Struct, frozen=True):
    """One table's, the oldest first, as they were in a moment."""

    table: str
    is_there: bool  # the table
    this_month: datetime.date
    partitions: list[Partition]

    @property
    def default(self) -> Partition | None:
        return next((part for part in self.partitions if part.is_default), None)

    def holds(self, month: datetime.date) -> bool:
        return any(
            (part.first_day or datetime.date.min) <= month < (part.end_day or datetime.date.max)
            for part in self.partitions
            if not part.is_default
        )

    def missing(self, months_ahead: int) -> list[datetime.date]:
        """The months from this one on that have no partition."""
        months = [plus_months(self.this_month, number) for number in range(months_ahead + 1)]
        return [month for month in months if not self.holds(month)]

    def expired(self, months_kept: int) -> list[Partition]:
        oldest_kept = plus_months(self.this_month, -months_kept)
        return [part for part in self.partitions if part.end_day is not None and part.end_day <= oldest_kept]


class TableReport(msgspec.Struct, frozen=True):
    """How the partitions of one table are. Months are written as 2026-11."""

    table: str
    status: State
    message: str  # what is wrong, and what to do
    partitions: int
    oldest: str | None
    newest: str | None
    months_ahead: int  # without a gap
    rows_in_default: int  # counted up to 10,000
    bytes: int | None  # None: they were not asked for


def plus_months(month: datetime.date, number: int) -> datetime.date:
    years, months = divmod(month.year * 12 + month.month - 1 + number, 12)
    return datetime.date(years, months + 1, 1)


# Looking


async def look(database: Database, tables: Iterable[str] = TABLES, *, is_measured: bool = True) -> list[Partitions]:
    """Without measuring nobody is waited for. Raises MeshError."""
    by_table: dict[str, list[Record]] = {}
    for row in await database.read(SQL.list, list(tables), COUNTED_ROWS_MAX, is_measured):
        by_table.setdefault(row["table_name"], []).append(row)
    return [
        Partitions(
            table=table,
            is_there=rows[0]["is_there"],
            this_month=rows[0]["this_month"],
            partitions=[
                Partition(table, *(row[name] for name in Partition.__struct_fields__[1:]))
                for row in rows
                if row["name"] is not None
            ],
        )
        for table, rows in by_table.items()
    ]


async def report(database: Database, *, is_measured: bool = True) -> list[TableReport]:
    """How each table is, and how large if that is asked for. Raises MeshError."""
    reports = [_report(found) for found in await look(database, is_measured=is_measured)]
    return reports if is_measured else [msgspec.structs.replace(found, bytes=None) for found in reports]


def judge(reports: Sequence[TableReport]) -> Component:
    """All tables as one component of health."""
    messages = "; ".join(report.message for report in reports if report.status != "healthy")
    if any(report.status == "unhealthy" for report in reports):
        return unhealthy(messages)
    return degraded(messages) if messages else healthy()


async def count_rows(database: Database, part: Partition) -> int:
    """All of them, however long it takes. Raises MeshError."""
    rows: int = await database.run(lambda tx: tx.fetch_value(SQL.count_rows, part.name), deadline_s=SCAN_LIMIT_S)
    return rows


def _report(found: Partitions) -> TableReport:
    rows_in_default = (found.default.default_rows or 0) if found.default is not None else 0
    months = [part.first_day for part in found.partitions if part.first_day is not None]
    ahead = 0
    while found.holds(found.this_month) and found.holds(plus_months(found.this_month, ahead + 1)):
        ahead += 1
    verdict = _verdict(found, rows_in_default, ahead)
    return TableReport(
        table=found.table,
        status=verdict.status,
        message=verdict.message,
        partitions=len(found.partitions),
        oldest=f"{min(months):%Y-%m}" if months else None,
        newest=f"{max(months):%Y-%m}" if months else None,
        months_ahead=ahead,
        rows_in_default=rows_in_default,
        bytes=sum(part.bytes or 0 for part in found.partitions),
    )


def _verdict(found: Partitions, rows_in_default: int, ahead: int) -> Component:
    table, mend = f"mcp.{found.table}", "a worker does it within a minute, or run `devmesh partitions"
    if not found.is_there:
        return unhealthy(f"{table} is not there; run `devmesh migrate`")
    if not found.holds(found.this_month) and found.default is None:
        return unhealthy(
            f"{table} takes no rows of {found.this_month:%Y-%m}: it has no partition for it; {mend} ensure`"
        )
    problems = []
    if rows_in_default:
        count = f"{rows_in_default}{' or more' if rows_in_default == COUNTED_ROWS_MAX else ''}"
        problems.append(f"rows of {table} outside of all months: {count}; {mend} drain-default`")
    if ahead < MONTHS_AHEAD_WANTED:
        missing = found.missing(MONTHS_AHEAD_WANTED)[0]
        problems.append(f"{table} has partitions for {ahead} months ahead, none for {missing:%Y-%m}; {mend} ensure`")
    if found.default is None:
        problems.append(f"{table} has no default partition for what falls outside of all months; {mend} ensure`")
    return degraded("; ".join(problems)) if problems else healthy()


# Changing


@asynccontextmanager
async def sole_keeper(database: Database) -> AsyncIterator[bool]:
    """Whether we are the only one that keeps partitions while this is open; false when another is at it. Raises MeshError.

    A transaction that does nothing holds the lock, on a connection of its own: it ends with this process, whatever ends it.
    """
    connection = await database.open_dedicated()
    try:
        try:
            await connection.transaction().start()
            is_ours: bool = await connection.fetchval(SQL.try_lock.text, LOCK_NUMBER)
        except connections.DRIVER_ERRORS as error:
            raise translate(error) from error
        yield is_ours
    finally:
        await connections.close_connection(connection)


async def ensure(database: Database, months_ahead: int, tables: Iterable[str] = TABLES) -> list[str]:
    """Makes the partitions that are missing, and answers with their names. For the sole keeper. Raises MeshError.

    What is in a default partition is drained first.
    """
    made = []
    for found in await look(database, tables):
        if found.default is None and await _make(database, found.table, None) == "made":
            made.append(f"{found.table}_default")
        if found.default is not None and found.default.default_rows:
            await drain(database, found.table)  # first, because a full default partition makes the others cost time
        for month in found.missing(months_ahead):
            outcome = await _make(database, found.table, month)
            if outcome == "in default":
                await drain(database, found.table)
                outcome = "made"
            if outcome == "made":
                made.append(f"{found.table}_{month:%Y_%m}")
    return made


async def drain(database: Database, table: str) -> int:
    """Gives the rows in the default partition partitions of their own; answers with how many. For the sole keeper.

    Raises MeshError; what was begun is then thrown away by the next one.
    """
    drained = 0
    while True:
        await _drop_detached(database, table)
        begun = await _until_granted(database, table, _asking(SQL.begin_drain, table, DRAINED_MONTHS_MAX))
        if begun["outcome"] == "empty":
            return drained
        if begun["outcome"] == "again":
            continue
        if begun["outcome"] == "unfit":
            raise _name_is_taken(table, "one of the months to be drained")
        copied = 0
        for first_block in range(0, begun["blocks"], DRAINED_BLOCKS):
            copied += await _copy(database, table, first_block)
        [outcome] = await _until_granted(database, table, _asking(SQL.end_drain, table, begun["drain"]))
        if outcome == "overtaken":
            raise errors.unavailable(f"another keeper drains mcp.{table}")
        log.info("drained a default partition", table=table, rows=copied)
        telemetry.PARTITION_ROWS_DRAINED.labels(table).inc(copied)
        drained += copied


async def expired(database: Database, policy: Policy, tables: Iterable[str] = TABLES) -> list[Partition]:
    """What retention no longer keeps, the oldest first. Raises MeshError."""
    wanted = list(tables)
    found = await look(database, {*wanted, "jobs"} if "job_executions" in wanted else wanted)
    gone = {each.table: each.expired(policy.kept(each.table)) for each in found}
    if gone.get("jobs"):
        [row] = await database.read(SQL.oldest_job_alive)
        gone["jobs"] = [part for part in gone["jobs"] if not _holds(part, row["day"])]
    if gone.get("job_executions"):  # how a job ended stands there, and without it the job would be PENDING again
        jobs = next((each.partitions for each in found if each.table == "jobs"), [])
        dropped = gone["jobs"] if "jobs" in wanted else []
        kept = [part.first_day or datetime.date.min for part in jobs if not part.is_default and part not in dropped]
        oldest = min(kept, default=datetime.date.max)
        gone["job_executions"] = [
            part for part in gone["job_executions"] if (part.end_day or datetime.date.max) <= oldest
        ]
    return [part for table in gone if table in wanted for part in gone[table]]


def _holds(part: Partition, day: datetime.date | None) -> bool:
    """Whether a partition, or a later one, is that of a day."""
    return day is not None and (part.end_day is None or day < part.end_day)


async def prune(database: Database, policy: Policy, tables: Iterable[str] = TABLES) -> list[Partition]:
    """Drops what retention no longer keeps, and answers with it. For the sole keeper. Raises MeshError."""
    wanted, gone = set(tables), []
    for table in filter(wanted.__contains__, TABLES):  # jobs first, then how they ended: by those that are left
        for part in await expired(database, policy, [table]):
            [outcome] = await _until_granted(database, table, _detaching(part))
            if outcome != "done":
                log.info("kept a partition: a job was put back to work", partition=part.name, oldest_job=outcome)
                continue
            await _drop_detached(database, table)
            log.info("dropped a partition", partition=part.name, bytes=part.bytes)
            telemetry.PARTITIONS_DROPPED.labels(table).inc()
            gone.append(part)
    return gone


def _detaching(part: Partition) -> Change:
    """Answers with done or busy; or with the day of a job that has been put back to work since it was looked for."""

    async def detach(tx: Transaction) -> Record | None:
        if part.table == "jobs":
            kept = await tx.fetch_row(SQL.try_keep_over)
            if kept is None or kept["outcome"] == "busy":
                return kept
            oldest = await tx.fetch_row(SQL.oldest_job_alive)
            if oldest is not None and _holds(part, oldest["day"]):
                return oldest
        return await tx.fetch_row(SQL.detach, part.table, part.name)

    return detach


async def _make(database: Database, table: str, month: datetime.date | None) -> str:
    [outcome] = await _until_granted(database, table, _asking(SQL.make, table, month))
    if outcome == "unfit":
        raise _name_is_taken(table, f"{table}_{month:%Y_%m}" if month else f"{table}_default")
    if outcome == "made":
        log.info("made a partition", table=table, month=f"{month:%Y-%m}" if month else "default")
        telemetry.PARTITIONS_MADE.labels(table).inc()
    return str(outcome)


async def _copy(database: Database, table: str, first_block: int) -> int:
    """A piece, and then a rest as long as it took: half of the server's time is for others."""
    began_s = time.monotonic()
    copied: int = await database.run(lambda tx: tx.fetch_value(SQL.copy_drain, table, first_block, DRAINED_BLOCKS))
    await asyncio.sleep(time.monotonic() - began_s)
    return copied


async def _drop_detached(database: Database, table: str) -> None:
    """Nobody reads these any more, so that nobody waits however long it takes."""
    await database.run(lambda tx: tx.fetch(SQL.drop_detached, table), deadline_s=SCAN_LIMIT_S)


def _asking(statement: Statement, *args: Any) -> Change:
    return lambda tx: tx.fetch_row(statement, *args)


async def _until_granted(database: Database, table: str, change: Change) -> Record:
    """The answer of a change of partitions, tried again while others hold its locks. Raises MeshError."""
    for number in range(BUSY_TRIES_MAX):
        began = time.perf_counter()
        row = await database.run(change, deadline_s=SCAN_LIMIT_S)
        telemetry.PARTITION_CHANGE_SECONDS.observe(time.perf_counter() - began)
        assert row is not None
        if row[0] != "busy":
            await asyncio.sleep(BREATH_S)
            return row
        telemetry.PARTITION_CHANGES_PUT_OFF.labels(table).inc()
        await asyncio.sleep(min(BUSY_PAUSE_S * 2**number, BUSY_PAUSE_S_MAX) * _random.uniform(0.5, 1))
    message = (
        f"the partitions of mcp.{table} cannot be changed: a long transaction has been using it; it is tried again"
    )
    raise errors.MeshError(errors.Kind.TIMEOUT, message)


def _name_is_taken(table: str, name: str) -> errors.MeshError:
    return errors.conflict(
        "partition.name", f"{name} is a table that does not fit as a partition of mcp.{table}: rename it or drop it"
    )
