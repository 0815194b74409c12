"""Snapshots from the shell: what is under way is written down, looked at, and put back."""

from __future__ import annotations

from typing import Annotated

import typer

from devmesh.cli.calling import AsJson, invoke
from devmesh.cli.console import Exit, Failure, print_json, say
from devmesh.cli.listing import Cursor, Limit, print_page, print_thing
from devmesh.cli.services import DataDir
from devmesh.core.snapshots import OnConflict, SnapshotKind

COLUMNS = ("id", "kind", "taken_at", "counts", "base_id", "reason")
JOB_COLUMNS = ("id", "status", "queue", "attempt", "worker_id")
CONFLICT_COLUMNS = ("kind", "noun", "id", "resolution", "snapshot_value", "current_value")

SnapshotId = Annotated[str, typer.Argument(help="The snapshot's id.", show_default=False)]
snapshots = typer.Typer(help="Write down what is under way, and put it back.", no_args_is_help=True)


@snapshots.command("list")
def list_snapshots(
    kind: Annotated[SnapshotKind | None, typer.Option(help="Only of this kind.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List snapshots, the latest first."""
    asked = {"kind": kind, "limit": limit, "cursor": cursor}
    print_page(invoke("snapshot.list", asked, data_dir), "snapshots", COLUMNS, as_json)


@snapshots.command("create")
def create(
    kind: Annotated[SnapshotKind, typer.Option(help="FULL, or INCREMENTAL: what has changed.")] = SnapshotKind.FULL,
    base: Annotated[
        str | None, typer.Option(help="What an INCREMENTAL one stands on; the latest.", show_default=False)
    ] = None,
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Write down what is under way."""
    asked = {"kind": kind, "base_id": base, "reason": reason}
    print_thing(invoke("snapshot.create", asked, data_dir), "snapshot", COLUMNS, as_json)


@snapshots.command("show")
def show(
    snapshot_id: SnapshotId, limit: Limit = 50, cursor: Cursor = None, as_json: AsJson = False, data_dir: DataDir = None
) -> None:
    """Show a snapshot and the jobs in it."""
    answer = invoke("snapshot.get", {"snapshot_id": snapshot_id}, data_dir)
    found = invoke("snapshot.jobs", {"snapshot_id": snapshot_id, "limit": limit, "cursor": cursor}, data_dir)
    if as_json:
        print_json({**answer, **found})
        return
    print_thing(answer, "snapshot", COLUMNS, as_json)
    if found["jobs"]:
        print_page(found, "jobs", JOB_COLUMNS, as_json)


@snapshots.command("restore")
def restore(
    snapshot_id: Annotated[str | None, typer.Argument(help="The snapshot's id.", show_default=False)] = None,
    at: Annotated[
        str | None, typer.Option(help="Or the latest that was taken by this time.", show_default=False)
    ] = None,
    on_conflict: Annotated[
        OnConflict, typer.Option(help="What becomes of what is otherwise now.")
    ] = OnConflict.PRESERVE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what is otherwise now, and what would become of it.")
    ] = False,
    cursor: Cursor = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Put back what a snapshot has. What was made since stays."""
    if (snapshot_id is None) == (at is None):
        raise typer.BadParameter("name a snapshot, or give a time with --at")
    if cursor is not None and not dry_run:
        raise typer.BadParameter("--cursor goes on with the report of a --dry-run")
    asked = {"snapshot_id": snapshot_id, "at": at, "on_conflict": on_conflict, "dry_run": dry_run, "cursor": cursor}
    answer = invoke("snapshot.restore", asked, data_dir)
    if as_json:
        print_json(answer)
        return
    counts = ", ".join(f"{count:,} {noun.replace('_', ' ')}" for noun, count in answer["restored"].items() if count)
    done = "nothing was put back yet" if dry_run else f"put back {counts or 'nothing'}"
    say(f"{done} from snapshot {answer['snapshot_id']} of {answer['taken_at']}")
    if dry_run and not answer["conflict_count"]:
        say("nothing is otherwise now")
    if answer["conflicts"]:
        say(f"{answer['conflict_count']:,} things are otherwise now:")
        print_page(answer, "conflicts", CONFLICT_COLUMNS, as_json)


@snapshots.command("delete")
def delete(snapshot_id: SnapshotId, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Forget a snapshot."""
    print_thing(invoke("snapshot.delete", {"snapshot_id": snapshot_id}, data_dir), "snapshot", COLUMNS, as_json)


@snapshots.command("auto")
def auto(
    interval_s: Annotated[
        str | None,
        typer.Argument(
            metavar="SECONDS|off",
            help="Every so many seconds; off: no more. Without it what is set is shown.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[int | None, typer.Option(help="How many are kept.", show_default="24")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Have snapshots taken at an interval, and the latest kept; or show how it is."""
    from devmesh.cli.values import number_or_off

    if keep is not None and interval_s in (None, "off"):
        raise Failure("--keep goes with an interval: devmesh snapshots auto 3600 --keep 48", Exit.USAGE)
    if interval_s is None:
        answer = invoke("snapshot.policy", {}, data_dir)
    else:
        kept = {} if keep is None else {"keep": keep}
        answer = invoke("snapshot.auto", {"interval_s": number_or_off(interval_s), **kept}, data_dir)
    if as_json:
        print_json(answer)
    elif answer["next_at"] is None:
        say("no snapshots are taken by themselves")
    else:
        say(f"every {answer['interval_s']:g} s, {answer['keep']} are kept; the next at {answer['next_at']}")
