"""Migrations from the shell, for containers that migrate before anything serves and for people who want to see."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from devmesh.cli.console import Exit, Failure, note, print_json, print_table, say
from devmesh.cli.loading import require_dsn, service_settings
from devmesh.cli.services import DataDir

if TYPE_CHECKING:
    from devmesh.store.migration_states import MigrationStatus
    from devmesh.store.migrator import Migrator, Repair

T = TypeVar("T")
UNDER_WAY = "somebody is migrating at this moment"
MOMENT_S, LOOK_INTERVAL_S = 2.0, 0.1
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

    statuses, is_migrating = _run(_migrator(data_dir).look())
    if is_migrating:
        note(UNDER_WAY)
    if as_json:
        print_json([_as_json(status) for status in statuses])
    else:
        rows = [_as_row(status) for status in statuses]
        print_table(("version", "name", "state", "applied at", "took", "by devmesh"), rows)
    if found := problems(statuses, __version__):
        raise Failure("; ".join(found))


async def _goes_on_migrating(migrator: Migrator) -> bool:
    """Whether somebody is, and not only for the moment in which a service that waits sees whether it can go on."""
    ends_at = time.monotonic() + MOMENT_S
    while (await migrator.look())[1]:
        if time.monotonic() >= ends_at:
            return True
        await asyncio.sleep(LOOK_INTERVAL_S)
    return False


@migrate.command()
def repair(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Take back what a failed migration left, so that it can be applied again. Shows what it will do, then asks."""
    migrator = _migrator(data_dir)
    if _run(_goes_on_migrating(migrator)):
        raise Failure(UNDER_WAY, hint="wait for that; a migration that is under way is dirty until its end")
    plan = _run(migrator.repair_plan())
    if not as_json:
        _show_plan(plan)
    is_told = yes or (bool(plan) and not as_json and sys.stdin.isatty() and typer.confirm("Go on?"))
    done = _run(migrator.repair()) if plan and is_told else []
    if as_json:
        print_json(
            {"planned": [_repair_as_json(step) for step in plan], "repaired": [step.migration.label for step in done]}
        )
    if plan and not is_told:
        raise Failure("nothing was repaired", hint="look at the plan, then add --yes")
    if done and not as_json:
        say("repaired; `devmesh migrate up` applies what is pending")


@migrate.command(hidden=True)
def catalogue(
    write: Annotated[bool, typer.Option("--write", help="Write the file if it is out of date.")] = False,
) -> None:
    """Hold store/catalogue.json against what the migrations make in a database of their own. For developers."""
    from devmesh.store.catalogue import CATALOGUE_FILE

    made = _fresh_catalogue()
    is_stale = not CATALOGUE_FILE.exists() or CATALOGUE_FILE.read_bytes() != made
    if is_stale and write:
        CATALOGUE_FILE.write_bytes(made)
        say(f"written {CATALOGUE_FILE}")
    elif is_stale:
        raise Failure(f"{CATALOGUE_FILE} is not what the migrations make", hint="devmesh migrate catalogue --write")


def _fresh_catalogue() -> bytes:
    from devmesh.store.catalogue import encode
    from devmesh.store.embedded import EmbeddedError, EmbeddedPostgres
    from devmesh.store.inspection import make_catalogue

    with tempfile.TemporaryDirectory(prefix="devmesh-catalogue-") as directory:
        postgres = EmbeddedPostgres(Path(directory))
        try:
            return encode(asyncio.run(make_catalogue(postgres.start())))
        except EmbeddedError as error:
            raise Failure(str(error)) from error
        finally:
            postgres.stop("immediate")


def _show_plan(plan: list[Repair]) -> None:
    """Every step and its statements, before anything is done."""
    from rich.markup import escape

    if not plan:
        say("nothing is to be repaired")
    for step in plan:
        if step.record.error:
            say(escape(f"{step.migration.label} failed: {step.record.error}"))
        say(escape(step.sentence))
        for statement in step.statements:
            lines = [line for line in statement.splitlines() if not line.startswith("--")]
            say(escape(indent("\n".join(lines), "    ") + ";"))


def _repair_as_json(step: Repair) -> dict[str, Any]:
    return {
        "version": step.migration.version,
        "name": step.migration.name,
        "action": step.sentence,
        "statements": step.statements,
        "error": step.record.error,
    }


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
        "works_with": record.works_with if record else None,
        "error": record.error if record else None,
    }
