"""Migrations from the shell, for containers that migrate before anything serves and for people who want to see."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from devmesh.cli.console import Exit, Failure, print_json, print_table, say
from devmesh.cli.loading import require_dsn, service_settings
from devmesh.cli.services import DataDir

if TYPE_CHECKING:
    from devmesh.store.migration_states import MigrationStatus
    from devmesh.store.migrator import Migrator

T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

migrate = typer.Typer(no_args_is_help=False, invoke_without_command=True, rich_markup_mode="rich")


@migrate.callback()
def migrate_up_unless_told(context: typer.Context) -> None:
    """Migrate the database and exit.

    Without a command: up. Exit codes: 0 done, 1 a migration failed or is dirty, 2 usage, 3 no database.
    """
    if context.invoked_subcommand is None:
        up()


@migrate.command()
def up(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Apply what is pending."""
    applied = [migration.label for migration in _run(_migrator(data_dir).up())]
    _report("applied", applied, as_json)


@migrate.command()
def down(
    steps: Annotated[int, typer.Argument(min=1, help="How many migrations to take back.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Take back the last STEPS migrations, the newest first. What they made is gone with its data."""
    taken_back = [migration.label for migration in _run(_migrator(data_dir).down(steps))]
    _report("taken back", taken_back, as_json)


@migrate.command()
def status(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show every migration and its state. Exit code 1 when one is dirty, edited or unknown."""
    from devmesh import __version__
    from devmesh.store.migration_states import problems

    statuses = _run(_migrator(data_dir).status())
    if as_json:
        print_json([_as_json(status) for status in statuses])
    else:
        rows = [_as_row(status) for status in statuses]
        print_table(("version", "name", "state", "applied at", "took", "by devmesh"), rows)
    if found := problems(statuses, __version__):
        raise Failure("; ".join(found))


def _migrator(data_dir: Path | None) -> Migrator:
    from devmesh import telemetry
    from devmesh.store.migrator import Migrator

    settings = service_settings(data_dir)
    telemetry.configure_logs("migrate", settings.log_level)
    return Migrator(require_dsn(settings))


def _run(work: Coroutine[Any, Any, T]) -> T:
    from devmesh.store.connections import DatabaseUnreachable
    from devmesh.store.migration_files import MigrationError

    try:
        return asyncio.run(work)
    except MigrationError as error:
        raise Failure(str(error)) from error
    except DatabaseUnreachable as error:
        raise Failure(str(error), Exit.UNREACHABLE, "DATABASE_DSN says where it is; is it running?") from error


def _report(verb: str, labels: list[str], as_json: bool) -> None:
    if as_json:
        print_json({verb.replace(" ", "_"): labels})
    else:
        for label in labels:
            say(f"{verb} {label}")
        if not labels:
            say(f"nothing to be {verb}")


def _as_row(status: MigrationStatus) -> tuple[str, ...]:
    record = status.record
    if record is None:
        return (f"{status.version:06d}", status.name, status.state, "", "", "")
    took = "" if record.duration_ms is None else f"{record.duration_ms:.0f} ms"
    at = f"{record.finished_at or record.started_at:%Y-%m-%d %H:%M:%S}Z"
    return (f"{status.version:06d}", status.name, status.state, at, took, record.program_version)


def _as_json(status: MigrationStatus) -> dict[str, Any]:
    record = status.record
    return {
        "version": status.version,
        "name": status.name,
        "state": status.state,
        "started_at": record.started_at.isoformat() if record else None,
        "finished_at": record.finished_at.isoformat() if record and record.finished_at else None,
        "duration_ms": record.duration_ms if record else None,
        "program_version": record.program_version if record else None,
        "error": record.error if record else None,
    }
