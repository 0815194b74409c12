"""The scores of workers, and what is foretold from them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmesh.core import health
from devmesh.core.health import Recommendation, Sample

shares = st.floats(0, 1)


@given(st.integers(0, 50), st.floats(0, 1e6), st.integers(1, 10_000), st.none() | st.floats(0, 1e9), st.none() | shares)
def test_a_score_is_between_0_and_1_and_never_better_than_what_is_reported(
    missed: int, level: float, capacity: int, latency_ms: float | None, reported: float | None
) -> None:
    last = health.score(level, capacity, latency_ms, reported)
    score = health.score_in_silence(last, missed)
    assert 0 <= score <= last <= 1
    assert reported is None or score <= reported
    assert health.score_in_silence(last, missed + 1) <= score
    assert health.score(level + 1, capacity, latency_ms, reported) <= last


@given(st.floats(0.1, 3_600))
def test_nobody_is_stale_between_two_heartbeats_that_come_in_time(interval_s: float) -> None:
    assert health.stale_after_s(interval_s) > interval_s * (1 + health.LATE_SHARE)
    assert health.patience_s(interval_s, health.stale_after_s(interval_s)) >= interval_s


def test_one_missed_heartbeat_is_below_the_alarm_and_failures_alone_neither_degrade_nor_keep_it_so() -> None:
    assert health.score_in_silence(health.score(0, 5, None, None), 1) < 0.7
    assert health.score(1e9, 1, 1e9, None) >= health.RECOVERED_FROM


@pytest.mark.parametrize(
    ("silent_s", "interval_s", "missed"),
    [(0.5, 0.5, 0), (0.59, 0.5, 0), (0.61, 0.5, 1), (31.9, 30, 0), (32.1, 30, 1), (62, 30, 2)],
)
def test_a_heartbeat_is_missed_when_it_is_late_by_more_than_a_little(
    silent_s: float, interval_s: float, missed: int
) -> None:
    assert health.missed_beats(silent_s, interval_s) == missed


def test_j12_falling_scores_call_for_a_restart() -> None:
    falling = [Sample(30.0 * place, 1.0 - 0.7 * place / 9) for place in range(10)]
    found = health.predict(falling)
    assert found.probability > 0.7
    assert found.failure_in_s is not None
    assert found.failure_in_s < 3_600
    assert found.recommendation is Recommendation.PREEMPTIVE_RESTART
    assert health.predict([Sample(0, 1.0)] * 10).recommendation is Recommendation.CONTINUE


@given(st.lists(shares, max_size=30))
def test_a_prediction_is_the_formula_over_the_last_ten(scores: list[float]) -> None:
    found = health.predict([Sample(float(place), score) for place, score in enumerate(scores)])
    assert 0 <= found.probability <= 1
    last = scores[-10:]
    if len(last) > 1:
        middle = (len(last) - 1) / 2
        mean = math.fsum(last) / len(last)
        slope = math.fsum((place - middle) * (score - mean) for place, score in enumerate(last)) / math.fsum(
            (place - middle) ** 2 for place in range(len(last))
        )
        assert found.slope == pytest.approx(slope, abs=1e-9)
        assert found.probability == pytest.approx(min((1 - last[-1]) * (1 + 2 * abs(slope)), 1.0), abs=1e-9)
        assert (found.failure_in_s is None) == (found.slope >= 0)


def test_j13_a_value_out_of_line_is_an_anomaly_and_steady_ones_are_none() -> None:
    cpu = [0.3, 0.31, 0.33, 0.34, 0.35, 0.36, 0.37, 0.38, 0.39, 0.4]
    samples = [
        {"cpu_usage": value, "memory_usage": 0.5, "queue": 3.0 + place % 2} for place, value in enumerate([*cpu, 0.95])
    ]
    [worst, *others] = health.anomalies(samples)
    assert (worst.metric, others) == ("cpu_usage", [])
    assert worst.score > 2
    assert worst.severity >= 3
    assert health.anomalies(samples[:4]) == []
    assert health.anomalies([]) == []
    assert [each.metric for each in health.anomalies([{"n": 1e15}] * 9 + [{"n": -1e15}])] == ["n"]
