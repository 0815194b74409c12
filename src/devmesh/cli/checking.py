"""`devmesh check history`: whether what happened to jobs adds up, straight on the database."""

from __future__ import annotations

import asyncio
import datetime
import re
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from devmesh.cli.calling import AsJson
from devmesh.cli.console import Exit, Failure, print_json
from devmesh.cli.loading import require_dsn, service_settings
from devmesh.cli.services import DataDir

if TYPE_CHECKING:
    from devmesh.settings import Settings
    from devmesh.store.history import Bounds, Tenant, Verdict

NAME_WIDTH = 22
AGES = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

check = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Check that what the database holds adds up, and say what does not.",
)


@check.callback()
def _checks() -> None:
    """So that the one command there is has a name."""


@check.command()
def history(
    tenant: Annotated[
        list[str] | None, typer.Option(help="Only this tenant, by name; repeat it.", show_default="all that are active")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All tenants, suspended ones too.")] = False,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Only jobs made since then: 2026-11-25T12:00:00Z, or an age: 90s, 15m, 2h, 7d.",
            show_default="all that are kept",
        ),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, max=1_000, help="How many to show of what breaks a rule.")] = 5,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Judge what happened to jobs: none lost, none done twice, each attempt accounted for, and told as it was.

    Every rule is held against the whole history, in one snapshot of the database, while everybody works.
    It changes nothing and holds nobody up, but reads everything: a million jobs take about half a minute.

    Exit codes: 0 every rule holds, 4 something breaks one, 3 the database cannot be reached.
    """
    settings = service_settings(data_dir)
    require_dsn(settings)
    if tenant and every:
        raise Failure("--tenant and --all exclude each other", Exit.USAGE)
    judged = _judge(settings, tenant, every, _moment(since), examples, is_printing=not as_json)
    broken = sum(verdict.total > 0 for each in judged for verdict in each["verdicts"])
    if as_json:
        print_json([_as_json(each) for each in judged])
    elif broken:
        from devmesh.store.history import REPORT_IT

        typer.echo(f"\n{broken} rule{'s are' if broken > 1 else ' is'} broken; {REPORT_IT}.")
    else:
        typer.echo("\nEvery rule holds.")
    if broken:
        raise typer.Exit(Exit.BROKEN)


def _judge(
    settings: Settings, names: list[str] | None, every: bool, since: datetime.datetime | None, examples: int, *,
    is_printing: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """Each tenant, what of it was looked at, and the verdicts. Raises Failure."""
    from devmesh import telemetry
    from devmesh.core.errors import Kind, MeshError, explain
    from devmesh.store.connections import DatabaseUnreachable
    from devmesh.store.history import snapshot

    dsn = require_dsn(settings)
    telemetry.configure_logs("check", "critical")

    async def judge() -> list[dict[str, Any]]:
        judged = []
        async with snapshot(dsn, settings.database_search_path) as seen:
            tenants = await seen.tenants(names, with_suspended=every)
            if unknown := set(names or ()) - {found.name for found in tenants}:
                raise Failure(f"there is no tenant {min(unknown)!r}", hint="`devmesh tenants list` names them")
            for found in tenants:
                began, bounds = time.monotonic(), await seen.bounds(found, since)
                if is_printing:
                    _print_tenant(found, bounds)
                verdicts = []
                async for verdict in seen.verdicts(found, bounds, examples):
                    verdicts.append(verdict)
                    if is_printing:
                        _print(verdict)
                took_s = time.monotonic() - began
                judged.append({"tenant": found, "bounds": bounds, "verdicts": verdicts, "took_s": took_s})
        return judged

    try:
        return asyncio.run(judge())
    except DatabaseUnreachable as error:
        raise Failure(str(error), Exit.UNREACHABLE, "DATABASE_DSN says where it is; is it running?") from error
    except MeshError as error:
        code = Exit.UNREACHABLE if error.kind is Kind.UNAVAILABLE else Exit.FAILED
        raise Failure(explain(error), code, "`devmesh doctor` says what is wrong") from error


def _print_tenant(tenant: Tenant, bounds: Bounds) -> None:
    typer.echo(f"\n{tenant.name}: {bounds.jobs:,} jobs since {bounds.since:%Y-%m-%d %H:%M:%S}Z")


def _print(verdict: Verdict) -> None:
    is_broken = verdict.total > 0
    mark = typer.style("BROKEN", fg=typer.colors.RED) if is_broken else typer.style("ok    ", fg=typer.colors.GREEN)
    count = f": {verdict.total:,}" if is_broken else ""
    typer.echo(f"{mark}  {verdict.rule.name.ljust(NAME_WIDTH)} {verdict.rule.sentence}{count}")
    indent = " " * (9 + NAME_WIDTH)
    for example in verdict.examples:
        typer.echo(f"{indent}{example.thing}: {example.found}")
    if verdict.total > len(verdict.examples):
        typer.echo(f"{indent}… and {verdict.total - len(verdict.examples):,} more")
    if is_broken:
        typer.echo(f"{indent}{typer.style('->', dim=True)} {verdict.rule.advice}")


def _as_json(judged: dict[str, Any]) -> dict[str, Any]:
    bounds: Bounds = judged["bounds"]
    verdicts: list[Verdict] = judged["verdicts"]
    return {
        "tenant": judged["tenant"].name, "at": bounds.at.isoformat(), "since": bounds.since.isoformat(),
        "events_since": bounds.events_since.isoformat(), "jobs": bounds.jobs, "took_s": round(judged["took_s"], 3),
        "rules": [
            {
                "rule": verdict.rule.name, "sentence": verdict.rule.sentence, "count": verdict.total,
                "examples": [example._asdict() for example in verdict.examples],
                "advice": verdict.rule.advice if verdict.total else None,
            }
            for verdict in verdicts
        ],
    }  # fmt: skip


def _moment(text: str | None) -> datetime.datetime | None:
    if text is None:
        return None
    now = datetime.datetime.now(datetime.UTC)
    try:
        if found := re.fullmatch(r"(\d{1,9})([smhd])", text):
            return now - datetime.timedelta(**{AGES[found[2]]: int(found[1])})
        moment = datetime.datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        hint = "write it as 2026-11-25T12:00:00Z, or as an age: 90s, 15m, 2h, 7d"
        raise Failure(f"--since {text!r} is not a time", Exit.USAGE, hint) from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)
