"""`devmesh up`: from options and settings to a running mesh, and what is said when it is ready."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devmesh.cli.console import Exit, Failure, note, print_json
from devmesh.cli.loading import DEV_ENV, DOTENV, data_directory, nearest, with_options
from devmesh.cli.services import DataDir, Host
from devmesh.environment import SettingsError, read_variables
from devmesh.settings import ClientSettings, Settings

if TYPE_CHECKING:
    from devmesh.cli.local_mesh import Ready

PORT_HELP = "The WebSocket's port; REST takes the next one and the worker's health the one after."


def up(
    data_dir: DataDir = None,
    port: Annotated[int | None, typer.Option(min=1, max=65533, help=PORT_HELP, show_default="8080, 8081, 8088")] = None,
    host: Host = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the addresses as JSON when all is ready.")] = False,
) -> None:
    """Start a mesh on this machine and keep it running until Ctrl-C.

    Brings its own PostgreSQL unless DATABASE_DSN is set. Logs go to standard error, what to do next to standard output.
    """
    from devmesh.cli.instance import Instance
    from devmesh.cli.local_mesh import LocalMesh

    settings = _settings(host, port)
    for warning in settings.warnings:
        note(f"warning: {warning}")
    instance = Instance(data_directory(data_dir), settings.shutdown_grace_s + 5)
    mesh = LocalMesh(instance, _with_ports(settings), _known_key(instance.directory / DEV_ENV))
    failures: Sequence[BaseException] = ()
    try:
        asyncio.run(mesh.run(_print_as_json if as_json else _print_welcome))
    except* Failure as group:
        failures = group.exceptions
    if failures:
        raise failures[0]


def _settings(host: str | None, port: int | None) -> Settings:
    """Without what an earlier start left for tools: the database that it names may be the one that we bring ourselves."""
    try:
        settings = Settings.load(os.environ, nearest(DOTENV))
    except SettingsError as error:
        raise Failure(str(error), Exit.USAGE) from error
    ports = {"ws_port": port, "rest_port": port + 1, "worker_port": port + 2} if port is not None else {}
    return with_options(settings, {"host": host, **ports})


def _with_ports(settings: Settings) -> Settings:
    """Ports that are free, also where a setting leaves the choice to us. Raises `Failure` before anything has started."""
    from devmesh.cli.ports import free_port, require_free

    services = {"mcp-server": "ws_port", "rest-api": "rest_port", "worker": "worker_port"}
    chosen = {service: getattr(settings, name) or free_port(settings.host) for service, name in services.items()}
    require_free(settings.host, chosen)
    changed = {services[name]: port for name, port in chosen.items() if getattr(settings, services[name]) != port}
    return with_options(settings, changed)


def _known_key(dev_env: Path) -> str | None:
    """The key that an earlier start wrote."""
    try:
        return ClientSettings.load(read_variables(dev_env)).api_key
    except SettingsError as error:
        hint = f"remove {dev_env}: it is written anew, with another key"
        raise Failure(str(error), Exit.USAGE, hint) from error


def _print_welcome(ready: Ready) -> None:
    """What somebody who sees this for the first time wants to know."""
    directory = ready.dev_env.parent
    is_found = data_directory(None).absolute() == directory
    elsewhere = "" if is_found else f", after `export DEVMESH_DATA_DIR={directory}`"
    typer.echo(
        f"""
{typer.style("The mesh is ready.", bold=True, fg=typer.colors.GREEN)}

  REST        {ready.url}
  docs        {ready.url}/docs
  agents      {ready.ws_url}
  worker      {ready.worker_url}/health
  key         DEVMESH_API_KEY in {ready.dev_env}

Next, in another terminal{elsewhere}:

  devmesh call task.create title="my first task"
  devmesh watch
  devmesh call --list

Ctrl-C stops it all.
"""
    )


def _print_as_json(ready: Ready) -> None:
    print_json(
        {"url": ready.url, "ws_url": ready.ws_url, "worker_url": ready.worker_url, "dev_env": str(ready.dev_env)}
    )
