"""When a schedule fires, and what becomes of the times at which nobody was there to see it.

Pure: must not know rows or clocks.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import enum
import itertools
import math
import zoneinfo
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cronsim import CronSim, CronSimError

INTERVAL_S_MIN = 1.0
INTERVAL_S_MAX = 366 * 86_400.0
FIRED_AT_ONCE_MAX = 1_000  # jobs for times that were missed
COUNTED_MAX = 10_000  # times of a cron expression that were missed: each has to be looked for
UNEVEN = datetime.timedelta(hours=25)  # around a change of the clock
GRACE_S = 60.0  # how late a schedule fires that is on time, unless a service's settings say otherwise
WINDOW, WIDER = datetime.timedelta(minutes=1), 4  # the latest times are looked for in as little as holds them
REPEATED = datetime.timedelta(hours=3)  # more than any clock was ever set back by for summer time
OF_THE_MACHINE = ("localtime", "posixrules")  # what these files of a time zone say is a setting of the machine


class Missed(enum.StrEnum):
    """What becomes of times that have gone by unseen."""

    SKIP = "skip"
    ONCE = "once"  # one job for all of them
    ALL = "all"


class TimingUnusable(ValueError):
    """Says what is wrong with it, and of which field."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


CRON_FIELDS = "minute hour day month weekday, perhaps with a second before them"


class Calendar(CronSim):
    """By itself it steps over hours and minutes as if each hour had sixty: near a change by half an hour, as on Lord Howe, that
    leaves times out, and near one that is not on the hour, as on Chatham, it goes back and never ends. There each minute is
    looked at.
    """

    def advance_hour(self) -> bool:
        return self._to_hour(super().advance_hour)

    def reverse_hour(self) -> bool:
        return self._to_hour(super().reverse_hour)

    def advance_minute(self) -> bool:
        return self._to_minute(super().advance_minute)

    def reverse_minute(self) -> bool:
        return self._to_minute(super().reverse_minute)

    def _to_hour(self, by_hours: Callable[[], bool]) -> bool:
        """Goes on to an hour that is asked for, or to another day. Whether it had to."""
        if self.dt.hour in self.hours:
            return False
        if not self._is_uneven():
            return by_hours()
        day = self.dt.date()
        while self.dt.hour not in self.hours and self.dt.date() == day:
            self._go_a_minute()
        return True

    def _to_minute(self, by_minutes: Callable[[], bool]) -> bool:
        """The same within an hour."""
        if self.dt.minute in self.minutes:
            return False
        if not self._is_uneven():
            return by_minutes()
        hour = self.dt.date(), self.dt.hour
        while self.dt.minute not in self.minutes and (self.dt.date(), self.dt.hour) == hour:
            self._go_a_minute()
        return True

    def _is_uneven(self) -> bool:
        """Whether the clock is changed within a day, which is as far as it goes in one step."""
        zone = self.dt.tzinfo
        if zone is None:
            return False
        at = self.dt.astimezone(datetime.UTC)
        before, after = ((at + sign * UNEVEN).astimezone(zone).utcoffset() for sign in (-1, 1))
        return before != after

    def _go_a_minute(self) -> None:
        self.tick(60 - self.dt.second if self.tick_direction > 0 else self.dt.second + 1)


class Timing(NamedTuple):
    """Either `cron`, read in a time zone, or `interval_s`, counted from `starts_at`. Nothing fires after `ends_at`."""

    cron: str | None
    interval_s: float | None
    time_zone: str
    starts_at: datetime.datetime
    ends_at: datetime.datetime | None

    def check(self) -> None:
        """Raises TimingUnusable."""
        if (self.cron is None) == (self.interval_s is None):
            raise TimingUnusable("cron", "give either cron or interval_s")
        _ = self.zone
        if self.time_zone in OF_THE_MACHINE:
            message = f"{self.time_zone!r} is another time zone on each machine; use a name like Europe/Berlin"
            raise TimingUnusable("time_zone", message)
        if self.cron is not None:
            try:
                next(Calendar(self.cron, self.starts_at))
            except (CronSimError, ValueError) as problem:
                message = f"{self.cron!r} is no cron expression ({CRON_FIELDS}): {problem}"
                raise TimingUnusable("cron", message) from None
            except (StopIteration, OverflowError):  # it is looked for in fifty years, and up to the year 9999
                raise TimingUnusable("cron", f"{self.cron!r} never fires") from None

    @property
    def zone(self) -> zoneinfo.ZoneInfo:
        """Raises TimingUnusable. A name that was known when the schedule was made may not be so on each machine."""
        try:
            return zoneinfo.ZoneInfo(self.time_zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            message = f"there is no time zone {self.time_zone!r}; use a name like Europe/Berlin"
            raise TimingUnusable("time_zone", message) from None

    def after(self, moment: datetime.datetime) -> Iterator[datetime.datetime]:
        """The times after one, in UTC."""
        return itertools.takewhile(self._is_within, self._times(moment))

    def next_after(self, moment: datetime.datetime) -> datetime.datetime | None:
        return next(self.after(moment), None)

    def latest_until(self, moment: datetime.datetime) -> datetime.datetime | None:
        """The last time that is not after one."""
        moment = min(moment, self.ends_at) if self.ends_at is not None else moment
        if self.interval_s is not None:
            steps = self._steps_until(moment)
            return self._step(steps) if steps >= 0 else None
        assert self.cron is not None
        found = self._last_of_cron(moment)
        return found if found is not None and found >= self.starts_at else None

    def count_between(self, first: datetime.datetime, last: datetime.datetime) -> int:
        """How many times there are from one to another, both among them; of a cron expression up to a number."""
        if self.interval_s is not None:
            return max(self._steps_until(last) - self._steps_until(first), 0) + 1
        later = itertools.takewhile(lambda time: time <= last, itertools.islice(self.after(first), COUNTED_MAX))
        return 1 + sum(1 for _ in later)

    def latest_between(self, count: int, first: datetime.datetime, last: datetime.datetime) -> list[datetime.datetime]:
        """The latest of the times from one to another, so many, in order."""
        if last <= first:
            return [last]
        window = WINDOW
        while last - window > first:
            if len(found := self._within(last - window, last, count)) == count:
                return found
            window *= WIDER
        return [first, *self._within(first, last, count)][-count:]

    def _last_of_cron(self, moment: datetime.datetime) -> datetime.datetime | None:
        assert self.cron is not None
        zone = self.zone
        early, late = (each.astimezone(zone) for each in (moment - REPEATED, moment + REPEATED))
        if early.utcoffset() == late.utcoffset():
            just_after = (moment + datetime.timedelta(microseconds=1)).astimezone(zone)
            found = next(Calendar(self.cron, just_after, reverse=True), None)
            return found.astimezone(datetime.UTC) if found is not None else None
        # Where a clock is set back some time comes twice, and times do not go back in order: these are gone through forwards.
        window = WINDOW
        while not (times := self._within(moment - window, moment, 1)) and window < 2 * REPEATED:
            window *= WIDER
        return times[0] if times else self._last_of_cron(moment - window)

    def _within(self, begin: datetime.datetime, last: datetime.datetime, count: int) -> list[datetime.datetime]:
        """The latest of the times after one and until another, so many, in order."""
        return list(collections.deque(itertools.takewhile(lambda time: time <= last, self._times(begin)), maxlen=count))

    def _times(self, moment: datetime.datetime) -> Iterator[datetime.datetime]:
        with contextlib.suppress(OverflowError):  # the calendar is at its end
            yield from self._times_of_calendar(moment)

    def _times_of_calendar(self, moment: datetime.datetime) -> Iterator[datetime.datetime]:
        if self.interval_s is not None:
            yield from (self._step(steps) for steps in itertools.count(max(self._steps_until(moment) + 1, 0)))
            return
        assert self.cron is not None
        begin = max(moment, self.starts_at - datetime.timedelta(microseconds=1))
        for time in Calendar(self.cron, begin.astimezone(self.zone)):
            if (at := time.astimezone(datetime.UTC)) > begin:  # in an hour that comes twice it may be the first one's
                yield at
                begin = at

    def _steps_until(self, moment: datetime.datetime) -> int:
        """The number of the last step that is not after a moment; times are rounded to microseconds, so it is looked at."""
        assert self.interval_s is not None
        steps = math.floor((moment - self.starts_at).total_seconds() / self.interval_s) + 1
        while self._step(steps) > moment:
            steps -= 1
        return steps

    def _step(self, steps: int) -> datetime.datetime:
        assert self.interval_s is not None
        return self.starts_at + datetime.timedelta(seconds=steps * self.interval_s)

    def _is_within(self, moment: datetime.datetime) -> bool:
        return self.ends_at is None or moment <= self.ends_at


class Firing(NamedTuple):
    """`times` for each of which a job is enqueued, how many more have gone by, and when it fires next."""

    times: list[datetime.datetime]
    missed: int
    next_fire_at: datetime.datetime | None


def fire(timing: Timing, due_at: datetime.datetime, now: datetime.datetime, missed: Missed, grace_s: float) -> Firing:
    """What is to be done at `now` for a schedule that was due at `due_at`.

    None is missed when the first of the times until now is no older than the grace: a pass that comes late by two intervals
    finds two. Otherwise all are but the latest, which is on time if it is no older than the grace. Of more that are to have
    jobs a thousand have them, the latest; and no more than 10,000 are counted of a cron expression.
    """
    grace = datetime.timedelta(seconds=grace_s)
    latest = max(timing.latest_until(now) or due_at, due_at)
    count = timing.count_between(due_at, latest)
    if missed is Missed.ALL or now - due_at <= grace:
        fired = timing.latest_between(min(count, FIRED_AT_ONCE_MAX), due_at, latest)
    elif missed is Missed.ONCE or now - latest <= grace:
        fired = [latest]
    else:
        fired = []
    return Firing(fired, count - len(fired), timing.next_after(now))
