"""Loops that handlers share with what runs them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

log = logging.getLogger("devmesh.client")
T = TypeVar("T")
END_LIMIT_S = 1.0


def run_to_its_end(runner: asyncio.Runner, work: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns or raises, though SystemExit is raised beside it.

    That leaves the loop at once from whichever task raises it, as one that a handler has started may, and all other handlers
    would be lost with it. Whoever awaits the task gets it all the same: there it is an exception like any other.
    """
    loop = runner.get_loop()
    task = loop.create_task(work)
    while True:
        try:
            return loop.run_until_complete(task)
        except SystemExit as error:
            if task.done():
                raise
            log.error("a task that a handler has started has raised SystemExit, and ends nothing else", exc_info=error)


def close(runner: asyncio.Runner) -> None:
    """Ends what is left in its loop. A handler may not listen to that: it is left where it is, and never goes on."""
    deaf = runner.get_loop().run_until_complete(_end_the_rest())
    if deaf:
        log.warning("%d tasks do not listen, and are left as they are", deaf)
    else:
        runner.close()


async def _end_the_rest() -> int:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    return len((await asyncio.wait(left, timeout=END_LIMIT_S))[1]) if left else 0
