"""How well a worker is, and how that goes on. Pure: must not know rows or clocks."""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

SCORE_A_MISSED_BEAT = 0.6  # the score is multiplied by this for each
DEGRADED_BELOW = 0.5
RECOVERED_FROM = 0.7
LATE_SHARE, LATE_S_MAX = 0.2, 2.0  # of the interval: a heartbeat that is late by less is none that was missed
LATENCY_MS_GOOD, LATENCY_MS_BAD = 100.0, 10_000.0
FAILURES_WORST = 0.8  # however many attempts fail: their cause may be the jobs, so a worker recovers in spite of them
LATENCY_WORST = 0.9
STALE_BEATS, STALE_S_MAX = 6, 60.0
STALE_BEATS_MIN = 2  # of whoever beats so seldom that it would be stale between two heartbeats
PREDICTED_FROM = 10  # scores
ANOMALIES_FROM = 100  # samples
SAMPLES_MIN = 5
DEVIATION_MIN = 2.0
RESTART_FROM, WATCH_FROM = 0.7, 0.3
PLACES = 4  # to which scores and probabilities are told, and judged: what is told as 0.3 is not above 0.3


class WorkerStatus(enum.StrEnum):
    ACTIVE = "ACTIVE"
    DEGRADED = "DEGRADED"
    DRAINING = "DRAINING"
    FAILED = "FAILED"
    TERMINATED = "TERMINATED"


class Recommendation(enum.StrEnum):
    CONTINUE = "CONTINUE"
    WATCH = "WATCH"
    PREEMPTIVE_RESTART = "PREEMPTIVE_RESTART"


class Sample(NamedTuple):
    """What the log says of one moment."""

    at_s: float
    score: float


class Prediction(NamedTuple):
    """`slope` is the change of the score from one sample to the next. `failure_in_s`: None where it does not fall."""

    probability: float
    slope: float
    failure_in_s: float | None
    recommendation: Recommendation


class Anomaly(NamedTuple):
    """A metric whose latest value is far from what it was. `score` is by how many standard deviations."""

    metric: str
    value: float
    mean: float
    deviation: float
    score: float
    severity: int


def stale_after_s(interval_s: float) -> float:
    """After how long without a heartbeat a worker is given up for dead, unless it says so itself."""
    return max(min(STALE_S_MAX, max(STALE_BEATS * interval_s, 1.0)), STALE_BEATS_MIN * interval_s)


def patience_s(interval_s: float, stale_s: float) -> float:
    """How long one has to watch before silence says anything: until a heartbeat had to come."""
    return min(interval_s + min(LATE_SHARE * interval_s, LATE_S_MAX), stale_s)


def missed_beats(silent_s: float, interval_s: float) -> int:
    tolerated_s = min(LATE_SHARE * interval_s, LATE_S_MAX)
    return max(math.floor((silent_s - tolerated_s) / interval_s), 0)


def score(failure_level: float, capacity: int, latency_ms: float | None, reported: float | None) -> float:
    """Between 0 and 1: the product of what failures and latencies say, or less if the worker itself says less."""
    failures = FAILURES_WORST + (1 - FAILURES_WORST) / (1 + max(failure_level, 0.0) / capacity)
    slow = min(max(((latency_ms or 0.0) - LATENCY_MS_GOOD) / (LATENCY_MS_BAD - LATENCY_MS_GOOD), 0.0), 1.0)
    latency = 1 - (1 - LATENCY_WORST) * slow
    found = failures * latency
    return min(found, reported) if reported is not None else found


def score_in_silence(last: float, missed: int) -> float:
    """What becomes of the score that a worker had when it was last heard of."""
    return last * SCORE_A_MISSED_BEAT**missed


def severity_of_missed(missed: int) -> int:
    return min(2 + missed, 5)


def predict(samples: Sequence[Sample]) -> Prediction:
    """From the last ten scores, the latest last: p = (1 - score) (1 + 2 |slope|)."""
    last = list(samples)[-PREDICTED_FROM:]
    if not last:
        return Prediction(0.0, 0.0, None, Recommendation.CONTINUE)
    scores = [sample.score for sample in last]
    slope = statistics.linear_regression(range(len(scores)), scores).slope if len(scores) > 1 else 0.0
    probability = min(max((1 - scores[-1]) * (1 + 2 * abs(slope)), 0.0), 1.0)
    failure_in_s = None
    if slope < 0:
        step_s = (last[-1].at_s - last[0].at_s) / (len(last) - 1)
        failure_in_s = max(scores[-1] / -slope * step_s, 0.0)
    told = round(probability, PLACES)
    if told > RESTART_FROM:
        return Prediction(probability, slope, failure_in_s, Recommendation.PREEMPTIVE_RESTART)
    recommendation = Recommendation.WATCH if told > WATCH_FROM else Recommendation.CONTINUE
    return Prediction(probability, slope, failure_in_s, recommendation)


def anomalies(samples: Sequence[Mapping[str, float]]) -> list[Anomaly]:
    """Metrics of the latest sample more than two standard deviations from the mean of the last hundred, the worst first."""
    last = list(samples)[-ANOMALIES_FROM:]
    found: list[Anomaly] = []
    for metric, value in last[-1].items() if last else ():
        values = [sample[metric] for sample in last if metric in sample]
        if len(values) < SAMPLES_MIN:
            continue
        mean, deviation = statistics.fmean(values), statistics.pstdev(values)
        if not math.isfinite(deviation) or deviation <= abs(mean) * 1e-9:
            continue
        distance = abs(value - mean) / deviation
        if distance > DEVIATION_MIN:
            found.append(Anomaly(metric, value, mean, deviation, distance, min(math.ceil(distance), 5)))
    return sorted(found, key=lambda each: (-each.score, each.metric))
