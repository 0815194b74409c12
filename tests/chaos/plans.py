"""What is to happen in one run: a seed decides it all. Pure; times are seconds after the start."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

LENGTH_S = 1.6  # in which everything begins that is planned
APP_QUEUE, HAND_QUEUE = "default", "hand"
EXCEPTIONS = (
    "ValueError", "Own", "Wordless", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "StopIteration", "StopAsyncIteration",
    "RecursionError", "MemoryError", "CancelledError", "TimeoutError",
)  # fmt: skip
UNUSABLE = ("object", "circle", "surrogate", "int", "set of sets", "large", "key")
FAULTS = (
    "kill_worker", "kill_worker", "freeze_worker", "freeze_worker", "stop_worker", "kill_gateway", "end_backends",
    "restart_postgres", "freeze_postgres", "step_clock",
)  # fmt: skip
HAND_VERBS = ("complete", "complete", "complete", "fail", "snooze", "release", "forget", "late", "twice")


@dataclass
class JobPlan:
    """A job to be enqueued. `parents` are places of others, that come before it."""

    at_s: float
    spec: dict[str, Any]
    parents: list[int] = field(default_factory=list)
    cancelled_at_s: float | None = None


@dataclass
class Fault:
    at_s: float
    name: str
    worker: int
    amount: float  # how long, or how far


@dataclass
class Plan:
    seed: int
    jobs: list[JobPlan]
    faults: list[Fault]
    pauses: list[tuple[float, float, str]]  # from, until, of which queue
    hand: random.Random  # what the worker by hand does with what it is given


def plan_of(seed: int) -> Plan:
    chance = random.Random(seed)
    jobs: list[JobPlan] = []
    for _ in range(chance.randint(40, 120)):
        jobs.append(_job(chance, jobs))
    faults = sorted((_fault(chance) for _ in range(chance.randint(1, 4))), key=lambda fault: fault.at_s)
    pauses = []
    if chance.random() < 0.3:
        begin = chance.uniform(0, 1)
        pauses.append((begin, begin + chance.uniform(0.1, 0.8), chance.choice((APP_QUEUE, HAND_QUEUE))))
    return Plan(seed, jobs, faults, pauses, random.Random(seed + 1_000_000))


def _fault(chance: random.Random) -> Fault:
    name = chance.choice(FAULTS)
    amount = {
        "freeze_worker": chance.uniform(1.2, 1.8),  # past the lease
        "step_clock": chance.choice((-1, 1)) * chance.uniform(0.5, 3.0),
    }.get(name, chance.uniform(0.05, 0.5))
    return Fault(chance.uniform(0.05, LENGTH_S), name, chance.randrange(3), amount)


def _job(chance: random.Random, before: list[JobPlan]) -> JobPlan:
    spec: dict[str, Any] = {
        "max_retries": chance.choice((0, 2, 5, 8)), "backoff_ms": chance.choice((0, 10, 60)), "priority": chance.randint(1, 5),
        "timeout_ms": chance.choice((1_500, 60_000, 60_000)),
    }  # fmt: skip
    if chance.random() < 0.3:
        spec |= {"type": "by_hand", "queue": HAND_QUEUE}
    else:
        steps = [_step(chance) for _ in range(chance.choice((0, 0, 0, 1, 1, 2)))]
        spec |= {"type": chance.choice(("loop", "thread")), "payload": {"steps": [*steps, _good(chance)]}}
    if chance.random() < 0.1:
        spec["delay_ms"] = chance.randint(1, 800)
    job = JobPlan(chance.uniform(0, LENGTH_S) if chance.random() < 0.5 else 0.0, spec)
    if before and chance.random() < 0.25:
        job.parents = sorted(chance.sample(range(len(before)), min(len(before), chance.randint(1, 3))))
        spec["on_parent_failure"] = chance.choice(("fail", "wait", "ignore"))
    if chance.random() < 0.08:
        job.cancelled_at_s = job.at_s + chance.uniform(0, 1.0)
    return job


def _good(chance: random.Random) -> list[Any]:
    return chance.choice((["pass"], ["pass"], ["progress"], ["nap", round(chance.uniform(0.01, 0.4), 3)]))


def _step(chance: random.Random) -> list[Any]:
    return chance.choice((
        ["raise", chance.choice(EXCEPTIONS)], ["raise", chance.choice(EXCEPTIONS)], ["unusable", chance.choice(UNUSABLE)],
        ["fail", chance.random() < 0.8], ["hog"], ["block", round(chance.uniform(0.05, 1.3), 3)],
        ["deaf", round(chance.uniform(0.2, 1.5), 3)], _good(chance),
    ))  # fmt: skip
