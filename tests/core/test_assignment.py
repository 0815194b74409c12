"""A plan never gives an agent more than it has room for, nor a task to an agent that may not have it, and leaves none idle."""

from __future__ import annotations

import collections
import datetime
import uuid
from collections.abc import Set as AbstractSet

from hypothesis import given, settings
from hypothesis import strategies as st

from devmesh.core.assignment import Candidate, Waiting, plan
from devmesh.core.tasks import Strategy

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
CAPABILITIES = ("read", "write", "count")


def agent(
    number: int,
    *capabilities: str,
    free: int = 1,
    concurrency: int | None = None,
    assigned_s_ago: float | None = None,
    success_rate: float | None = None,
    duration_s: float | None = None,
) -> Candidate:
    total = concurrency or max(free, 1)
    return Candidate(
        agent_id=uuid.UUID(int=number), capabilities=frozenset(capabilities), free=free, concurrency=total,
        active=total - free, success_rate=success_rate, duration_s=duration_s,
        last_assigned_at=NOW - datetime.timedelta(seconds=assigned_s_ago) if assigned_s_ago is not None else None,
    )  # fmt: skip


def waiting(*required: str, strategy: Strategy = Strategy.LEAST_LOADED, **fields: object) -> Waiting:
    return Waiting(task_id=uuid.uuid4(), strategy=strategy, required=frozenset(required), **fields)  # type: ignore[arg-type]  # passed on as they are


def agents_of(tasks: list[Waiting], candidates: list[Candidate]) -> list[int | None]:
    """The number of the agent that each task gets."""
    given_to = {task_id: agent_id.int for task_id, agent_id in plan(tasks, candidates)}
    return [given_to.get(task.task_id) for task in tasks]


capability_sets = st.frozensets(st.sampled_from(CAPABILITIES))
candidate_lists = st.lists(
    st.tuples(
        capability_sets, st.integers(0, 3), st.integers(0, 3), st.none() | st.integers(0, 9), st.none() | st.floats(0, 1)
    ),
    max_size=6,
).map(
    lambda rows: [
        Candidate(
            agent_id=uuid.UUID(int=number), capabilities=capabilities, free=free, concurrency=free + active or 1,
            active=active, success_rate=rate, duration_s=1.0 if rate else None,
            last_assigned_at=None if ago is None else NOW - datetime.timedelta(seconds=ago),
        )
        for number, (capabilities, free, active, ago, rate) in enumerate(rows)
    ]
)  # fmt: skip
agent_ids = st.integers(0, 7).map(lambda number: uuid.UUID(int=number))
waiting_lists = st.lists(
    st.builds(
        Waiting,
        task_id=st.uuids(),
        strategy=st.sampled_from(Strategy),
        required=capability_sets,
        target_agent_id=st.none() | agent_ids,
        excluded=st.frozensets(agent_ids, max_size=3),
    ),
    max_size=12,
    unique_by=lambda task: task.task_id,
)


def may_have(task: Waiting, candidate: Candidate) -> bool:
    if candidate.agent_id in task.excluded:
        return False
    if task.target_agent_id is not None:
        return candidate.agent_id == task.target_agent_id
    return task.required <= candidate.capabilities


@given(waiting_lists, candidate_lists)
@settings(max_examples=400, deadline=None)
def test_a_plan_keeps_every_bound_and_leaves_no_room_unused(tasks: list[Waiting], candidates: list[Candidate]) -> None:
    pairs = plan(tasks, candidates)
    by_id = {candidate.agent_id: candidate for candidate in candidates}
    task_of = {task.task_id: task for task in tasks}
    given_to = collections.Counter(agent_id for _, agent_id in pairs)
    assert all(count <= by_id[agent_id].free for agent_id, count in given_to.items())
    assert len({task_id for task_id, _ in pairs}) == len(pairs)
    assert all(may_have(task_of[task_id], by_id[agent_id]) for task_id, agent_id in pairs)
    left = [task for task in tasks if task.task_id not in {task_id for task_id, _ in pairs}]
    with_room = [candidate for candidate in candidates if given_to[candidate.agent_id] < candidate.free]
    assert not [(t, c) for t in left for c in with_room if may_have(t, c)], "a task waits though an agent has room"


@given(waiting_lists, candidate_lists)
@settings(max_examples=200, deadline=None)
def test_a_less_urgent_task_never_takes_the_room_of_a_more_urgent_one(
    tasks: list[Waiting], candidates: list[Candidate]
) -> None:
    """What the first tasks get does not depend on those behind them."""
    half = len(tasks) // 2
    in_front = {task.task_id for task in tasks[:half]}
    assert plan(tasks[:half], candidates) == [pair for pair in plan(tasks, candidates) if pair[0] in in_front]


def test_t02_exactly_the_capable_agent_is_picked() -> None:
    candidates = [agent(1, "read"), agent(2, "write"), agent(3, "count")]
    assert agents_of([waiting("write")], candidates) == [2]
    assert agents_of([waiting("read", "write")], candidates) == [None]


def test_least_loaded_fills_the_emptiest_by_its_share() -> None:
    candidates = [agent(1, free=1, concurrency=2), agent(2, free=3, concurrency=4), agent(3, free=10, concurrency=10)]
    assert agents_of([waiting() for _ in range(4)], candidates) == [3, 3, 3, 2]


def test_round_robin_gives_to_whoever_has_waited_longest_and_then_in_turn() -> None:
    candidates = [agent(1, free=9, assigned_s_ago=1), agent(2, free=9, assigned_s_ago=9), agent(3, free=9)]
    tasks = [waiting(strategy=Strategy.ROUND_ROBIN) for _ in range(6)]
    assert agents_of(tasks, candidates) == [3, 2, 1, 3, 2, 1]


def test_best_match_keeps_the_versatile_for_what_others_cannot_do() -> None:
    candidates = [
        agent(1, "read", "write", "count", free=9),
        agent(2, "read", free=2),
        agent(3, "read", "write", free=9),
    ]
    tasks = [waiting("read", strategy=Strategy.BEST_MATCH) for _ in range(3)]
    assert agents_of(tasks, candidates) == [2, 2, 3]


def test_performance_prefers_the_least_time_for_a_success_and_tries_the_new() -> None:
    tasks = [waiting(strategy=Strategy.PERFORMANCE)]
    quick_but_failing = agent(1, success_rate=0.25, duration_s=1.0)
    slow_but_sure = agent(2, success_rate=1.0, duration_s=2.0)
    hopeless = agent(3, success_rate=0.0)
    assert agents_of(tasks, [quick_but_failing, slow_but_sure, hopeless]) == [2]
    assert agents_of(tasks, [hopeless]) == [3]
    never_tried = agent(4, free=2)
    busy_and_sure = agent(5, free=1, concurrency=2, success_rate=1.0, duration_s=1.0)
    assert agents_of(tasks, [busy_and_sure, never_tried, hopeless]) == [4]


class Compared(frozenset[str]):
    """Capabilities that count how often an agent's are asked whether they hold them."""

    times = 0

    def __le__(self, other: AbstractSet[object]) -> bool:
        Compared.times += 1
        return super().__le__(other)


def test_five_hundred_tasks_and_two_hundred_agents_are_planned_without_comparing_them_all() -> None:
    """The assigner holds a lock meanwhile. Each sort of task is compared with each agent, and not each task."""
    capabilities = [f"c{number}" for number in range(20)]
    candidates = [agent(number, *capabilities[number % 10 : number % 10 + 8], free=4) for number in range(200)]
    tasks = [waiting(capabilities[number % 17], strategy=list(Strategy)[number % 4]) for number in range(500)]
    for task in tasks:
        task.required = Compared(task.required)
    Compared.times = 0
    assert len(plan(tasks, candidates)) == 500
    assert 0 < Compared.times <= 4 * 17 * len(candidates)
