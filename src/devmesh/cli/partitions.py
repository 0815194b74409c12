"""Partitions from the shell, straight on the database: for people who look, and for when no worker runs."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from devmesh.cli.console import Exit, Failure, note, print_json, print_table, say
from devmesh.cli.loading import require_dsn, service_settings
from devmesh.cli.services import DataDir

if TYPE_CHECKING:
    from devmesh.settings import Settings
    from devmesh.store.database import Database
    from devmesh.store.partitions import Partition, TableReport

T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TURN_WAIT_S, TURN_POLL_INTERVAL_S = 30.0, 0.5  # for another keeper to come to its end

partitions = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="See, make, drain and drop the monthly partitions of tables that grow. A worker does all of it by itself.",
)


@partitions.command()
def status(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Show the partitions of each table. Exit code 1 when some are missing, or rows lie outside of all months."""
    from devmesh.store.partitions import judge, report

    settings = service_settings(data_dir)
    reports = _run(settings, lambda database: report(database))
    if as_json:
        print_json([_as_json(found) for found in reports])
    else:
        columns = ("table", "status", "partitions", "oldest", "newest", "months ahead", "rows in default", "size")
        print_table(columns, [_as_row(found) for found in reports])
    if (verdict := judge(reports)).status != "healthy":
        raise Failure(verdict.message)


@partitions.command()
def ensure(
    months: Annotated[
        int | None,
        typer.Argument(min=0, max=120, help="How many months ahead.", show_default="the setting, 12 unless set"),
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Make the partitions that are missing, for this month and MONTHS ahead. Nobody who works is held up."""
    from devmesh.store import partitions as store

    settings = service_settings(data_dir)
    wanted = settings.partition_months_ahead if months is None else months
    made = _run(settings, lambda database: _in_turn(database, lambda: store.ensure(database, wanted)))
    if as_json:
        print_json({"made": made})
        return
    for name in made:
        say(f"made {name}")
    if not made:
        say("nothing is missing")


@partitions.command("drain-default")
def drain_default(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Move rows that fell outside of all months into partitions of their own. No reader misses one meanwhile."""
    from devmesh.store import partitions as store

    async def drain_all(database: Database) -> tuple[dict[str, int], list[TableReport]]:
        drained = {table: await store.drain(database, table) for table in store.TABLES}
        return drained, await store.report(database)

    settings = service_settings(data_dir)
    drained, reports = _run(settings, lambda database: _in_turn(database, lambda: drain_all(database)))
    if as_json:
        print_json({"drained": drained})
    for table, rows in drained.items() if not as_json else []:
        say(f"{table}: {rows} rows moved")
    if left := [found.table for found in reports if found.rows_in_default]:
        raise Failure(f"rows are left that belong to no month between the years 1 and 9999: {', '.join(left)}")


@partitions.command()
def prune(
    is_rehearsal: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    is_sure: Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Drop the partitions that are older than what is kept. [bold]Their rows are lost for good.[/]

    Kept are this month and as many whole months before it as are set:

    DEVMESH_PARTITION_MONTHS_KEPT, for single tables
    DEVMESH_PARTITION_MONTHS_KEPT_BY_TABLE

    What is lost with a partition of

    [bold]events[/]: the past of every tenant's stream; readers with older cursors
    are told so (recovered: false),
    [bold]audit_log[/]: what administrators did, and what was denied,
    [bold]api_logs[/]: which calls were answered.

    Tasks, agents and keys are not touched. To have a copy, pg_dump the tables
    that --dry-run names first.
    """
    from devmesh.store import partitions as store

    settings = service_settings(data_dir)
    policy = store.Policy.of(settings)

    async def rehearse(database: Database) -> list[tuple[Partition, int]]:
        return [(part, await store.count_rows(database, part)) for part in await store.expired(database, policy)]

    expired = _run(settings, rehearse)
    shown = [{"table": part.table, "partition": part.name, "rows": rows, "bytes": part.bytes} for part, rows in expired]
    if not as_json:
        _show_expired(expired)
    if expired and not is_rehearsal and not is_sure:
        if as_json or not sys.stdin.isatty():
            raise Failure("nothing was dropped: there is nobody to ask", hint="look at --dry-run, then add --yes")
        typer.confirm("Drop them, for good?", abort=True)
    gone: Sequence[Partition] = []
    if expired and not is_rehearsal:
        gone = _run(settings, lambda database: _in_turn(database, lambda: store.prune(database, policy)))
    if as_json:
        print_json({"expired": shown, "dropped": [part.name for part in gone]})
    for part in gone if not as_json else []:
        say(f"dropped {part.name}")


def _show_expired(expired: Sequence[tuple[Partition, int]]) -> None:
    from devmesh.store.partitions import TABLES

    if not expired:
        say("nothing is older than what is kept")
        return
    rows = [(part.table, part.name, f"{rows:,}", _size(part.bytes)) for part, rows in expired]
    print_table(("table", "partition", "rows", "size"), rows)
    for table in dict.fromkeys(part.table for part, _ in expired):
        say(f"lost with {table}: {TABLES[table]}")


async def _in_turn(database: Database, work: Callable[[], Awaitable[T]]) -> T:
    """Does work as the only keeper, after the one that is at it. Raises Failure or MeshError."""
    from devmesh.store.partitions import sole_keeper

    ends_at = time.monotonic() + TURN_WAIT_S
    while time.monotonic() < ends_at:
        async with sole_keeper(database) as is_ours:
            if is_ours:
                return await work()
        await asyncio.sleep(TURN_POLL_INTERVAL_S)
    raise Failure("another keeper has been changing the partitions all the time", hint="try again in a minute")


def _run(settings: Settings, work: Callable[[Database], Awaitable[T]]) -> T:
    """Does work on the database of the settings. Raises Failure."""
    from devmesh import telemetry
    from devmesh.core.errors import Kind, MeshError, explain
    from devmesh.store.database import Database
    from devmesh.store.partitions import SQL

    dsn = require_dsn(settings)
    telemetry.configure_logs("partitions", "error")

    async def run() -> T:
        database = await Database.open(
            dsn, service="devmesh partitions", pool_size_min=1, pool_size_max=1,
            transaction_deadline_s=settings.transaction_deadline_s, search_path=settings.database_search_path,
        )  # fmt: skip
        try:
            if unfit := await database.unfit(SQL):
                note(unfit[0])
                raise Failure("the schema is not complete", hint="devmesh migrate")
            return await work(database)
        finally:
            await database.close()

    try:
        return asyncio.run(run())
    except MeshError as error:
        if error.kind is Kind.UNAVAILABLE:
            raise Failure(error.message, Exit.UNREACHABLE, "DATABASE_DSN says where it is; is it running?") from error
        raise Failure(explain(error)) from error


def _as_row(found: TableReport) -> tuple[str, ...]:
    return (
        found.table, found.status, str(found.partitions), found.oldest or "", found.newest or "", str(found.months_ahead),
        str(found.rows_in_default), _size(found.bytes),
    )  # fmt: skip


def _as_json(found: TableReport) -> dict[str, Any]:
    import msgspec

    return msgspec.structs.asdict(found)


def _size(count: int | None) -> str:
    from rich.filesize import decimal

    return decimal(count or 0)
