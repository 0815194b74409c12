"""Loops that handlers share with what runs them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

log = logging.getLogger("devmesh.client")
T = TypeVar("T")


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
