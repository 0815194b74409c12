"""A question that is asked again and again in the background, so that whoever wants the answer has it at once.

Its answer is never older than it says. One that does not come in time counts as a failure, and is not asked for a second time
while the first is under way. Must not know what is asked, nor who wants to know.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from devmesh.core.errors import explain
from devmesh.store.connections import DatabaseUnreachable
from devmesh.store.faults import translate

ANSWER_LIMIT_S = 1.0

AnswerT = TypeVar("AnswerT")


class Question(Generic[AnswerT]):
    def __init__(
        self,
        ask: Callable[[], Awaitable[AnswerT]],
        failed: Callable[[str, AnswerT | None], AnswerT],
        interval_s: float,
    ) -> None:
        """`failed` makes an answer of why there is none, and of the last one."""
        self._ask, self._failed, self._interval_s = ask, failed, interval_s
        self._asking: asyncio.Task[AnswerT] | None = None
        self._answered_at: float | None = None
        self.answer = failed("it was not looked at yet", None)

    @property
    def age_s(self) -> float | None:
        """How old the answer is; None before the first one."""
        return None if self._answered_at is None else time.monotonic() - self._answered_at

    @property
    def is_due(self) -> bool:
        age_s = self.age_s
        return age_s is None or age_s >= self._interval_s

    async def look(self) -> None:
        """Asks, and waits for the answer for as long as the limit."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_once())
        await asyncio.wait([self._asking], timeout=ANSWER_LIMIT_S)
        if self._asking.done() and not self._asking.cancelled():
            self._take(self._asking.result())
            return
        if not self._asking.cancelling():
            self._asking.cancel()  # it may take its time to let go, and is not asked anew before it has
        self._take(self._failed(f"no answer within {ANSWER_LIMIT_S:g} s", self.answer))

    def stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    async def _ask_once(self) -> AnswerT:
        try:
            return await self._ask()
        except DatabaseUnreachable as error:
            return self._failed(explain(translate(error.__cause__ or error)), self.answer)
        except Exception as error:
            return self._failed(explain(translate(error)), self.answer)

    def _take(self, answer: AnswerT) -> None:
        self.answer, self._answered_at = answer, time.monotonic()
