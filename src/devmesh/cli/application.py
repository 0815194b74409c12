"""Every command in its place, and the one spot where a failure becomes a line and an exit code."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import typer

from devmesh import __version__
from devmesh.cli import services
from devmesh.cli.administering import keys, tenants
from devmesh.cli.calling import call
from devmesh.cli.checking import check
from devmesh.cli.console import Exit, Failure, complain
from devmesh.cli.contexts import contexts
from devmesh.cli.demo import demo
from devmesh.cli.docs import docs
from devmesh.cli.doctor import doctor
from devmesh.cli.encryption import encryption, forget, generate, rotate_data
from devmesh.cli.jobs import dead_letters, jobs, queues
from devmesh.cli.listing import agents, tasks
from devmesh.cli.migrating import migrate
from devmesh.cli.output import OutputLost, give_up, open_what_is_closed, tell_of_losses
from devmesh.cli.partitions import partitions
from devmesh.cli.schedules import schedules
from devmesh.cli.showing import settings
from devmesh.cli.snapshots import snapshots
from devmesh.cli.up import up
from devmesh.cli.watching import watch
from devmesh.cli.workers import workers

RUN, USE, ADMINISTER, DEVELOP = "Run a mesh", "Use a mesh", "Look after a mesh", "Work on DevMesh"
ENCRYPTION = "Master keys, which secrets in the database are encrypted under"

HELP = """\
DevMesh lets a fleet of agents and workers get work done together without losing any of it.

[bold]Examples[/]

devmesh up
devmesh call task.create title="my first task"
devmesh watch

[bold]Exit codes[/]

0 done
1 the mesh refused, or the work failed
2 the command or a setting cannot be understood
3 the mesh or its database cannot be reached
4 what was checked is not as it must be
"""

application = typer.Typer(
    name="devmesh",
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
application.command("up", rich_help_panel=RUN)(up)
application.command("rest-api", rich_help_panel=RUN)(services.rest_api)
application.command("mcp-server", rich_help_panel=RUN)(services.mcp_server)
application.command("worker", rich_help_panel=RUN)(services.worker)
application.command("demo", rich_help_panel=RUN)(demo)
application.command("call", rich_help_panel=USE)(call)
application.command("watch", rich_help_panel=USE)(watch)
application.command("tasks", rich_help_panel=USE)(tasks)
application.command("agents", rich_help_panel=USE)(agents)
application.add_typer(jobs, name="jobs", rich_help_panel=USE)
application.add_typer(dead_letters, name="dead-letters", rich_help_panel=USE)
application.add_typer(queues, name="queues", rich_help_panel=USE)
application.add_typer(workers, name="workers", rich_help_panel=USE)
application.add_typer(schedules, name="schedules", rich_help_panel=USE)
application.add_typer(snapshots, name="snapshots", rich_help_panel=USE)
application.add_typer(contexts, name="contexts", rich_help_panel=USE)
keys.command("generate", rich_help_panel=ENCRYPTION)(generate)
keys.command("encryption", rich_help_panel=ENCRYPTION)(encryption)
keys.command("rotate-data", rich_help_panel=ENCRYPTION)(rotate_data)
keys.command("forget", rich_help_panel=ENCRYPTION)(forget)
application.add_typer(keys, name="keys", rich_help_panel=ADMINISTER)
application.add_typer(tenants, name="tenants", rich_help_panel=ADMINISTER)
application.add_typer(migrate, name="migrate", rich_help_panel=ADMINISTER)
application.add_typer(partitions, name="partitions", rich_help_panel=ADMINISTER)
application.command("doctor", rich_help_panel=ADMINISTER)(doctor)
application.add_typer(check, name="check", rich_help_panel=ADMINISTER)
application.command("settings", rich_help_panel=ADMINISTER)(settings)
application.command("docs", rich_help_panel=DEVELOP)(docs)


@application.callback(invoke_without_command=True)
def every_command(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        typer.echo(f"devmesh {__version__}")
        raise typer.Exit


@functools.cache
def commands() -> Callable[[], Any]:
    """All of them, read from their functions: that takes longer than most of what they do."""
    return typer.main.get_command(application)


def main() -> None:
    """The console script."""
    open_what_is_closed()
    tell_of_losses()
    try:
        commands()()
    except Failure as failure:
        complain(failure.message, failure.hint)
        sys.exit(failure.code)
    except OutputLost as lost:
        give_up()
        complain(f"standard output cannot be written: {lost.strerror}")
        sys.exit(Exit.FAILED)
