"""`python -m bench [NAME…] [--quick] [--json]`: runs measures and shows their figures beside what was asked for."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvloop

from bench import batching, connections, creating, delivery, held, jobs, life, overload, partitions, restart, start
from bench.figures import Figure, as_json, show
from bench.stage import QUICK, Extent, Stage, machine, raise_file_limit

MEASURES = {
    "connections": connections.measure,
    "create": creating.measure,
    "batching": batching.measure,
    "life": life.measure,
    "delivery": delivery.measure,
    "jobs": jobs.measure,
    "held": held.measure,
    "overload": overload.measure,
    "partitions": partitions.measure,
    "restart": restart.measure,
    "start": start.measure,
}
LONG = {"held"}  # only by name: twelve minutes
FILES_MIN = 10_000


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Which of {', '.join(MEASURES)}; all but the long without any.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller and shorter: to see that it runs.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The figures as JSON instead of a table.")] = False,
) -> None:
    """Measure how fast DevMesh is, beside what its own SQL does under pgbench."""
    chosen = names or [name for name in MEASURES if name not in LONG]
    if unknown := [name for name in chosen if name not in MEASURES]:
        raise typer.BadParameter(f"there is no measure {unknown[0]!r}; there are {', '.join(MEASURES)}")
    extent = QUICK if quick else Extent()
    if (files := raise_file_limit()) < FILES_MIN and not quick:
        raise typer.BadParameter(
            f"{FILES_MIN} open files are needed and {files} allowed: raise `ulimit -n`, or --quick"
        )
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(_measure(chosen, extent, is_telling=not json))
    if json:
        typer.echo(as_json(figures, machine()))
    elif len(chosen) > 1:
        show(figures, machine())


async def _measure(names: list[str], extent: Extent, *, is_telling: bool) -> list[Figure]:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="devmesh-bench-", ignore_cleanup_errors=True) as directory:
        stage = Stage(Path(directory), extent)
        try:
            for name in names:
                fresh = await MEASURES[name](stage)
                figures += fresh
                if is_telling:
                    show(fresh, name)
        finally:
            stage.stop()
    return figures


typer.run(main)
