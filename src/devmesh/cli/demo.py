"""`devmesh demo`: a fleet at work on real files, an accident, and the account of it."""

from __future__ import annotations

import asyncio
import secrets
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devmesh.cli.calling import AsJson
from devmesh.cli.console import Exit, Failure, complain, print_json
from devmesh.cli.services import DataDir
from devmesh.core.errors import Kind

if TYPE_CHECKING:
    from devmesh.cli.demo_mesh import DemoMesh
    from devmesh.demo.plan import Plan
    from devmesh.demo.report import Observed, Report
    from devmesh.demo.screen import Screen

PIPE_WIDTH = 10_000  # in a pipe nothing is folded
INTERRUPTED = 128 + signal.SIGINT


def demo(
    path: Annotated[
        Path | None, typer.Argument(help="A directory or a file to work on.", show_default="the project's own files")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Watch a fleet of agent processes work through files, one of them killed, nothing lost.

    Plays on the mesh that runs here, or brings one of its own (in a temporary directory unless --data-dir is given) and takes
    it down again. Exits with 0 only if all was completed and the totals are what a plain count gives.

    [bold]Examples[/]

    devmesh demo
    devmesh demo ~/notes --json
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        report = _play(path, data_dir, as_json)
    except KeyboardInterrupt:
        complain("broken off; the agents are ended, and so is the mesh if the demo brought it")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(report))
    for problem in report.problems:
        complain(problem)
    raise typer.Exit(Exit.OK if report.is_whole else Exit.FAILED)


def _play(path: Path | None, data_dir: Path | None, as_json: bool) -> Report:
    """From the files to the report, which is printed for people unless it is wanted as JSON."""
    from rich.console import Console

    from devmesh.demo import files, plan, report
    from devmesh.demo.screen import screen_for
    from devmesh.demo.summary import print_summary

    began = time.monotonic()
    try:
        found = files.find(path if path is not None else files.own_files())
        contents = files.contents(found)
    except files.Nothing as nothing:
        raise Failure(str(nothing), Exit.USAGE) from nothing
    console = Console(stderr=as_json, highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    screen = screen_for(console)
    for line in files.account(found):
        screen.say(line)
    with tempfile.TemporaryDirectory(prefix="devmesh-demo-", ignore_cleanup_errors=True) as directory:
        with _mesh(data_dir, Path(directory), screen) as mesh:
            observed = _observe(plan.make(found, f"demo-{secrets.token_hex(2)}"), mesh, Path(directory), screen)
        screen.say("the mesh is stopped" if mesh.start_s is not None else "the mesh runs on")
    made = report.make(
        found, observed, plan.local_result(found, contents), files.changed(found, contents),
        report.seconds_of(observed, mesh.start_s, time.monotonic() - began),
    )  # fmt: skip
    if not as_json:
        print_summary(made, console)
    return made


@contextmanager
def _mesh(data_dir: Path | None, directory: Path, screen: Screen) -> Iterator[DemoMesh]:
    """The mesh that runs, else one of its own."""
    from devmesh.cli.demo_mesh import own_mesh, running

    if (found := running(data_dir)) is not None:
        screen.say(f"the mesh at {found.url} runs already, and is used")
        yield found
        return
    screen.say("no mesh runs here: starting one of its own, with a PostgreSQL")
    with own_mesh(data_dir or directory / "data", directory / "mesh.log") as mesh:
        screen.say(f"the mesh is ready at {mesh.url}")
        yield mesh


def _observe(plan: Plan, mesh: DemoMesh, directory: Path, screen: Screen) -> Observed:
    from devmesh.client import MeshError
    from devmesh.demo.failure import DemoFailed
    from devmesh.demo.performance import play

    try:
        with screen:
            return asyncio.run(play(plan, mesh.address, directory, screen))
    except DemoFailed as failed:
        raise Failure(str(failed)) from failed
    except MeshError as error:
        code = Exit.UNREACHABLE if error.kind == Kind.UNAVAILABLE else Exit.FAILED
        raise Failure(f"{error.kind}: {error.message}", code) from error
