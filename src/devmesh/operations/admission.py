"""Admission: when more is asked for than can be done, new requests are refused at once, so that those let in stay quick.

How long requests take in the corridor, and how late the process comes to what is due, is measured all the time. Nothing is
refused for being slow alone, nor in a burst that ends: only when for a whole second more has come in than went out, and what
was done took longer than its target. Then as many are let in as are done within the target, and the rest are told when to come
again. Who goes on with work in hand is let in before who begins something new. Must not know wires.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import math
import random
from collections.abc import Iterator
from typing import Literal, NamedTuple

from devmesh import telemetry
from devmesh.core.components import Component, degraded, healthy
from devmesh.core.errors import Kind, MeshError
from devmesh.operations.registry import REGISTRY

TICK_S = 0.1  # between looks at what was done, if this process is not late
WINDOW_S = 1.0  # looked back upon: an overload lasts longer than a burst, and calm longer than a pause
LIMIT_MIN = 40  # or batches would be too small to be worth their transactions
GROWTH_MIN = 1.05  # times as many in flight at each third of the window: more comes in than goes out
HOPELESS_FACTOR = 50.0  # so many times the target is too long even if no more comes in than goes out
LAG_WEIGHT = 0.3  # of the latest look at how late the process is
TRIP_CALLS_MAX = 8  # a batch of no more shows how long a trip to the database takes by itself
TRIP_WEIGHT = 0.05  # of the latest one
TRIPS = 2.0  # the target is not less than so many of them: one to wait for, and one of its own
RETRY_AFTER_S = 0.2  # at the least
SPREAD_S_MIN, SPREAD_S_MAX = 1.0, 15.0  # those who are refused come back spread over so long
SPREAD_GROWTH = 0.1  # a look: the spread doubles in a second while nearly all are refused, and shrinks when few are


class Tick(NamedTuple):
    """What was seen since the look before."""

    at_s: float
    offered: int
    done: int
    refused: int
    in_flight: int  # at its end


class Admission:
    """Every request `enter`s, which may raise unavailable, and `leave`s. Who waits for something to happen is not inside."""

    def __init__(self, target_ms: float) -> None:
        self._target_s = target_ms / 1000
        self.limit = math.inf
        self.in_flight = self.in_hand = 0  # all that is inside, and what of it goes on with work in hand
        self._new = frozenset(name for name, operation in REGISTRY.items() if not operation.in_hand)
        self.delay_s = 0.0
        self._offered = self._done = self._refused = 0
        self._delays_s, self._delays = 0.0, 0
        self._lag_s = self._trip_s = self._refused_share = 0.0
        self._spread_s = SPREAD_S_MIN
        self._calm_since_s = 0.0  # nobody had to be refused since then
        self._ticks = collections.deque([Tick(-math.inf, 0, 0, 0, 0)])  # those of the window, and the one before

    @property
    def is_shedding(self) -> bool:
        return self.limit < math.inf

    def enter(self, name: str, *, is_late: bool = False) -> None:
        """A request of this method has come. Raises unavailable. One that is late already would not be quick any more."""
        is_new = name in self._new
        if (self.in_flight if is_new else self.in_hand) >= self.limit or (is_late and is_new and self.is_shedding):
            self._offered += 1
            self._refused += 1
            raise self._refusal()
        self._let_in(name)

    @contextlib.contextmanager
    def outside(self, name: str) -> Iterator[None]:
        """It was let in, and waits for something to happen: as long as it likes, without taking the room of others."""
        self.leave(name)
        try:
            yield
        finally:
            self._let_in(name)

    def leave(self, name: str) -> None:
        """It is answered."""
        self._done += 1
        self.in_flight -= 1
        self.in_hand -= name not in self._new

    def took(self, delay_s: float) -> None:
        """So long one was in the corridor, until its answer or until it began to wait for something to happen."""
        self._delays_s += delay_s
        self._delays += 1

    def trip(self, calls: int, duration_s: float) -> None:
        """So long a batch took. A database or a machine that is slow anyway is not made quicker by refusing."""
        if calls <= TRIP_CALLS_MAX and not self.is_shedding:  # or the overload itself would raise the target
            self._trip_s += TRIP_WEIGHT * (duration_s - self._trip_s)

    @property
    def target_s(self) -> float:
        return max(self._target_s, TRIPS * self._trip_s)

    def tick(self, now_s: float, lag_s: float) -> None:
        """Some ten times a second: the time, and how late this process is. Looks back, and moves the limit."""
        self._look_back(now_s, lag_s)
        if not self.is_shedding:
            if self._is_overloaded():
                self.limit, self._calm_since_s = self._sustainable(), now_s
        elif now_s - self._calm_since_s >= WINDOW_S:
            self.limit, self._spread_s = math.inf, SPREAD_S_MIN
        elif self.in_flight <= self.limit + self.in_hand:
            factor = min(max(self.target_s / max(self.delay_s, 1e-6), 0.8), 1.1)
            self.limit = max(self.limit * factor, LIMIT_MIN)
        else:  # what came before the limit was drawn has to be done first
            self.limit = self._sustainable()

    def component(self) -> Component:
        """For health. Refusing what is too much is no failure."""
        if not self.is_shedding:
            return healthy()
        share = 100 * self._refused_share
        return degraded(f"more is asked for than can be done: {share:.0f}% of requests are refused")

    def _let_in(self, name: str) -> None:
        self._offered += 1
        self.in_flight += 1
        self.in_hand += name not in self._new

    def _look_back(self, now_s: float, lag_s: float) -> None:
        since_s = min(now_s - self._ticks[-1].at_s, WINDOW_S)
        self._lag_s += LAG_WEIGHT * (lag_s - self._lag_s)
        if self._delays:
            self.delay_s = self._delays_s / self._delays + self._lag_s
        elif self.in_flight:
            self.delay_s += since_s  # nothing was done, so all that is in flight takes so much longer
        self._ticks.append(Tick(now_s, self._offered, self._done, self._refused, self.in_flight))
        while self._ticks[1].at_s <= now_s - WINDOW_S:
            self._ticks.popleft()
        if self._refused or self.in_flight >= self.limit:
            self._calm_since_s = now_s
        self._refused_share = self._sum("refused") / max(self._sum("offered"), 1)
        # When most of what comes is refused, it is those who were refused before: they have to come less often.
        spread_s = self._spread_s * (1 + SPREAD_GROWTH * (2 * self._refused_share - 1))
        self._spread_s = min(max(spread_s, SPREAD_S_MIN), SPREAD_S_MAX)
        telemetry.REQUESTS_ADMITTED.inc(self._offered - self._refused)
        telemetry.REQUESTS_REFUSED.labels("overload").inc(self._refused)
        telemetry.ADMISSION_DELAY_SECONDS.set(self.delay_s)
        telemetry.ADMISSION_LIMIT.set(self.limit)
        self._offered = self._done = self._refused = 0
        self._delays_s, self._delays = 0.0, 0

    def _is_overloaded(self) -> bool:
        if self._ticks[0].at_s == -math.inf or self.delay_s <= self.target_s:
            return False
        if min(tick.in_flight for tick in self._ticks) <= LIMIT_MIN:
            return False
        return self._is_growing() or self.delay_s > HOPELESS_FACTOR * self.target_s

    def _is_growing(self) -> bool:
        """All the time: callers who each wait for an answer are many when something stalls, but then no more."""
        last = len(self._ticks) - 1
        seen = [self._ticks[place].in_flight for place in sorted({0, last // 3, 2 * last // 3, last})]
        return all(after > before * GROWTH_MIN for before, after in itertools.pairwise(seen))

    def _sustainable(self) -> float:
        """How many are in flight when they take as long as the target, at the pace of late (Little's law)."""
        done_per_s = self._sum("done") / max(self._ticks[-1].at_s - self._ticks[0].at_s, TICK_S)
        return max(done_per_s * self.target_s, LIMIT_MIN)

    def _sum(self, field: Literal["offered", "done", "refused"]) -> int:
        """Of the window."""
        return sum(getattr(tick, field) for tick in itertools.islice(self._ticks, 1, None))

    def _refusal(self) -> MeshError:
        again_s = RETRY_AFTER_S + random.random() * self._refused_share * self._spread_s  # noqa: S311  no secret
        return MeshError(
            Kind.UNAVAILABLE,
            "the server is asked for more than it can do; try again a little later",
            retry_after_ms=int(again_s * 1000),
            reason="overload",
        )
