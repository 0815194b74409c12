"""Loops over what tenants have to be done: those that rang, at once; all of them at intervals, however much rings.

What comes about by time alone rings no bell, and a ring may be lost: a busy tenant must not put off the round that finds both.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator

from devmesh.engine.loop import Loop


class RingLoop(Loop):
    def __init__(self, interval_s: float) -> None:
        super().__init__(interval_s)
        self._rung: set[uuid.UUID] = set()
        self._round_due_at = 0.0

    def heard(self, tenants: frozenset[uuid.UUID] | None) -> None:
        """The bell rang, for these tenants or for anybody."""
        if tenants is None:
            self._round_due_at = 0.0
        else:
            self._rung |= tenants
        self.wake()

    def take_rung(self) -> set[uuid.UUID] | None:
        """The tenants that this pass is for, or None: all of them. A pass that failed may have left any of them undone."""
        rung, self._rung = self._rung, set()
        now = time.monotonic()
        if rung and not self._failures and now < self._round_due_at:
            return rung
        self._round_due_at = now + self._interval_s
        return None

    def in_turn(self, tenants: Iterable[uuid.UUID]) -> Iterator[uuid.UUID]:
        """These tenants, and before each of them those who have rung meanwhile: a round of many keeps nobody waiting."""
        for tenant_id in tenants:
            rung, self._rung = self._rung, set()
            yield from rung
            yield tenant_id
