"""Where claims begin to look, so that they need not walk through what was taken before.

A claimed row stays in its index until it is vacuumed, which an old transaction anywhere puts off: a queue claimed from its
front then slows down by the minute. So a claim begins just behind the last one. That is a hint of this process and no truth:
what it passes over (jobs whose transaction was committed late, or whose claim was undone) is found by looks from further back,
at intervals, if it can be while there is nothing to do. While an old transaction makes these cost much they come less often,
and those from the front are a scout's (engine/queue_scout.py), beside claims that go on. Times are the database's.

Claims of one process overlap. Once a look from the front has ended, the next claims begin where it has found something. Those
that began before then pass that over and have no say any more: one of them would put the place back to where all began before.

And a claim that took all there was need not be followed by one that finds nothing, before a bell has rung. Of those that wait
until a queue's rate allows the next job, the first looks when it does.

Where tasks wait in more lanes than one look goes through, the next look goes on where the last one has ended.
"""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

BEGINNING = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
PRIORITIES = 5
MARGIN = datetime.timedelta(seconds=0.2)  # in which a transaction is mostly committed after it has dated its jobs
LATE = datetime.timedelta(seconds=15)  # in which it is committed or ended
LATE_LOOK_INTERVAL = datetime.timedelta(seconds=1)
FRONT_LOOK_INTERVAL = datetime.timedelta(seconds=10)
SHARE = 1 / 1000  # of the time, that looks from further back may take more than others,
LATE_LOOK_INTERVAL_MAX = datetime.timedelta(seconds=5)  # but not less often than so
FRONT_LOOK_INTERVAL_MAX = datetime.timedelta(seconds=60)
COSTLY = datetime.timedelta(milliseconds=20)
# That claims have for a scout before they look from the front themselves.
SCOUT_PATIENCE = datetime.timedelta(seconds=30)
BROKEN_OFF = datetime.timedelta(seconds=2)  # a claim that fails after so long has not come to the end of what is gone
PLACES_MAX = 10_000  # queues and workers remembered; all are forgotten beyond it
FIRST_LANE = "auto"  # before every lane of tasks that several agents may take
EMPTIED_S = 0.025  # for so long nothing comes without a ring, on trust: one may be lost, and a delayed job rings none


class Look(NamedTuple):
    """Where a claim begins to look, for each priority from 1 to 5, and how far behind the last one; None: at the front.

    `front_look` is its own number if it is one from the front, and else that of the one on which it goes on.
    """

    since: list[datetime.datetime]
    margin: datetime.timedelta | None
    front_look: int


class _Place:
    __slots__ = (
        "fitting",
        "front_look",
        "front_look_at",
        "front_look_every",
        "front_looks_begun",
        "front_took",
        "horizon",
        "late_look_at",
        "late_look_every",
        "usual",
    )

    def __init__(self) -> None:
        self.horizon = [BEGINNING] * PRIORITIES  # the latest time claimed at each priority
        self.front_looks_begun = self.front_look = 0  # how many there were, and the number of the latest that has ended
        self.front_look_at = self.late_look_at = BEGINNING
        self.front_look_every, self.late_look_every = FRONT_LOOK_INTERVAL, LATE_LOOK_INTERVAL
        self.usual = datetime.timedelta(0)  # how long a look takes, at a sliding average
        self.front_took = datetime.timedelta(0)  # and how long the last one from the front did
        self.fitting: int | None = None  # of how many jobs the payloads may fit into one claim; None: of all

    def look(self, now: datetime.datetime, *, comes_late: bool = True) -> Look:
        """With `comes_late` something may be committed behind what was found: what is dated before a lock is waited for."""
        if self._is_front_look_due(now):
            return self.look_from_the_front(now)
        margin = MARGIN
        if comes_late and self._is_late_look_due(now):
            self.late_look_at, margin = now, LATE
        return Look([max(time, BEGINNING + LATE) - margin for time in self.horizon], margin, self.front_look)

    def look_from_the_front(self, now: datetime.datetime) -> Look:
        self.front_look_at = self.late_look_at = now
        self.front_looks_begun = max(self.front_looks_begun, self.front_look) + 1
        return Look([BEGINNING] * PRIORITIES, None, self.front_looks_begun)

    def is_look_back_due(self, now: datetime.datetime, *, comes_late: bool = True) -> bool:
        """Whether the next look is one from further back."""
        return self._is_front_look_due(now) or (comes_late and self._is_late_look_due(now))

    def is_scout_due(self, now: datetime.datetime) -> bool:
        """Whether somebody is to look from the front, beside the claims."""
        return self.front_took >= COSTLY and now - self.front_look_at >= self.front_look_every

    def _is_front_look_due(self, now: datetime.datetime) -> bool:
        is_set_back = now < self.front_look_at or max(self.horizon) > now + LATE_LOOK_INTERVAL  # the database's clock
        patience = SCOUT_PATIENCE if self.front_took >= COSTLY else datetime.timedelta(0)
        return is_set_back or now - self.front_look_at >= self.front_look_every + patience

    def _is_late_look_due(self, now: datetime.datetime) -> bool:
        return now - self.late_look_at >= self.late_look_every

    def is_heard(self, look: Look) -> bool:
        """Whether a look that has ended has a say in where the next ones begin. After one from the front all begin anew."""
        if look.front_look > self.front_look:  # one that a place which was forgotten since began counts on as well
            self.front_look, self.horizon = look.front_look, [BEGINNING] * PRIORITIES
        return look.front_look == self.front_look

    def gone(self, look: Look, until: Mapping[int, datetime.datetime]) -> None:
        if self.is_heard(look):
            for priority, run_at in until.items():
                self.horizon[priority - 1] = max(self.horizon[priority - 1], run_at)

    def left(self, look: Look, until: Mapping[int, datetime.datetime]) -> None:
        """The same of one that had more in its hands than it took. Others may have passed that over, and have no say."""
        self.front_looks_begun = self.front_look = max(self.front_looks_begun, self.front_look) + 1
        margin = look.margin or datetime.timedelta(0)
        for place, since in enumerate(look.since):
            self.horizon[place] = min(self.horizon[place], max(since + margin, until.get(place + 1, BEGINNING)))

    def looked(
        self,
        look: Look,
        took: datetime.timedelta,
        empty_until: datetime.datetime | None = None,
        *,
        in_vain: bool = False,
    ) -> None:
        if look.margin is None:
            # One that took long may have waited for a processor, and tells nothing before the next one did too.
            every = (min(took, self.front_took) - self.usual) / SHARE
            self.front_look_every = min(max(FRONT_LOOK_INTERVAL, every), FRONT_LOOK_INTERVAL_MAX)
            self.front_took = took
        elif look.margin is LATE:
            every = (took - self.usual) / SHARE
            self.late_look_every = min(max(LATE_LOOK_INTERVAL, every), LATE_LOOK_INTERVAL_MAX)
        else:
            self.usual += (took - self.usual) / 10
        # To find that out again would cost as much.
        if self.is_heard(look) and empty_until is not None and took >= COSTLY:
            self.horizon = [max(time, empty_until) for time in self.horizon]
        if in_vain and look.margin is LATE:  # the next one has to find again what came late
            self.late_look_at = BEGINNING

    def broken_off(self, look: Look, took: datetime.timedelta, now: datetime.datetime) -> None:
        """Others would come no further either. They take what came of late, and a scout, with more time, finds the rest."""
        if look.margin is None and took >= BROKEN_OFF:
            self.horizon = [max(time, now - LATE) for time in self.horizon]
            self.front_took, self.front_look_at = took, now - self.front_look_every


class ClaimHorizons:
    def __init__(self) -> None:
        self._places: dict[tuple[uuid.UUID, str | uuid.UUID], _Place] = {}
        self._emptied: dict[Hashable, tuple[int, float]] = {}
        self._told: tuple[datetime.datetime, float] | None = None
        self._to_scout: set[tuple[uuid.UUID, str]] = set()
        self._lanes: dict[uuid.UUID, str] = {}
        self._tokens: dict[tuple[uuid.UUID, str], float] = {}

    def about_now(self) -> datetime.datetime:
        """What the database's clock may show, as good as this process knows without asking."""
        if self._told is None:
            return BEGINNING
        told, at = self._told
        return told + datetime.timedelta(seconds=time.monotonic() - at)

    @property
    def is_clock_known(self) -> bool:
        return self._told is not None

    def told(self, now: datetime.datetime) -> None:
        """What it did show."""
        self._told = now, time.monotonic()

    def emptied(self, whose: Hashable, rings: int) -> None:
        """A claim took all there was; before it looked, the bell had rung so often."""
        if len(self._emptied) >= PLACES_MAX:
            self._emptied.clear()
        self._emptied[whose] = rings, time.monotonic()

    def empty_for_s(self, whose: Hashable, rings: int) -> float:
        """For how long such a claim need not look again: nothing rang since it took all there was."""
        rings_then, at = self._emptied.get(whose, (-1, 0.0))
        return max(0.0, at + EMPTIED_S - time.monotonic()) if rings_then == rings else 0.0

    def is_look_back_due(self, tenant_id: uuid.UUID, worker_id: uuid.UUID, queues: Iterable[str]) -> bool:
        """Whether the next claim of a worker looks from further back, in one of its queues or among its leases."""
        now = self.about_now()
        return self._place(tenant_id, worker_id).is_look_back_due(now, comes_late=False) or any(
            self._place(tenant_id, queue).is_look_back_due(now) for queue in queues
        )

    def is_first_to_wait(self, tenant_id: uuid.UUID, queue: str, token_in_s: float) -> bool:
        """Whether no other claim of this process waits until a queue's rate allows the next job: one of them is enough."""
        now = time.monotonic()
        if self._tokens.get((tenant_id, queue), now) > now:
            return False
        if len(self._tokens) >= PLACES_MAX:
            self._tokens.clear()
        self._tokens[tenant_id, queue] = now + token_in_s
        return True

    def look(self, tenant_id: uuid.UUID, queue: str, now: datetime.datetime) -> Look:
        """Where a claim of a queue begins."""
        place = self._place(tenant_id, queue)
        if place.is_scout_due(now):
            self._to_scout.add((tenant_id, queue))
        return place.look(now)

    def next_to_scout(self) -> tuple[uuid.UUID, str] | None:
        """A tenant's queue in which a scout is to look from the front, if there is one. Each is told once."""
        return self._to_scout.pop() if self._to_scout else None

    def scout(self, tenant_id: uuid.UUID, queue: str) -> Look:
        """The look that a scout is about to have."""
        return self._place(tenant_id, queue).look_from_the_front(self.about_now())

    def scouted(
        self, tenant_id: uuid.UUID, queue: str, look: Look, took_s: float,
        due: Iterable[datetime.datetime | None], moment: datetime.datetime,
    ) -> None:  # fmt: skip
        """When the first job of each priority that it saw was to run; None: it saw none that was due at this moment."""
        place = self._place(tenant_id, queue)
        place.looked(look, datetime.timedelta(seconds=took_s))
        place.gone(look, {level: run_at or moment for level, run_at in enumerate(due, 1)})

    def broken_off(self, tenant_id: uuid.UUID, queue: str, look: Look, took_s: float) -> None:
        """A claim has failed after so long."""
        self._place(tenant_id, queue).broken_off(look, datetime.timedelta(seconds=took_s), self.about_now())

    def claimed(self, tenant_id: uuid.UUID, queue: str, look: Look, until: Mapping[int, datetime.datetime]) -> None:
        """What was to run before these times, of some priorities, is gone: it was given out."""
        self._place(tenant_id, queue).gone(look, until)

    def left(self, tenant_id: uuid.UUID, queue: str, look: Look, until: Mapping[int, datetime.datetime]) -> None:
        """The same of a claim that took no more because it was large: what it has left it kept from others."""
        self._place(tenant_id, queue).left(look, until)

    def fitting(self, tenant_id: uuid.UUID, queues: Iterable[str], limit: int) -> int:
        """How many jobs a claim asks for, at the most: it keeps from others what it has in its hands and does not take."""
        known = [self._place(tenant_id, queue).fitting for queue in queues]
        return min([limit, *(count for count in known if count is not None)])

    def fitted(self, tenant_id: uuid.UUID, queue: str, count: int, *, is_cut: bool) -> None:
        """How many a claim took, and whether it took no more because they are large."""
        place = self._place(tenant_id, queue)
        if is_cut:
            place.fitting = count + count // 4 + 1
        elif place.fitting is not None and count >= place.fitting:
            place.fitting = 2 * count

    def looked(
        self, tenant_id: uuid.UUID, queue: str, look: Look, took_s: float, empty_until: datetime.datetime | None,
        *, in_vain: bool = False,
    ) -> None:  # fmt: skip
        """How long it took; up to when nothing is left, if nothing is; and whether nothing might be taken of what was found."""
        took = datetime.timedelta(seconds=took_s)
        self._place(tenant_id, queue).looked(look, took, empty_until, in_vain=in_vain)

    def lane(self, tenant_id: uuid.UUID) -> str:
        """After which lane the next look at a tenant's waiting tasks begins."""
        return self._lanes.get(tenant_id, FIRST_LANE)

    def looked_until(self, tenant_id: uuid.UUID, lane: str) -> None:
        """After which lane a look has ended; FIRST_LANE: it has come to the last one."""
        if len(self._lanes) >= PLACES_MAX:
            self._lanes.clear()
        self._lanes[tenant_id] = lane
        if lane == FIRST_LANE:
            del self._lanes[tenant_id]

    def look_at_leases(self, tenant_id: uuid.UUID, worker_id: uuid.UUID, now: datetime.datetime) -> Look:
        """No lease of a worker that it still holds began before the first of its times.

        None comes behind another: they begin under a lock that is held until they are committed. A clock that is set back by
        less than is noticed here is not followed by claims (`mcp.claim_jobs`).
        """
        return self._place(tenant_id, worker_id).look(now, comes_late=False)

    def oldest_lease(
        self, tenant_id: uuid.UUID, worker_id: uuid.UUID, look: Look, took_s: float, began_at: datetime.datetime
    ) -> None:
        """How long it took to find out when the oldest lease began of those that a worker holds now."""
        place = self._place(tenant_id, worker_id)
        place.looked(look, datetime.timedelta(seconds=took_s))
        if place.is_heard(look):
            place.horizon[0] = began_at

    def _place(self, tenant_id: uuid.UUID, what: str | uuid.UUID) -> _Place:
        found = self._places.get((tenant_id, what))
        if found is None:
            if len(self._places) >= PLACES_MAX:
                self._places.clear()
            found = self._places[tenant_id, what] = _Place()
        return found
