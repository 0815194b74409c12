"""Schedules from the shell: jobs that are enqueued again and again."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from devmesh.cli.calling import AsJson, invoke
from devmesh.cli.console import Exit, Failure, say
from devmesh.cli.listing import Cursor, Limit, print_page, print_thing
from devmesh.cli.services import DataDir
from devmesh.core.schedules import Missed

COLUMNS = (
    "name",
    "cron",
    "interval_s",
    "time_zone",
    "next_fire_at",
    "last_fired_at",
    "fired_count",
    "missed_count",
    "paused_at",
)
FIELDS = ("id", *COLUMNS, "missed", "job", "last_job_id", "starts_at", "ends_at", "created_at")

Which = Annotated[str, typer.Argument(help="The schedule's name or id.", show_default=False)]
schedules = typer.Typer(help="Enqueue jobs again and again.", no_args_is_help=True)


@schedules.command("list")
def list_schedules(limit: Limit = 50, cursor: Cursor = None, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """List schedules, newest first."""
    asked = {"limit": limit, "cursor": cursor}
    print_page(invoke("schedule.list", asked, data_dir), "schedules", COLUMNS, as_json)


@schedules.command("add")
def add(
    name: Annotated[str, typer.Argument(help="What it is called.", show_default=False)],
    type_: Annotated[str, typer.Option("--type", help="The type of its jobs.", show_default=False)],
    cron: Annotated[str | None, typer.Option(help="A cron expression.", show_default=False)] = None,
    interval_s: Annotated[float | None, typer.Option(help="Or every so many seconds.", show_default=False)] = None,
    time_zone: Annotated[str, typer.Option(help="In which the expression is read.")] = "UTC",
    queue: Annotated[str, typer.Option(help="The queue of its jobs.")] = "default",
    payload: Annotated[str, typer.Option(help="Their payload, as JSON.")] = "{}",
    missed: Annotated[Missed, typer.Option(help="What becomes of times at which nobody was there.")] = Missed.ONCE,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Add a schedule.

    [bold]Example[/]

    devmesh schedules add nightly --type report --cron "0 2 * * *" --time-zone Europe/Berlin
    """
    try:
        body = json.loads(payload)
    except (ValueError, RecursionError) as problem:
        raise typer.BadParameter(f"the payload is no JSON: {problem}") from None
    asked = {
        "name": name, "cron": cron, "interval_s": interval_s, "time_zone": time_zone, "missed": missed,
        "job": {"type": type_, "queue": queue, "payload": body},
    }  # fmt: skip
    print_thing(invoke("schedule.create", asked, data_dir), "schedule", FIELDS, as_json)


@schedules.command("show")
def show(which: Which, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Show a schedule and its next times."""
    answer = invoke("schedule.get", {"schedule_id": _id_of(which, data_dir)}, data_dir)
    print_thing(answer, "schedule", FIELDS, as_json)
    if not as_json:
        say(f"{_what_is_next(answer['schedule'])}: " + (", ".join(answer["upcoming"]) or "never"))


@schedules.command("pause")
def pause(which: Which, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Have a schedule fire no more until it is resumed."""
    _act("pause", which, as_json, data_dir)


@schedules.command("resume")
def resume(which: Which, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Have a schedule fire again. The times of the pause do not count as missed."""
    _act("resume", which, as_json, data_dir)


@schedules.command("trigger")
def trigger(which: Which, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Enqueue the job of a schedule now."""
    answer = _act("trigger", which, as_json, data_dir)
    if not as_json:
        say(f"job {answer['job_id']}")


@schedules.command("delete")
def delete(which: Which, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """End a schedule for good. The jobs that it has enqueued stay."""
    _act("delete", which, as_json, data_dir)


def _what_is_next(schedule: dict[str, Any]) -> str:
    return "next" if schedule["paused_at"] is None else "paused; if it were resumed now"


def _act(verb: str, which: str, as_json: bool, data_dir: Path | None) -> dict[str, Any]:
    answer = invoke(f"schedule.{verb}", {"schedule_id": _id_of(which, data_dir)}, data_dir)
    print_thing(answer, "schedule", FIELDS, as_json)
    return answer


def _id_of(which: str, data_dir: Path | None) -> str:
    """An id is taken for one, anything else for a name."""
    try:
        return str(uuid.UUID(which))
    except ValueError:
        found = invoke("schedule.list", {"name": which}, data_dir)["schedules"]
    if not found:
        hint = "`devmesh schedules list` shows those that there are"
        raise Failure(f"not_found: there is no schedule {which!r}", Exit.FAILED, hint)
    return str(found[0]["id"])
