"""Where claims begin to look: near the last one, and often enough from further back that nothing stays passed over."""

from __future__ import annotations

import datetime
import random
import time
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmesh.store import claim_horizons
from devmesh.store.claim_horizons import (
    BEGINNING,
    EMPTIED_S,
    FIRST_LANE,
    FRONT_LOOK_INTERVAL,
    FRONT_LOOK_INTERVAL_MAX,
    LATE,
    LATE_LOOK_INTERVAL,
    LATE_LOOK_INTERVAL_MAX,
    MARGIN,
    SCOUT_PATIENCE,
    ClaimHorizons,
    Look,
)

TENANT, QUEUE = uuid.uuid4(), "q"
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def seconds(number: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=number)


class Claims:
    """Claims that find a job of this very moment each time, and perhaps a scout, who finds the last of them."""

    def __init__(self, *, has_scout: bool = True) -> None:
        self.horizons, self.now, self.has_scout = ClaimHorizons(), START, has_scout
        self.front_at = START

    def claim(self, after_s: float, took_s: float = 0.001, *, is_empty: bool = False) -> datetime.datetime:
        """Since when it looked for jobs of priority 3. From further back it takes so long; otherwise a millisecond."""
        last, self.now = self.now, self.now + seconds(after_s)
        self.horizons.told(self.now)
        look = self.horizons.look(TENANT, QUEUE, self.now)
        if look.margin is None:
            self.front_at = self.now
        if not is_empty:
            self.horizons.claimed(TENANT, QUEUE, look, {3: self.now})
        is_far = last - look.since[2] > MARGIN
        self.horizons.looked(TENANT, QUEUE, look, took_s if is_far else 0.001, self.now if is_empty else None)
        if self.has_scout and self.horizons.next_to_scout():
            self.front_at = self.now
            self.horizons.scouted(TENANT, QUEUE, self.horizons.scout(TENANT, QUEUE), took_s, [self.now] * 5, self.now)
        return look.since[2]

    def behind(self, for_s: float, took_s: float) -> Iterator[datetime.timedelta]:
        """How far behind the last claim each began, ten times a second."""
        for _ in range(round(for_s * 10)):
            last = self.now
            yield last - self.claim(0.1, took_s)


def test_the_first_claim_looks_from_the_front_and_the_next_from_just_behind_it() -> None:
    claims = Claims()
    assert claims.claim(0) == BEGINNING
    assert claims.claim(0.1) == START - MARGIN


def test_what_was_committed_late_is_looked_for_every_second_and_everything_every_ten() -> None:
    claims = Claims()
    claims.claim(0)
    behind = list(claims.behind(60, took_s=0.001))
    assert sum(each == LATE for each in behind) == pytest.approx(60 / LATE_LOOK_INTERVAL.total_seconds(), abs=8)
    assert sum(each > LATE for each in behind) == pytest.approx(60 / FRONT_LOOK_INTERVAL.total_seconds(), abs=1)


@given(st.integers(0, 1 << 32), st.sampled_from([0.01, 1, 30]), st.booleans())
def test_whatever_looks_cost_they_come_from_further_back_often_enough(
    seed: int, took_s_max: float, has_scout: bool
) -> None:
    chance = random.Random(seed)
    claims = Claims(has_scout=has_scout)
    patience = seconds(0) if has_scout else SCOUT_PATIENCE
    claims.claim(0)
    late_at = claims.now
    for _ in range(300):
        after_s, took_s, is_empty = chance.uniform(0.01, 4), chance.uniform(0, took_s_max), chance.random() < 0.5
        since = claims.claim(after_s, took_s, is_empty=is_empty)
        if since <= claims.now - seconds(after_s) - LATE:
            late_at = claims.now
        late_at = max(late_at, claims.front_at)
        assert claims.now - late_at <= LATE_LOOK_INTERVAL_MAX + seconds(after_s)
        assert claims.now - claims.front_at <= FRONT_LOOK_INTERVAL_MAX + patience + seconds(after_s)


def begun(horizons: ClaimHorizons, after_s: float) -> Look:
    return horizons.look(TENANT, QUEUE, START + seconds(after_s))


def ended(
    horizons: ClaimHorizons, look: Look, found: datetime.datetime, *, is_empty: bool = False, front_s: float = 0.001
) -> None:
    """A claim has ended that found a job of this time, or nothing until then. Not from the front, it cost much."""
    horizons.claimed(TENANT, QUEUE, look, {} if is_empty else {3: found})
    took_s = front_s if look.margin is None else 0.1
    horizons.looked(TENANT, QUEUE, look, took_s, found if is_empty else None)


@pytest.mark.parametrize("is_empty", [False, True])
def test_claims_that_began_before_a_look_from_the_front_has_ended_do_not_hide_what_it_found(is_empty: bool) -> None:
    horizons, old = ClaimHorizons(), START - seconds(100)
    ended(horizons, begun(horizons, 0), START)
    before, front, meanwhile = begun(horizons, 9), begun(horizons, 11), begun(horizons, 11.1)
    assert (front.margin, front.since[2]) == (None, BEGINNING)
    assert meanwhile.since[2] == START - MARGIN, "one at a time looks from the front, which may take long"
    ended(horizons, front, old)
    for look in (before, meanwhile):
        ended(horizons, look, START + seconds(11), is_empty=is_empty)
    after = begun(horizons, 11.2)
    assert after.since[2] == old - MARGIN
    ended(horizons, after, START + seconds(11), is_empty=is_empty)
    assert begun(horizons, 11.3).since[2] == START + seconds(11) - MARGIN


def test_an_older_look_from_the_front_that_ends_after_a_newer_one_has_no_say() -> None:
    horizons = ClaimHorizons()
    older, newer = begun(horizons, 0), begun(horizons, 11)
    assert older.margin is newer.margin is None
    ended(horizons, newer, START - seconds(100))
    ended(horizons, older, START)
    assert begun(horizons, 11.1).since[2] == START - seconds(100) - MARGIN


def test_a_look_of_a_place_that_was_forgotten_since_silences_no_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    horizons = ClaimHorizons()
    _, second = begun(horizons, 0), begun(horizons, 11)
    monkeypatch.setattr(claim_horizons, "PLACES_MAX", 1)
    horizons.look(TENANT, "other", START)
    ended(horizons, second, START + seconds(11))
    ended(horizons, begun(horizons, 22), START + seconds(22))
    assert begun(horizons, 22.1).since[2] == START + seconds(22) - MARGIN


@given(st.integers(0, 1 << 32))
def test_whatever_overlaps_what_a_look_from_the_front_found_is_found_by_the_next_claim(seed: int) -> None:
    chance, horizons, now_s = random.Random(seed), ClaimHorizons(), 0.0
    under_way: list[tuple[Look, bool]] = []  # each with whether it began after the latest look from the front had ended
    found: datetime.datetime | None = None  # by that look; None: a claim that knew of it has gone on from there
    for _ in range(200):
        now_s += chance.uniform(0, 4)
        look = begun(horizons, now_s)
        assert found is None or look.since[2] <= found
        under_way.append((look, True))
        while len(under_way) > chance.randrange(8):
            look, is_after = under_way.pop(chance.randrange(len(under_way)))
            if look.margin is None and is_after:
                found = START + seconds(now_s) - seconds(chance.uniform(0, 200))
                ended(horizons, look, found)
                under_way = [(other, other.front_look > look.front_look) for other, _ in under_way]
            else:
                ended(horizons, look, START + seconds(now_s), is_empty=chance.random() < 0.5)
                found = None if is_after else found


def test_a_worker_whose_oldest_lease_was_found_from_the_front_is_looked_at_from_there() -> None:
    horizons, worker_id = ClaimHorizons(), uuid.uuid4()
    before, front = (horizons.look_at_leases(TENANT, worker_id, START + seconds(after_s)) for after_s in (0, 11))
    horizons.oldest_lease(TENANT, worker_id, front, 0.001, START - seconds(100))
    horizons.oldest_lease(TENANT, worker_id, before, 0.001, START)
    after = horizons.look_at_leases(TENANT, worker_id, START + seconds(11.1))
    assert after.since[0] == START - seconds(100) - MARGIN


def test_what_a_claim_has_left_is_found_whatever_those_that_passed_it_over_say_before_and_after() -> None:
    horizons = ClaimHorizons()
    first, front, between, last = (
        horizons.look(TENANT, QUEUE, START + seconds(after_s)) for after_s in (0, 10, 10, 10.1)
    )
    horizons.claimed(TENANT, QUEUE, first, {3: START - seconds(100), 5: START - seconds(100)})
    for before in (between, front):
        horizons.claimed(TENANT, QUEUE, before, {3: START + seconds(9)})
    horizons.left(TENANT, QUEUE, between, {3: START - seconds(50)})
    horizons.claimed(TENANT, QUEUE, last, {3: START + seconds(9)})
    since = horizons.look(TENANT, QUEUE, START + seconds(10.2)).since
    assert since[2] == START - seconds(50) - MARGIN
    assert since[4] == BEGINNING + LATE - MARGIN


def test_a_claim_asks_for_about_as_many_as_fitted_into_the_last_one_and_for_more_once_they_do() -> None:
    horizons = ClaimHorizons()
    assert horizons.fitting(TENANT, [QUEUE], 1_000) == 1_000
    horizons.fitted(TENANT, QUEUE, 34, is_cut=True)
    assert horizons.fitting(TENANT, ["other", QUEUE], 1_000) == 43
    assert horizons.fitting(TENANT, [QUEUE], 5) == 5
    for count, expected in ((5, 43), (43, 86), (86, 172), (40, 172), (34, 172)):
        horizons.fitted(TENANT, QUEUE, count, is_cut=False)
        assert horizons.fitting(TENANT, [QUEUE], 1_000) == expected


def test_looks_that_cost_much_come_less_often() -> None:
    cheap, costly = Claims(), Claims()
    looks = [
        sum(behind > MARGIN for behind in claims.behind(120, took_s))
        for claims, took_s in ((cheap, 0.002), (costly, 0.3))
    ]
    assert looks[1] < looks[0] / 3


def test_one_look_from_the_front_that_had_to_wait_does_not_put_off_the_next_one() -> None:
    claims = Claims()
    claims.claim(0)
    for _ in range(2):
        claims.claim(FRONT_LOOK_INTERVAL.total_seconds(), took_s=2)
        assert claims.front_at == claims.now
    claims.claim(FRONT_LOOK_INTERVAL.total_seconds())
    assert claims.front_at < claims.now, "two in a row do"
    claims.claim(FRONT_LOOK_INTERVAL_MAX.total_seconds())
    assert claims.front_at == claims.now


def test_a_look_from_the_front_that_costs_much_is_left_to_a_scout_and_one_that_does_not_is_not() -> None:
    claims = Claims()
    assert [claims.claim(10, took_s=2) == BEGINNING for _ in range(3)] == [True, False, False]
    assert claims.claim(60, took_s=0.001) > BEGINNING, "only the scout sees that it costs little again"
    assert claims.claim(11) == BEGINNING


def test_claims_look_from_the_front_themselves_if_no_scout_comes() -> None:
    claims = Claims(has_scout=False)
    claims.claim(0, took_s=2)
    assert claims.claim(FRONT_LOOK_INTERVAL.total_seconds()) > BEGINNING
    assert claims.claim(SCOUT_PATIENCE.total_seconds()) == BEGINNING


def test_claims_go_on_where_a_scout_has_found_something_and_those_that_began_before_have_no_say() -> None:
    horizons, old = ClaimHorizons(), START - seconds(100)
    ended(horizons, begun(horizons, 0), START, front_s=0.1)
    assert horizons.next_to_scout() is None
    horizons.told(START + seconds(11))
    before = begun(horizons, 11)
    assert before.margin is not None
    assert horizons.next_to_scout() == (TENANT, QUEUE)
    assert horizons.next_to_scout() is None
    scouting, meanwhile = horizons.scout(TENANT, QUEUE), begun(horizons, 11.1)
    horizons.scouted(TENANT, QUEUE, scouting, 0.5, [None, None, old, None, None], START + seconds(11))
    for look in (before, meanwhile):
        ended(horizons, look, START + seconds(11))
    after = begun(horizons, 11.2)
    assert after.since == [(old if level == 3 else START + seconds(11)) - MARGIN for level in range(1, 6)]
    ended(horizons, after, START + seconds(11))
    assert begun(horizons, 11.3).since[2] == START + seconds(11) - MARGIN


def test_a_claim_that_came_to_no_end_leaves_the_front_to_a_scout_and_the_next_ones_take_what_came_of_late() -> None:
    horizons = ClaimHorizons()
    horizons.told(START)
    look = begun(horizons, 0)
    horizons.broken_off(TENANT, QUEUE, look, 0.1)
    assert horizons.next_to_scout() is None
    assert begun(horizons, 0.1).since == [BEGINNING + LATE - MARGIN] * 5, "it failed of something else"
    horizons.broken_off(TENANT, QUEUE, look, 10)
    since = begun(horizons, 0.2).since
    assert all(abs(each - (START - LATE - MARGIN)) < seconds(1) for each in since)
    assert horizons.next_to_scout() == (TENANT, QUEUE)


def test_a_look_for_what_is_late_that_may_take_nothing_is_repeated_by_the_next_claim() -> None:
    claims = Claims()
    claims.claim(0)
    claims.now += seconds(2)
    for in_vain in (True, True, False):
        look = claims.horizons.look(TENANT, QUEUE, claims.now)
        assert look.margin == LATE
        claims.horizons.looked(TENANT, QUEUE, look, 0.001, None, in_vain=in_vain)
    assert claims.horizons.look(TENANT, QUEUE, claims.now).margin == MARGIN


def test_a_clock_that_is_set_back_is_noticed_by_the_next_claim() -> None:
    claims = Claims()
    claims.claim(0)
    claims.claim(5)
    assert claims.claim(-3600) == BEGINNING
    assert claims.claim(0.1) == START + seconds(5 - 3600) - MARGIN


def test_an_empty_queue_that_costs_much_to_look_through_is_not_looked_through_again() -> None:
    claims = Claims()
    claims.claim(0)
    assert claims.claim(2, took_s=0.2, is_empty=True) == START - LATE
    assert claims.claim(0.1, is_empty=True) == START + seconds(2) - MARGIN


def test_who_took_all_there_was_need_not_look_again_before_a_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    at = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: at)
    horizons = ClaimHorizons()
    mine, others = (TENANT, "worker", "queue"), (TENANT, "worker", "another queue")
    assert horizons.empty_for_s(mine, 7) == 0
    horizons.emptied(mine, 7)
    assert horizons.empty_for_s(mine, 7) == pytest.approx(EMPTIED_S)
    assert horizons.empty_for_s(mine, 8) == 0
    assert horizons.empty_for_s(others, 7) == 0
    at += 2 * EMPTIED_S
    assert horizons.empty_for_s(mine, 7) == 0  # a ring may have been lost


def test_about_now_follows_what_the_database_told_last(monkeypatch: pytest.MonkeyPatch) -> None:
    at = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: at)
    horizons = ClaimHorizons()
    assert horizons.about_now() == BEGINNING
    horizons.told(START)
    at += 5
    assert horizons.about_now() == START + datetime.timedelta(seconds=5)
    horizons.told(START - datetime.timedelta(hours=1))
    assert horizons.about_now() == START - datetime.timedelta(hours=1)


def test_a_look_at_lanes_goes_on_where_the_last_one_ended() -> None:
    horizons, other = ClaimHorizons(), uuid.uuid4()
    assert horizons.lane(TENANT) == FIRST_LANE
    horizons.looked_until(TENANT, "auto:m")
    assert (horizons.lane(TENANT), horizons.lane(other)) == ("auto:m", FIRST_LANE)
    horizons.looked_until(TENANT, FIRST_LANE)
    assert horizons.lane(TENANT) == FIRST_LANE


def test_one_of_those_who_wait_for_a_rate_looks_when_it_allows_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    horizons = ClaimHorizons()
    assert [horizons.is_first_to_wait(TENANT, "q", 0.1) for _ in range(2)] == [True, False]
    assert horizons.is_first_to_wait(TENANT, "other", 0.1)
    now += 0.1
    assert [horizons.is_first_to_wait(TENANT, "q", 0.1) for _ in range(2)] == [True, False]


def test_it_is_known_beforehand_whether_a_look_is_one_from_further_back(monkeypatch: pytest.MonkeyPatch) -> None:
    at = 100.0
    monkeypatch.setattr("time.monotonic", lambda: at)
    horizons, worker_id = ClaimHorizons(), uuid.uuid4()
    horizons.told(START)
    assert horizons.is_look_back_due(TENANT, worker_id, ["q"])
    horizons.look(TENANT, "q", horizons.about_now())
    assert horizons.is_look_back_due(TENANT, worker_id, ["q"]), "among the leases there was none yet"
    horizons.look_at_leases(TENANT, worker_id, horizons.about_now())
    assert not horizons.is_look_back_due(TENANT, worker_id, ["q"])
    at += LATE_LOOK_INTERVAL.total_seconds()
    assert horizons.is_look_back_due(TENANT, worker_id, ["q"])
    assert not horizons.is_look_back_due(TENANT, worker_id, []), "no lease comes late"
