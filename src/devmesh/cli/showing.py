"""`devmesh settings`: every setting as it is in force here, and where its value came from."""

from __future__ import annotations

import typer

from devmesh.cli.calling import AsJson
from devmesh.cli.console import Exit, note, print_json, print_table
from devmesh.cli.loading import examined_settings
from devmesh.cli.services import DataDir


def settings(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Show every setting with its value, unit and source. Secrets are masked.

    One that cannot be used is named and shown as its default; the exit code is then 2.
    """
    of_services, of_clients = examined_settings(data_dir)
    problems = dict.fromkeys([*of_services.problems, *of_clients.problems])
    shown = [*of_services.describe(), *of_clients.describe()]
    for warning in of_services.warnings:
        note(f"warning: {warning}")
    for problem in problems:
        note(f"error: {problem}")
    if as_json:
        print_json([setting._asdict() for setting in shown])
    else:
        rows = [(setting.name, setting.value, setting.unit, setting.source, setting.meaning) for setting in shown]
        print_table(("setting", "value", "unit", "from", "meaning"), rows)
    if problems:
        raise typer.Exit(Exit.USAGE)
