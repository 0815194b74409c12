"""`devmesh settings`: every setting as it is in force here, and where its value came from."""

from __future__ import annotations

from devmesh.cli.calling import AsJson
from devmesh.cli.console import note, print_json, print_table
from devmesh.cli.loading import client_settings, service_settings
from devmesh.cli.services import DataDir


def settings(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Show every setting with its value, unit and source. Secrets are masked."""
    of_services, of_clients = service_settings(data_dir), client_settings(data_dir)
    shown = [*of_services.describe(), *of_clients.describe()]
    for warning in of_services.warnings:
        note(f"warning: {warning}")
    if as_json:
        print_json([setting._asdict() for setting in shown])
    else:
        rows = [(setting.name, setting.value, setting.unit, setting.source, setting.meaning) for setting in shown]
        print_table(("setting", "value", "unit", "from", "meaning"), rows)
