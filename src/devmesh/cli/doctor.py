"""`devmesh doctor`: what is wrong and what to do about it, on one screen."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from devmesh.cli.calling import AsJson
from devmesh.cli.console import Exit, print_json
from devmesh.cli.services import DataDir
from devmesh.cli.showing import settings as show_settings

if TYPE_CHECKING:
    from devmesh.cli.checks.case import Case
    from devmesh.cli.checks.running import Line

NAME_WIDTH = 18
MARKS = {
    "ok": ("ok", typer.colors.GREEN),
    "note": ("note", typer.colors.CYAN),
    "warning": ("warning", typer.colors.YELLOW),
    "problem": ("PROBLEM", typer.colors.RED),
    "skipped": ("-", None),
}


def doctor(
    as_json: AsJson = False,
    settings: Annotated[
        bool, typer.Option("--settings", help="Show every setting instead, as `devmesh settings`.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Say what is wrong and what to do: settings, ports, services, the database, its schema, keys.

    Changes nothing, and never waits for long. Each line is ok, a note, a warning or a problem, or was skipped because of one.
    Exit codes: 0 all is well or only warned of, 1 there is a problem, 3 the database cannot be reached.
    """
    if settings:
        show_settings(as_json, data_dir)
        return
    from devmesh import telemetry
    from devmesh.cli.checks.case import Case

    telemetry.configure_logs("doctor", "critical")
    with asyncio.Runner() as runner:
        lines = runner.run(_examine(Case.read(data_dir), is_printing=not as_json))
        if as_json:
            print_json([{"check": check, **finding._asdict()} for check, finding in lines])
        else:
            typer.echo(_summary(lines))
        sys.stdout.flush()
        # Without the good manners of an ordinary end, which waits for threads: one may be looking up a name for minutes.
        os._exit(_code(lines))


async def _examine(case: Case, is_printing: bool) -> list[Line]:
    from devmesh.cli.checks.running import examine

    lines = []
    async for line in examine(case):
        lines.append(line)
        if is_printing:
            _print(line)
    await case.close()
    return lines


def _print(line: Line) -> None:
    word, colour = MARKS[line.finding.state]
    typer.echo(f"{typer.style(word.ljust(7), fg=colour)}  {line.check.ljust(NAME_WIDTH)} {line.finding.found}")
    for advice in line.finding.advice:
        typer.echo(f"{'':9}{'':{NAME_WIDTH}} {typer.style('->', dim=True)} {advice}")


def _summary(lines: list[Line]) -> str:
    counts = Counter(str(line.finding.state) for line in lines)
    said = [
        f"{counts[state]} {state}{'s' if counts[state] > 1 else ''}"
        for state in ("problem", "warning")
        if counts[state]
    ]
    return f"\n{', '.join(said) if said else 'All is well.'}"


def _code(lines: list[Line]) -> Exit:
    problems = {line.check for line in lines if line.finding.state == "problem"}
    if "database" in problems:
        return Exit.UNREACHABLE
    return Exit.FAILED if problems else Exit.OK
