"""Processes that are forked from one that takes signals by its loop, as `multiprocessing` forks them in a handler.

A loop has the kernel write the number of each signal into a socket, and a fork has the same socket: what ends the fork would be
heard by the loop of its parent, which would stop, while the fork went on.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_USUAL: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_ours: dict[int, Any] = {}
_thread = threading.local()


def end_by(number: int) -> None:
    """From now on this signal, which is handled here, ends a fork as it ends any process, unless somebody else handles it."""
    _ours[number] = signal.getsignal(number)
    _watch_forks()


@functools.cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_hold_back, after_in_parent=_let_come, after_in_child=_begin)


def _hold_back() -> None:
    """What comes to a fork in its first moment waits until it is ready for that."""
    _thread.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _let_come() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _thread.mask)


def _begin() -> None:
    """In the fork, before anything else there."""
    handled = [number for number, handler in _ours.items() if signal.getsignal(number) == handler]
    with contextlib.suppress(ValueError):  # where it may not, as in an interpreter that is not the first
        if handled:
            signal.set_wakeup_fd(-1)
        for number in handled:
            signal.signal(number, _USUAL[number])
    _let_come()
