"""Plain functions in processes of their own, for what keeps a processor busy and would keep everything else in ours from it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from devmesh.client.errors import Fail


class Processes:
    """As many as there are processors, started when they are first needed, and anew when one of them has died."""

    def __init__(self) -> None:
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    async def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """What the function returns or raises. It is imported there by its name, so it stands at the top of a module."""
        pool = self._pool = self._pool or concurrent.futures.ProcessPoolExecutor(
            os.cpu_count(), multiprocessing.get_context("spawn"), _depend_on_the_parent
        )
        try:
            return await asyncio.wrap_future(pool.submit(function, argument))
        except BrokenProcessPool:
            if self._pool is pool:
                self._pool = None
            message = (
                "a process that ran jobs has died, of a lack of memory or by a signal, and this job may have been in it"
            )
            raise Fail({"type": "ProcessDied", "message": message}) from None

    def end(self) -> None:
        """Whatever still runs there is ended: nobody waits for it any more."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        children = list((pool._processes or {}).values())  # the only way to end them before Python 3.14
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            with contextlib.suppress(ValueError, ProcessLookupError):
                child.kill()


def _depend_on_the_parent() -> None:
    """Signals are for the parent, which ends us; when it cannot any more, because it was killed, we end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, name="parent", daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
