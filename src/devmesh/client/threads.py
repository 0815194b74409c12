"""Plain functions in threads. These are daemons: a process can stop although a handler does not."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any


async def in_thread(function: Callable[[Any], Any], argument: Any) -> Any:
    """What the function returns or raises, from a thread of its own."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            found: tuple[Any, BaseException | None] = context.run(function, argument), None
        except BaseException as error:  # whatever it is, it is raised where the function was called
            found = None, error
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            loop.call_soon_threadsafe(settle, found)

    def settle(found: tuple[Any, BaseException | None]) -> None:
        if not outcome.done():
            outcome.set_result(found)

    threading.Thread(target=run, name=f"devmesh {getattr(function, '__name__', 'handler')}", daemon=True).start()
    result, error = await outcome
    if error is not None:
        raise error
    return result
