"""Plain functions in threads. These are daemons: a process can stop although a handler does not."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any

BEGIN_LIMIT_S = 10.0


class ThreadNotBegun(Exception):
    """A thread was started and did nothing: mostly there is no memory left for it. What it was meant to do was not begun."""


async def in_thread(function: Callable[[Any], Any], argument: Any) -> Any:
    """What the function returns or raises, from a thread of its own. Raises ThreadNotBegun.

    `threading.Thread` waits for its thread to begin: one that runs out of memory before would hold up this loop for ever.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()
    claim = threading.Lock()  # whoever takes it first: the thread begins, or it is given up

    def run() -> None:
        if not claim.acquire(blocking=False):
            return
        try:
            threading.current_thread().name = f"devmesh {getattr(function, '__name__', 'handler')}"
            found: tuple[Any, BaseException | None] = context.run(function, argument), None
        except BaseException as error:  # whatever it is, it is raised where the function was called
            found = None, error
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            loop.call_soon_threadsafe(settle, found)

    def settle(found: tuple[Any, BaseException | None]) -> None:
        if not outcome.done():
            outcome.set_result(found)

    def give_up() -> None:
        if claim.acquire(blocking=False):
            settle(
                (None, ThreadNotBegun(f"its thread did not begin within {BEGIN_LIMIT_S:g} s: is there memory left?"))
            )

    _thread.start_new_thread(run, ())
    patience = loop.call_later(BEGIN_LIMIT_S, give_up)
    try:
        result, error = await outcome
    finally:
        patience.cancel()
        claim.acquire(blocking=False)  # cancelled before it began: then it never does
    if error is not None:
        raise error
    return result
