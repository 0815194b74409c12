"""The three services, each a command of its own so that each can be started, watched and scaled alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from devmesh.cli import readiness
from devmesh.cli.console import Exit, Failure, note
from devmesh.cli.loading import DEV_ENV, require_dsn, service_settings, with_options
from devmesh.cli.ports import free_port, why_not
from devmesh.settings import Settings

Host = Annotated[str | None, typer.Option(help="Where to listen.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Where `devmesh up` keeps its state.", show_default=".devmesh", metavar="DIRECTORY")
]
HealthCheck = Annotated[
    bool, typer.Option("--health-check", help="Ask the running service how it is, and exit with 0 or 1.")
]


def rest_api(host: Host = None, port: Port = None, data_dir: DataDir = None, health_check: HealthCheck = False) -> None:
    """Serve REST with its documentation (port 8081), and migrate the database first."""
    _run("rest-api", health_check, data_dir, host=host, rest_port=port)


def mcp_server(
    host: Host = None, port: Port = None, data_dir: DataDir = None, health_check: HealthCheck = False
) -> None:
    """Serve the agents' WebSocket (port 8080)."""
    _run("mcp-server", health_check, data_dir, host=host, ws_port=port)


def worker(
    host: Host = None,
    port: Port = None,
    app: Annotated[
        str | None,
        typer.Option(help="Run the jobs of this mesh as well, straight on the database.", metavar="MODULE:MESH"),
    ] = None,
    remote: Annotated[
        bool,
        typer.Option("--remote", help="Run them over the WebSocket instead, and nothing else: no database needed."),
    ] = False,
    data_dir: DataDir = None,
    health_check: HealthCheck = False,
) -> None:
    """Run what moves when nobody asks: assignment, leases, presence (port 8088, health only); and jobs of your own.

    [bold]Examples[/]

    devmesh worker --app app:mesh
    devmesh worker --app app:mesh --remote
    """
    if remote:
        if health_check or host is not None or port is not None:
            hint = "`devmesh workers list` shows whether it is there"
            message = "--remote serves nothing that could be asked: leave out --health-check, --host and --port"
            raise Failure(message, Exit.USAGE, hint)
        _run_remote(app, data_dir)
    else:
        _run("worker", health_check, data_dir, host=host, worker_port=port, worker_app=app)


def _run_remote(app: str | None, data_dir: Path | None) -> None:
    from devmesh.client.address import DATA_DIR_NAME
    from devmesh.engine.app_worker import AppUnusable, load_app

    if app is None:
        raise Failure("--remote needs --app", Exit.USAGE)
    if data_dir is not None:
        os.environ[DATA_DIR_NAME] = str(data_dir)  # where the mesh of the application looks for its address and key
    try:
        load_app(app).run()
    except AppUnusable as error:
        raise Failure(str(error), Exit.USAGE) from None


def _run(
    name: Literal["rest-api", "mcp-server", "worker"],
    health_check: bool,
    data_dir: Path | None,
    **options: str | int | None,
) -> None:
    try:
        settings = service_settings(data_dir, **options)
    except Failure as failure:
        raise Failure(failure.message, Exit.FAILED if health_check else failure.code, failure.hint) from None
    if health_check:
        raise typer.Exit(readiness.exit_code(name, settings.host, settings.port_of(name)))
    require_dsn(settings)
    if name == "worker" and settings.worker_app is not None:
        settings = _beside_others(settings)
    from devmesh import app

    raise typer.Exit(app.run_service(name, settings))


def _beside_others(settings: Settings) -> Settings:
    """With a free port where nobody has chosen one and the usual one is taken: as a rule by the worker of `devmesh up`."""
    host, port = settings.host, settings.worker_port
    is_chosen = settings.sources.get("worker_port", DEV_ENV) != DEV_ENV
    error = None if is_chosen else why_not(host, port)
    if error is None or error.errno != errno.EADDRINUSE:
        return settings
    free = free_port(host)
    note(f"port {port} is taken, so the health of this worker is at port {free}; --port chooses another")
    return with_options(settings, {"worker_port": free})
