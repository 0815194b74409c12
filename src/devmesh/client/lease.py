"""The right to work on one attempt of a task or a job, as this process knows it: until when, and whether it is lost.

It is written by the heart's thread and read by handlers in any other, so that a handler that never looks up from its work
can still ask. It trusts its own clock: who was stopped for longer than the lease knows that it is lost before anybody says so.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
import uuid
from collections.abc import Callable

_lock = threading.Lock()  # of all leases: it is held for a moment, and one for each would cost more


class Lease:
    __slots__ = ("_lost_reason", "_on_lost", "_renewed_at", "attempt", "is_over", "lease_s", "lost_at")

    def __init__(self, attempt: int, lease_s: float, asked_at: float) -> None:
        """`asked_at`: this process's monotonic time just before it asked for the lease; the server began it later."""
        self.attempt, self.lease_s = attempt, lease_s
        self._renewed_at = asked_at
        self._lost_reason: str | None = None
        self.lost_at = math.inf  # by the same clock
        self._on_lost: Callable[[], object] | None = None
        self.is_over = False  # the holder has ended it; there is nothing to keep or to lose any more

    @property
    def remaining_s(self) -> float:
        return self._renewed_at + self.lease_s - time.monotonic()

    @property
    def lost_reason(self) -> str | None:
        """Why the lease is lost; None while it is held."""
        self.look()
        return self._lost_reason

    @property
    def is_lost(self) -> bool:
        return self.lost_reason is not None

    def look(self) -> None:
        """Has it lost when its time is over."""
        if self._lost_reason is None and not self.is_over and self.remaining_s <= 0:
            self.lose(f"it was not renewed within its {self.lease_s:g} s")

    def renewed(self, asked_at: float) -> None:
        """The server renewed it, after this process asked at that time."""
        self._renewed_at = max(self._renewed_at, asked_at)

    def watch(self, on_lost: Callable[[], object]) -> None:
        """Has this called when the lease is lost, at once if it is already; from whichever thread finds it out."""
        with _lock:
            self._on_lost = on_lost
            is_late = self._lost_reason is not None
        if is_late:
            on_lost()

    def lose(self, reason: str) -> None:
        with _lock:
            if self._lost_reason is not None or self.is_over:
                return
            self._lost_reason = reason
            self.lost_at = time.monotonic()
            on_lost = self._on_lost
        if on_lost is not None:
            on_lost()

    def end(self) -> None:
        with _lock:
            self.is_over = True


class TaskLease(Lease):
    __slots__ = ("agent_id", "task_id")

    def __init__(self, task_id: uuid.UUID, attempt: int, agent_id: uuid.UUID, lease_s: float, asked_at: float) -> None:
        super().__init__(attempt, lease_s, asked_at)
        self.task_id, self.agent_id = task_id, agent_id


class JobLease(Lease):
    __slots__ = ("is_known_lost", "is_told_of", "job_id", "task")

    def __init__(self, job_id: uuid.UUID, attempt: int, lease_s: float, asked_at: float) -> None:
        super().__init__(attempt, lease_s, asked_at)
        self.job_id = job_id
        self.is_known_lost = False  # its handler has asked, and been told: what it returns is no result
        self.is_told_of = False  # that its handler goes on though it is lost
        self.task: asyncio.Task[None] | None = None  # that works on the job
