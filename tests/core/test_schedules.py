"""When schedules fire, held against a plain count of their times."""

from __future__ import annotations

import datetime
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmesh.core import schedules
from devmesh.core.schedules import FIRED_AT_ONCE_MAX, Missed, Timing, TimingUnusable, fire

BEGIN = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
# When an hour is left out, or comes twice, in Berlin, New York and on Lord Howe, where it is half an hour.
CHANGES = [
    datetime.datetime.fromisoformat(f"2026-{rest}Z")
    for rest in ("03-29T01:00", "10-25T01:00", "03-08T07:00", "11-01T06:00", "04-04T15:00", "10-03T15:30")
]
moments = st.datetimes(
    datetime.datetime(2026, 3, 1),  # noqa: DTZ001
    datetime.datetime(2026, 11, 30),  # noqa: DTZ001
    timezones=st.just(datetime.UTC),
) | st.builds(
    lambda change, off_s: change + datetime.timedelta(seconds=off_s),
    st.sampled_from(CHANGES),
    st.integers(-3 * 3600, 3 * 3600),
)
timings = st.builds(
    Timing,
    st.sampled_from(
        [
            "* * * * *",
            "*/20 * * * * *",
            "*/7 * * * *",
            "0 * * * *",
            "30 2 * * *",
            "15 1-3 * * *",
            "30 */2 * * *",
            "45 1 * * *",
            "0 9 * * 1-5",
            "0 0 29 * *",
            "30 15 10 * * *",
            "20 */2 * * *",
            "0 45 1 * * *",
            "0 20 6 * * *",
            "0 15 2,20 * * *",
        ]
    ),
    st.none(),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]),
    st.just(BEGIN),
    st.none(),
) | st.builds(Timing, st.none(), st.floats(1, 100_000), st.just("UTC"), st.just(BEGIN), st.none())


@given(timings, moments)
def test_times_rise_and_the_latest_is_the_one_before_the_next(timing: Timing, moment: datetime.datetime) -> None:
    timing.check()
    times = list(itertools.islice(timing.after(moment), 5))
    assert times == sorted(set(times))
    assert all(time > moment for time in times)
    for earlier, later in itertools.pairwise(times):
        assert timing.latest_until(later) == later
        assert timing.latest_until(later - datetime.timedelta(microseconds=1)) == earlier
        assert timing.next_after(earlier) == later


@given(timings, moments, st.integers(0, 30), st.sampled_from(Missed), st.floats(0, 100_000), st.floats(0, 3_600))
def test_every_time_until_now_is_fired_or_missed(
    timing: Timing, moment: datetime.datetime, gone: int, missed: Missed, later_s: float, grace_s: float
) -> None:
    times = list(itertools.islice(timing.after(moment), gone + 2))
    due, last = times[0], times[gone]
    now = min(last + datetime.timedelta(seconds=later_s), times[gone + 1] - datetime.timedelta(microseconds=1))
    firing = fire(timing, due, now, missed, grace_s)
    assert firing.next_fire_at == times[gone + 1]
    assert len(firing.times) + firing.missed == gone + 1
    if missed is Missed.ALL or now - due <= datetime.timedelta(seconds=grace_s):
        assert firing.times == times[: gone + 1]
    else:
        is_on_time = now - last <= datetime.timedelta(seconds=grace_s)
        assert firing.times == ([last] if missed is Missed.ONCE or is_on_time else [])


def test_a_long_absence_is_bounded_and_the_latest_time_is_never_left_out() -> None:
    timing = Timing(None, 1.0, "UTC", BEGIN, None)
    now = BEGIN + datetime.timedelta(days=30)
    firing = fire(timing, BEGIN, now, Missed.ALL, 60)
    assert len(firing.times) == FIRED_AT_ONCE_MAX
    assert firing.times[-1] == now
    assert fire(timing, BEGIN, now, Missed.ONCE, 60).times == [now]


@pytest.mark.parametrize(
    ("timing", "apart_s", "count"),
    [
        (Timing(None, 1.0, "UTC", BEGIN, None), 1, 86_400 * 3 + 1),
        (Timing(None, 7.5, "UTC", BEGIN, None), 7.5, 34_561),
        (Timing("* * * * *", None, "Europe/Berlin", BEGIN, None), 60, 4_321),
        (Timing("*/5 * * * * *", None, "UTC", BEGIN, None), 5, 10_001),
    ],
)
def test_of_more_times_than_are_counted_the_latest_thousand_have_jobs(
    timing: Timing, apart_s: float, count: int
) -> None:
    due, now = BEGIN, BEGIN + datetime.timedelta(days=3)
    firing = fire(timing, due, now, Missed.ALL, 60)
    assert firing.times == [now - datetime.timedelta(seconds=apart_s * ago) for ago in reversed(range(1_000))]
    assert firing.missed == count - 1_000
    assert fire(timing, due, now, Missed.SKIP, 60) == (firing.times[-1:], count - 1, firing.next_fire_at)


@pytest.mark.parametrize("cron", ["* * * * * *", "* * * * *"])
@pytest.mark.parametrize("change", CHANGES)
def test_around_a_change_of_the_clock_no_more_is_looked_at_than_there_is(
    monkeypatch: pytest.MonkeyPatch, cron: str, change: datetime.datetime
) -> None:
    looked_at = 0

    class Counted(schedules.Calendar):
        def __next__(self) -> datetime.datetime:
            nonlocal looked_at
            looked_at += 1
            return super().__next__()

    monkeypatch.setattr(schedules, "Calendar", Counted)
    timing = Timing(cron, None, "Europe/Berlin", BEGIN, None)
    now = change + datetime.timedelta(minutes=90)
    firing = fire(timing, now - datetime.timedelta(seconds=50 * 60), now, Missed.ALL, 60)
    assert len(firing.times) + firing.missed == (3_001 if cron.count("*") == 6 else 51)
    assert looked_at < 5 * (len(firing.times) + firing.missed)


@pytest.mark.parametrize(
    ("cron", "interval_s"), [("0 0 1 1 *", None), ("0 0 * * *", None), (None, 366 * 86_400.0), (None, 86_400.0)]
)
def test_times_end_with_the_calendar(cron: str | None, interval_s: float | None) -> None:
    timing = Timing(cron, interval_s, "UTC", datetime.datetime(9998, 1, 1, tzinfo=datetime.UTC), None)
    timing.check()
    late = datetime.datetime(9999, 12, 30, tzinfo=datetime.UTC)
    assert timing.next_after(BEGIN) is not None
    assert all(time > late for time in timing.after(late))


def test_nothing_fires_after_the_end() -> None:
    timing = Timing("0 * * * *", None, "UTC", BEGIN, BEGIN + datetime.timedelta(hours=3))
    assert len(list(timing.after(BEGIN))) == 3
    firing = fire(timing, BEGIN + datetime.timedelta(hours=1), BEGIN + datetime.timedelta(days=1), Missed.ALL, 60)
    assert (len(firing.times), firing.next_fire_at) == (3, None)


def test_wall_clock_times_go_with_the_zone() -> None:
    timing = Timing("30 2 * * *", None, "Europe/Berlin", BEGIN, None)
    march = timing.after(datetime.datetime(2026, 3, 28, 12, tzinfo=datetime.UTC))
    assert [time.isoformat() for time in itertools.islice(march, 2)] == [
        "2026-03-29T01:00:00+00:00",  # there is no half past two that night: it is three o'clock
        "2026-03-30T00:30:00+00:00",
    ]
    october = timing.after(datetime.datetime(2026, 10, 24, 12, tzinfo=datetime.UTC))
    assert [time.isoformat() for time in itertools.islice(october, 2)] == [
        "2026-10-25T00:30:00+00:00",  # there are two of them: it is the first
        "2026-10-26T01:30:00+00:00",
    ]


@pytest.mark.parametrize(
    ("zone", "cron", "begin", "times"),
    [
        ("Lord_Howe", "20 */2 * * *", "2026-04-04T12:00Z", ["04-04T13:20", "04-04T15:50", "04-04T17:50"]),
        ("Lord_Howe", "0 20 6 * * *", "2026-04-03T12:00Z", ["04-03T19:20", "04-04T19:50", "04-05T19:50"]),
        ("Lord_Howe", "0 45 1 * * *", "2026-10-02T12:00Z", ["10-02T15:15", "10-03T15:15", "10-04T14:45"]),
        ("Lord_Howe", "0 20 6 * * *", "2026-10-02T12:00Z", ["10-02T19:50", "10-03T19:20", "10-04T19:20"]),
        ("Lord_Howe", "54 * * * *", "2028-04-01T14:00Z", ["04-01T14:54", "04-01T15:24", "04-01T16:24"]),
        ("Chatham", "0 50 3 * * *", "2027-04-03T12:00Z", ["04-03T15:05", "04-04T15:05", "04-05T15:05"]),
        ("Chatham", "*/15 3-5 * * *", "2027-04-03T13:50Z", ["04-03T14:15", "04-03T14:30", "04-03T14:45"]),
    ],
)
def test_a_clock_that_is_not_changed_by_or_at_an_hour_hides_no_time(
    zone: str, cron: str, begin: str, times: list[str]
) -> None:
    timing = Timing(cron, None, f"{'Australia' if zone == 'Lord_Howe' else 'Pacific'}/{zone}", BEGIN, None)
    found = list(itertools.islice(timing.after(datetime.datetime.fromisoformat(begin)), 3))
    assert [f"{time:%m-%dT%H:%M}" for time in found] == times
    for earlier, later in itertools.pairwise(found):
        for later_s in range(0, int((later - earlier).total_seconds()), 600):
            assert timing.latest_until(earlier + datetime.timedelta(seconds=later_s)) == earlier
    assert fire(timing, found[1], found[1] + datetime.timedelta(minutes=10), Missed.ONCE, 60).times == [found[1]]


@pytest.mark.parametrize(
    ("cron", "interval_s", "zone", "field"),
    [
        (None, None, "UTC", "cron"),
        ("* * * * *", 5.0, "UTC", "cron"),
        ("61 * * * *", None, "UTC", "cron"),
        ("* * * *", None, "UTC", "cron"),
        ("0 0 31 2 *", None, "UTC", "cron"),
        ("\u0665 * * * *", None, "UTC", "cron"),
        ("0 0 29 2 *", None, "UTC", "cron"),
        ("* * * * *", None, "Mars/Olympus", "time_zone"),
        ("* * * * *", None, "../etc/passwd", "time_zone"),
    ],
)
def test_what_never_fires_is_refused_by_field(
    cron: str | None, interval_s: float | None, zone: str, field: str
) -> None:
    begin = datetime.datetime(9998, 6, 1, tzinfo=datetime.UTC) if cron == "0 0 29 2 *" else BEGIN
    with pytest.raises(TimingUnusable) as refused:
        Timing(cron, interval_s, zone, begin, None).check()
    assert refused.value.field == field
    if cron == "* * * *":
        assert "minute hour day month weekday" in str(refused.value)
