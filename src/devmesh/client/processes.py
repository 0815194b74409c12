"""Plain functions in processes of their own, for what keeps a processor busy and would keep everything else in ours from it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from devmesh.client.errors import Fail, described, unusable
from devmesh.client.forks import STOP_SIGNALS, end_by

log = logging.getLogger("devmesh.client")

PROCESSES = os.cpu_count() or 1


class Processes:
    """As many as there are processors, started when they are first needed, and anew when one of them has died.

    `free` are those that nobody has set aside for what is to be called there: beyond them a call would wait.
    """

    def __init__(self) -> None:
        self.free = self._count = PROCESSES
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    async def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """What the function returns or raises. It is imported there by its name, so it stands at the top of a module."""
        pool = self._pool = self._pool or concurrent.futures.ProcessPoolExecutor(
            self._count, multiprocessing.get_context("spawn"), _depend_on_the_parent
        )
        try:
            done = pool.submit(_run, pickle.dumps(function), argument)
            done.add_done_callback(functools.partial(_end_if_broken, pool))
            _see_all(pool)
            outcome = await asyncio.wrap_future(done)
        except BrokenProcessPool:
            if self._pool is pool:
                self._pool = None
            message = (
                "a process for jobs has died, of a lack of memory, by a signal or an exit, or before it could begin, "
                "as standard error may tell, and this job may have been in it"
            )
            raise Fail({"type": "ProcessDied", "message": message}) from None
        return _opened(outcome)

    def end(self) -> None:
        """Whatever still runs there is ended: nobody waits for it any more."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        children = _children(pool)
        pool.shutdown(wait=False, cancel_futures=True)
        _kill(children)


class _Outcome(NamedTuple):
    """What a function did in its process. What cannot be told from one process to another is no harm to the others there."""

    pickled: bytes | None  # what it returned or raised, unless that cannot be pickled
    is_raised: bool
    described: dict[str, str]  # what it raised, or what keeps its result from being told, in place of that
    trace: str  # where that was raised


def _run(pickled_function: bytes, argument: Any) -> _Outcome:
    """The function is imported here: an import that fails before would be the end of the process."""
    try:
        function: Callable[[Any], Any] = pickle.loads(pickled_function)  # noqa: S301  our own
        found, is_raised = function(argument), False
    except BaseException as error:
        error.add_note(f"in its own process:\n{traceback.format_exc()}")  # or who reads the log would see ours alone
        found, is_raised = error, True
    try:
        pickled = pickle.dumps(found)
        if is_raised:  # many exceptions cannot be made again from what they were made of
            pickle.loads(pickled)  # noqa: S301  our own
        if not isinstance(found, StopIteration | asyncio.CancelledError):  # they would mean something to the loop there
            return _Outcome(pickled, is_raised, described(found) if is_raised else {}, "")
        problem: BaseException = found
    except BaseException as error:
        problem = found if is_raised else error
    return _Outcome(None, is_raised, described(problem), "".join(traceback.format_exception(problem)))


def _opened(outcome: _Outcome) -> Any:
    if outcome.pickled is None:
        log.error("a job failed in a process of its own:\n%s", outcome.trace)
        if outcome.is_raised:
            raise Fail(outcome.described)
        raise _unusable(outcome.described)
    try:
        found = pickle.loads(outcome.pickled)  # noqa: S301  our own process has made it
    except Exception as error:
        if outcome.is_raised:  # what it is made of was imported there alone
            raise Fail(outcome.described) from error
        raise _unusable(described(error)) from error
    if outcome.is_raised:
        raise found
    return found


def _unusable(problem: dict[str, str]) -> Fail:
    """As a result is told that is no JSON: another attempt would have no other."""
    return Fail(unusable(f"{problem['type']}: {problem['message']}"), retryable=False)


def _end_if_broken(pool: concurrent.futures.ProcessPoolExecutor, done: concurrent.futures.Future[_Outcome]) -> None:
    """When one of its processes has died a pool waits for the others, which would go on with jobs that have failed already."""
    if not done.cancelled() and isinstance(done.exception(), BrokenProcessPool):
        _kill(_children(pool))


def _see_all(pool: concurrent.futures.ProcessPoolExecutor) -> None:
    """Has the pool look at its processes again: one that `submit` has just started would die unseen otherwise."""
    with pool._shutdown_lock:
        pool._executor_manager_thread_wakeup.wakeup()


def _children(pool: concurrent.futures.ProcessPoolExecutor) -> list[BaseProcess]:
    return list((pool._processes or {}).values())  # the only way to end them before Python 3.14


def _kill(children: Iterable[BaseProcess]) -> None:
    for child in children:
        with contextlib.suppress(ValueError, ProcessLookupError):
            child.kill()


def _depend_on_the_parent() -> None:
    """Signals are for the parent, which ends us; when it cannot any more, because it was killed, we end with it.

    They are taken and not ignored: whatever a function starts would go on to ignore them, and nothing would end it.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _let_pass)
        signal.siginterrupt(number, False)
        end_by(number)
    threading.Thread(target=_end_with_the_parent, name="parent", daemon=True).start()


def _let_pass(number: int, frame: object) -> None:
    pass


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
