"""Natural batching: while one batch is being written, the calls that arrive gather and then go together.

No call waits on a timer while nothing else is under way: a lone one goes at once. A few calls wait for a moment for the batch
before them, because a batch of their own would contend with it for the same locks and processors; many go beside it. A batch
never holds two calls on one subject, nor does a subject lie in two batches at a time: the second call sees what the first did.
"""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

from devmesh.core import errors

LATE_LOOK_INTERVAL_S = 0.5
LARGE = 1 / 4  # of the most that a batch may hold: as many calls do not wait for the batch before them
WAIT_S_MAX = 0.02  # nor do fewer for longer
ANSWER_MARGIN_S = 1.5  # beyond the deadline, in which a batch tells its own outcome, which says more

CallT = TypeVar("CallT")
AnswerT = TypeVar("AnswerT")


class Asked(NamedTuple, Generic[CallT, AnswerT]):
    """A call that has no answer yet."""

    call: CallT
    future: asyncio.Future[AnswerT]
    at: float


class Batch(list[CallT], Generic[CallT, AnswerT]):
    """Calls that go together, in order."""

    def __init__(self, asked: Sequence[Asked[CallT, AnswerT]]) -> None:
        super().__init__(each.call for each in asked)
        self._futures = [each.future for each in asked]

    def answer(self, answers: Sequence[AnswerT | BaseException]) -> None:
        """Tells every caller, in order. Those who have been told, or have gone, are not told again."""
        for future, answer in zip(self._futures, answers, strict=True):
            _resolve(future, answer)


class Gather(Generic[CallT, AnswerT]):
    """Gathers calls for `write`, which gives one answer (a value or an exception) for each call, in order.

    It may give them by the batch's `answer` before: a caller need not wait for what is done after a commit.
    """

    def __init__(
        self,
        write: Callable[[Batch[CallT, AnswerT]], Awaitable[Sequence[AnswerT | BaseException]]],
        *,
        batch_max: int,
        in_flight_max: int,
        waiting_max: int,
        deadline_s: float | None = None,
        subject: Callable[[CallT], Hashable] | None = None,
        hurries: bool = False,
    ) -> None:
        """`in_flight_max` counts batches, `waiting_max` calls; `subject` names the row that a call changes, or None. With
        `hurries` no call waits for a batch that is under way: to go together would save nothing.

        A little after `deadline_s` a caller is told that there is no answer, wherever its call is: a database that has gone
        silent holds the batches that were begun, and those behind them would wait for as long again.
        """
        self._write = write
        self._batch_max, self._in_flight_max, self._waiting_max = batch_max, in_flight_max, waiting_max
        self._answer_s_max = deadline_s + ANSWER_MARGIN_S if deadline_s is not None else None
        self._subject = subject
        self._large = 1 if hurries else max(1, int(batch_max * LARGE))
        self._waiting: collections.deque[Asked[CallT, AnswerT]] = collections.deque()
        self._busy: set[Hashable] = set()
        self._runs: dict[asyncio.Task[None], list[Asked[CallT, AnswerT]]] = {}
        self._is_watching = False
        self._is_start_due = self._is_look_due = False

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._runs

    @property
    def waiting(self) -> int:
        """Calls that are in no batch yet."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """Batches that are being written."""
        return len(self._runs)

    def add(self, call: CallT) -> asyncio.Future[AnswerT]:
        """The future answer. Raises unavailable when too many calls wait already."""
        if len(self._waiting) >= self._waiting_max:
            raise errors.unavailable("too many requests of this kind are waiting; slow down and try again")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[AnswerT] = loop.create_future()
        self._waiting.append(Asked(call, future, time.monotonic()))
        if not self._is_start_due and len(self._runs) < self._in_flight_max:
            self._is_start_due = True
            loop.call_soon(self._start)  # after this turn of the loop, so that what came together goes together
        return future

    async def drain(self) -> None:
        """Until every call has its answer."""
        while not self.is_idle:
            if self._runs:
                await asyncio.wait(self._runs)
            await asyncio.sleep(0)  # lets what waited for these runs begin

    def _start(self) -> None:
        self._is_start_due = False
        while self._is_time() and (batch := self._take()):
            subjects = {self._subject(asked.call) for asked in batch} - {None} if self._subject else set()
            self._busy |= subjects
            run = asyncio.get_running_loop().create_task(self._run(batch, subjects))
            self._runs[run] = batch
        if self._runs and not self._is_watching and self._answer_s_max is not None:
            self._is_watching = True
            asyncio.get_running_loop().call_later(LATE_LOOK_INTERVAL_S, self._answer_late_ones, self._answer_s_max)

    def _is_time(self) -> bool:
        """Whether another batch may begin now."""
        if len(self._runs) >= self._in_flight_max or not self._waiting:
            return False
        if not self._runs or len(self._waiting) >= self._large:
            return True
        if time.monotonic() - self._waiting[0].at >= WAIT_S_MAX:
            return True
        if not self._is_look_due:
            self._is_look_due = True
            asyncio.get_running_loop().call_later(WAIT_S_MAX, self._look)
        return False

    def _look(self) -> None:
        self._is_look_due = False
        self._start()

    def _answer_late_ones(self, answer_s_max: float) -> None:
        """Tells those who have waited too long. What is still in the queue is not begun any more."""
        late_before = time.monotonic() - answer_s_max
        while self._waiting and self._waiting[0].at < late_before:
            _resolve(self._waiting.popleft().future, errors.unavailable("the database does not keep up; try again"))
        for batch in self._runs.values():
            for asked in batch:
                if asked.at < late_before:
                    _resolve(asked.future, _unknown())
        self._is_watching = bool(self._runs)
        if self._is_watching:
            asyncio.get_running_loop().call_later(LATE_LOOK_INTERVAL_S, self._answer_late_ones, answer_s_max)

    async def _run(self, asked: list[Asked[CallT, AnswerT]], subjects: set[Hashable]) -> None:
        batch: Batch[CallT, AnswerT] = Batch(asked)
        answers: Sequence[AnswerT | BaseException] | None = None
        try:
            answers = await self._write(batch)
        except Exception as error:
            answers = [error] * len(batch)
        finally:
            self._busy -= subjects
            run = asyncio.current_task()
            assert run is not None
            del self._runs[run]
            self._start()  # look again, and first: the database works on the next batch while these callers are answered
            if answers is None:
                answers = [errors.unavailable("the server is stopping")] * len(batch)
            batch.answer(answers)

    def _take(self) -> list[Asked[CallT, AnswerT]]:
        """The next batch. Calls whose subject is busy keep their place in the queue."""
        if self._subject is None:
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), self._batch_max))]
        batch: list[Asked[CallT, AnswerT]] = []
        kept, seen = [], set(self._busy)
        while self._waiting and len(batch) < self._batch_max:
            asked = self._waiting.popleft()
            subject = self._subject(asked.call)
            if subject is not None and subject in seen:
                kept.append(asked)
                continue
            seen.add(subject)
            batch.append(asked)
        self._waiting.extendleft(reversed(kept))
        return batch


def _unknown() -> errors.MeshError:
    message = (
        "the database has not answered in time, so whether this was done is not known; "
        "try again with the same idempotency_key: it is then done once, whichever it was"
    )
    return errors.MeshError(errors.Kind.TIMEOUT, message, reason=errors.OUTCOME_UNKNOWN)


def _resolve(future: asyncio.Future[AnswerT], answer: AnswerT | BaseException) -> None:
    if future.done():  # the caller has gone; what it asked for is done all the same
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
