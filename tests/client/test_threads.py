"""Threads of handlers: one that cannot begin holds up nobody, and what it was meant to do is not done later."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from devmesh.client import threads
from devmesh.client.threads import ThreadNotBegun, in_thread


class Starts:
    """Threads that were asked for and have not begun, as where there is no memory left for them."""

    def __init__(self) -> None:
        self.asked: list[Callable[[], None]] = []

    def start_new_thread(self, run: Callable[[], None], _arguments: tuple[Any, ...]) -> int:
        self.asked.append(run)
        return 0


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    starts = Starts()
    monkeypatch.setattr(threads, "_thread", starts)
    monkeypatch.setattr(threads, "BEGIN_LIMIT_S", 0.05)
    return starts


async def test_a_thread_that_does_not_begin_is_given_up_and_does_nothing_later(starts: Starts) -> None:
    done: list[int] = []
    with pytest.raises(ThreadNotBegun, match="did not begin"):
        await in_thread(done.append, 1)
    [late] = starts.asked
    late()
    assert done == []


async def test_one_that_is_cancelled_before_it_has_begun_does_nothing_later(starts: Starts) -> None:
    done: list[int] = []
    call = asyncio.create_task(in_thread(done.append, 1))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    [late] = starts.asked
    late()
    assert done == []


async def test_what_it_returns_and_raises_comes_back() -> None:
    def where(argument: int) -> tuple[int, bool, str]:
        return argument, threading.current_thread() is threading.main_thread(), threading.current_thread().name

    assert await in_thread(where, 7) == (7, False, "devmesh where")
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda _: 1 // 0, None)
