"""When admission refuses and when it does not, with the load and the time handed in."""

from __future__ import annotations

import contextlib
import math

import pytest

from devmesh import operations
from devmesh.core.errors import Kind, MeshError
from devmesh.operations.admission import LIMIT_MIN, TICK_S, TRIPS, Admission

operations.load_all()
TARGET_MS = 20.0
CAPACITY_PER_S = 8_000


class Load:
    """A server that does a fixed number of requests a second, first come, first served."""

    def __init__(self) -> None:
        self.admission = Admission(TARGET_MS)
        self.queue = self.refused = self.let_in = 0
        self._done = self._now_s = 0.0

    def second(self, offered_per_s: float, name: str = "task.create") -> None:
        for _ in range(10):
            self.tick(int(offered_per_s * TICK_S), name)

    def stall(self, duration_s: float) -> None:
        """Nothing is done for a while, and so nobody who waits asks again."""
        for _ in range(round(duration_s / TICK_S)):
            self._now_s += TICK_S
            self.admission.tick(self._now_s, 0.0)

    def tick(self, offered: int, name: str = "task.create") -> None:
        """A tenth of a second in a hundred steps."""
        for step in range(100):
            for _ in range((offered * (step + 1)) // 100 - (offered * step) // 100):
                try:
                    self.admission.enter(name)
                except MeshError:
                    self.refused += 1
                else:
                    self.queue += 1
                    self.let_in += 1
            self._done += CAPACITY_PER_S * TICK_S / 100
            while self._done >= 1:
                self._done -= 1
                if self.queue:
                    self.admission.took(self.queue / CAPACITY_PER_S)
                    self.queue -= 1
                    self.admission.leave(name)
        self._now_s += TICK_S
        self.admission.tick(self._now_s, 0.0)


def test_half_the_load_is_let_in() -> None:
    load = Load()
    for _ in range(10):
        load.second(CAPACITY_PER_S / 2)
    assert load.refused == 0


@pytest.mark.parametrize("burst", [1_500, 6_000])
def test_a_burst_is_let_in_that_ends_within_a_second_or_so(burst: int) -> None:
    load = Load()
    load.second(100)
    load.tick(burst)
    for _ in range(5):
        load.second(CAPACITY_PER_S / 4)
    assert load.refused == 0


def test_callers_who_wait_for_their_answers_are_let_in_however_many() -> None:
    load = Load()
    load.tick(1_000)  # from now on as many come as go
    for _ in range(10):
        load.second(CAPACITY_PER_S)
    assert load.refused == 0


def test_callers_who_wait_are_let_in_when_something_stalls() -> None:
    load = Load()
    load.tick(500)
    for _ in range(5):
        for offered in (CAPACITY_PER_S * TICK_S * 0.8, CAPACITY_PER_S * TICK_S, CAPACITY_PER_S * TICK_S * 1.2):
            load.tick(int(offered))
        load.stall(0.5)
        load.second(CAPACITY_PER_S)
    assert load.refused == 0


@pytest.mark.parametrize("times", [1.2, 2, 5])
def test_a_lasting_overload_is_refused_until_what_is_let_in_takes_its_target(times: float) -> None:
    load = Load()
    for _ in range(8):
        load.second(times * CAPACITY_PER_S)
    assert load.admission.is_shedding
    load.refused = load.let_in = 0
    for _ in range(5):
        load.second(times * CAPACITY_PER_S)
    assert load.admission.delay_s <= 1.5 * TARGET_MS / 1000
    assert load.let_in == pytest.approx(5 * CAPACITY_PER_S, rel=0.05), "no less is done than can be"
    load.second(CAPACITY_PER_S / 2)
    load.second(CAPACITY_PER_S / 2)
    load.refused = 0
    load.second(CAPACITY_PER_S / 2)
    assert load.admission.limit == math.inf
    assert load.refused == 0


def test_what_is_in_hand_is_let_in_before_what_is_new() -> None:
    load = Load()
    for _ in range(5):
        load.second(2 * CAPACITY_PER_S)
    for name, is_let_in in (("task.create", False), ("task.heartbeat", True), ("task.complete", True), ("ping", True)):
        while load.admission.in_flight < load.admission.limit:
            load.admission.enter("task.create")
        if is_let_in:
            load.admission.enter(name)
            load.admission.leave(name)
        else:
            with pytest.raises(MeshError) as refused:
                load.admission.enter(name)
            assert (refused.value.kind, refused.value.data.reason) == (Kind.UNAVAILABLE, "overload")
            assert refused.value.data.retry_after_ms


def test_even_what_is_in_hand_has_its_bound() -> None:
    load = Load()
    for _ in range(10):
        load.second(3 * CAPACITY_PER_S, "task.heartbeat")
    assert load.refused > 0
    assert load.admission.in_flight <= 2 * load.admission.limit + 1


def test_nothing_done_at_all_is_an_overload() -> None:
    admission = Admission(TARGET_MS)
    for number in range(20):
        for _ in range(LIMIT_MIN):
            with contextlib.suppress(MeshError):
                admission.enter("task.create")
        admission.tick(number * TICK_S, 0.0)
    assert admission.limit == LIMIT_MIN
    assert admission.component().status == "degraded"


def test_a_slow_database_is_not_made_quicker_by_refusing() -> None:
    admission = Admission(TARGET_MS)
    for _ in range(200):
        admission.trip(1, 0.1)
    assert admission.target_s == pytest.approx(0.1 * TRIPS, rel=0.1)


def told_ms(admission: Admission) -> int:
    """The longest that somebody is told to wait, of 500 who are refused."""
    let_in, told = 0, list[int]()
    while len(told) < 500:
        try:
            admission.enter("task.create")
            let_in += 1
        except MeshError as refused:
            told.append(refused.data.retry_after_ms or 0)
    for _ in range(let_in):
        admission.leave("task.create")
    return max(told)


def test_those_who_are_refused_come_back_over_a_longer_time_the_more_they_are() -> None:
    load = Load()
    for _ in range(3):
        load.second(1.5 * CAPACITY_PER_S)
    few_ms = told_ms(load.admission)
    for _ in range(5):
        load.second(20 * CAPACITY_PER_S)
    assert few_ms < 1_500
    assert 5_000 < told_ms(load.admission) < 16_000
    for _ in range(3):
        load.second(CAPACITY_PER_S / 4)
    assert not load.admission.is_shedding
    for _ in range(3):
        load.second(1.5 * CAPACITY_PER_S)
    assert told_ms(load.admission) < 1_500
