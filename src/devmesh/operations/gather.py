"""Natural batching: while one batch is being written, the calls that arrive gather and then go together.

Nothing waits on a timer: a lone call goes at once. A batch never holds two calls on one subject, nor does a subject lie in
two batches at a time: the second call sees what the first one did.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from devmesh.core import errors

CallT = TypeVar("CallT")
AnswerT = TypeVar("AnswerT")


class Gather(Generic[CallT, AnswerT]):
    """Gathers calls for `write`, which gives one answer (a value or an exception) for each call, in order."""

    def __init__(
        self,
        write: Callable[[Sequence[CallT]], Awaitable[Sequence[AnswerT | BaseException]]],
        *,
        batch_max: int,
        in_flight_max: int,
        waiting_max: int,
        subject: Callable[[CallT], Hashable] | None = None,
    ) -> None:
        """`in_flight_max` counts batches, `waiting_max` calls; `subject` names the row that a call changes, or None."""
        self._write = write
        self._batch_max, self._in_flight_max, self._waiting_max = batch_max, in_flight_max, waiting_max
        self._subject = subject
        self._waiting: collections.deque[tuple[CallT, asyncio.Future[AnswerT]]] = collections.deque()
        self._busy: set[Hashable] = set()
        self._runs: set[asyncio.Task[None]] = set()
        self._is_start_due = False

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._runs

    def add(self, call: CallT) -> asyncio.Future[AnswerT]:
        """The future answer. Raises unavailable when too many calls wait already."""
        if len(self._waiting) >= self._waiting_max:
            raise errors.unavailable("too many requests of this kind are waiting; slow down and try again")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[AnswerT] = loop.create_future()
        self._waiting.append((call, future))
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
        while len(self._runs) < self._in_flight_max and (batch := self._take()):
            subjects = {self._subject(call) for call, _ in batch} - {None} if self._subject else set()
            self._busy |= subjects
            run = asyncio.get_running_loop().create_task(self._run(batch, subjects))
            self._runs.add(run)

    async def _run(self, batch: list[tuple[CallT, asyncio.Future[AnswerT]]], subjects: set[Hashable]) -> None:
        answers: Sequence[AnswerT | BaseException] = [errors.unavailable("the server is stopping")] * len(batch)
        try:
            answers = await self._write([call for call, _ in batch])
        except Exception as error:
            answers = [error] * len(batch)
        finally:
            self._busy -= subjects
            self._runs.discard(asyncio.current_task())
            self._start()  # look again, and first: the database works on the next batch while these callers are answered
            for (_, future), answer in zip(batch, answers, strict=True):
                _resolve(future, answer)

    def _take(self) -> list[tuple[CallT, asyncio.Future[AnswerT]]]:
        """The next batch. Calls whose subject is busy keep their place in the queue."""
        if self._subject is None:
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), self._batch_max))]
        batch: list[tuple[CallT, asyncio.Future[AnswerT]]] = []
        kept, seen = [], set(self._busy)
        while self._waiting and len(batch) < self._batch_max:
            item = self._waiting.popleft()
            subject = self._subject(item[0])
            if subject is not None and subject in seen:
                kept.append(item)
                continue
            seen.add(subject)
            batch.append(item)
        self._waiting.extendleft(reversed(kept))
        return batch


def _resolve(future: asyncio.Future[AnswerT], answer: AnswerT | BaseException) -> None:
    if future.done():  # the caller has gone; what it asked for is done all the same
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
