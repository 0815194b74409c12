"""Loops that handlers share with what runs them."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

log = logging.getLogger("devmesh.client")
T = TypeVar("T")
END_LIMIT_S = 1.0


def is_running() -> bool:
    """Whether a loop runs in this thread, in which no other can."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def run_to_its_end(runner: asyncio.Runner, work: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns or raises, though SystemExit or KeyboardInterrupt is raised beside it.

    These leave the loop at once from whichever task raises them, as one that a handler has started may, and all other handlers
    would be lost with it. Whoever awaits the task gets it all the same: there it is an exception like any other.
    """
    loop = runner.get_loop()
    task = loop.create_task(work)
    while True:
        try:
            return loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt) as error:
            if task.done() or (isinstance(error, KeyboardInterrupt) and _raises_at_the_keyboard()):
                raise
            name = type(error).__name__
            log.error("a task that a handler has started has raised %s, and ends nothing else", name, exc_info=error)


def _raises_at_the_keyboard() -> bool:
    """Whether Ctrl-C raises it, as before a loop takes that."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def close(runner: asyncio.Runner) -> None:
    """Ends what is left in its loop. A handler may not listen to that: it is left where it is, and never goes on."""
    deaf = runner.get_loop().run_until_complete(end_the_rest())
    if deaf:
        log.warning("%d tasks do not listen, and are left as they are", deaf)
    else:
        runner.close()


async def end_the_rest() -> int:
    """Cancels every other task of this loop. Gives how many do not listen to that within a second."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    return len((await asyncio.wait(left, timeout=END_LIMIT_S))[1]) if left else 0
