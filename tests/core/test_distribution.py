"""A distributed task always ends, by its rule and as soon as its rule allows, and no subtask is left behind."""

from __future__ import annotations

import math
import uuid

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from devmesh.core import distribution
from devmesh.core.distribution import Child, Completion, Decision, Distribution, Strategy
from devmesh.core.errors import Kind, MeshError
from devmesh.core.tasks import FINISHED, Status

ONE_AFTER_ANOTHER = (Strategy.SEQUENTIAL, Strategy.PIPELINE)


def rule_of(
    strategy: Strategy,
    completion: Completion,
    subtasks: int,
    threshold: int | None = None,
    *,
    has_reduce: bool | None = None,
) -> Distribution:
    return Distribution(
        strategy=strategy, completion=completion, threshold=threshold, best_of_field="score", subtasks=subtasks,
        has_reduce=strategy is Strategy.MAP_REDUCE if has_reduce is None else has_reduce,
    )  # fmt: skip


@st.composite
def rules(draw: st.DrawFn) -> Distribution:
    """Any rule that makes sense."""
    subtasks = draw(st.integers(1, 6))
    strategy = draw(st.sampled_from(Strategy))
    choices = [Completion.ALL] if strategy in ONE_AFTER_ANOTHER else list(Completion)
    if strategy is Strategy.MAP_REDUCE:
        choices.remove(Completion.BEST_OF)
    completion = draw(st.sampled_from(choices))
    threshold = draw(st.integers(1, subtasks)) if completion is Completion.THRESHOLD else None
    return rule_of(strategy, completion, subtasks, threshold)


def children_of(rule: Distribution) -> list[Child]:
    return [
        Child(uuid.UUID(int=place + 1), place, Status.PENDING, distribution.initially_blocked(rule, place), None)
        for place in range(rule.subtasks + rule.has_reduce)
    ]


def follow(decision: Decision, children: list[Child]) -> None:
    """Does what a decision says, as operations do."""
    by_id = {child.id: child for child in children}
    for child_id in decision.spare:
        assert by_id[child_id].status not in FINISHED
        by_id[child_id].status = Status.CANCELLED
    for child_id, _ in decision.unblock:
        assert by_id[child_id].blocked
        by_id[child_id].blocked = False


def needed_of(rule: Distribution) -> int:
    return {
        Completion.ALL: rule.subtasks,
        Completion.ANY: 1,
        Completion.MAJORITY: math.floor(rule.subtasks / 2) + 1,
        Completion.THRESHOLD: rule.threshold or 0,
        Completion.BEST_OF: 1,
    }[rule.completion]


@given(rules(), st.data())
@settings(max_examples=500, deadline=None)
def test_t14_a_distributed_task_always_ends_as_soon_as_it_can(rule: Distribution, data: st.DataObject) -> None:
    distribution.validate(rule, rule.subtasks)
    children = children_of(rule)
    decision = distribution.decide(rule, children)
    for _ in range(len(children)):
        if decision.outcome is not None:
            break
        runnable = [child for child in children if not child.blocked and child.status is Status.PENDING]
        assert runnable, "nothing can run and the parent has not ended"
        child = data.draw(st.sampled_from(runnable))
        child.status = data.draw(st.sampled_from(sorted(FINISHED)))
        child.result = Raw(b'{"score": 1}') if child.status is Status.COMPLETED else None
        decision = distribution.decide(rule, children)
        follow(decision, children)
        assert_outcome_is_due(rule, children, decision)
    assert decision.outcome in (Status.COMPLETED, Status.FAILED)
    assert all(child.status in FINISHED for child in children), "a subtask was left behind"
    if decision.outcome is Status.COMPLETED:
        assert decision.winners
        answer = msgspec.json.decode(distribution.aggregate(rule, children, decision.winners))
        assert answer is not None
    else:
        assert decision.reason


def assert_outcome_is_due(rule: Distribution, children: list[Child], decision: Decision) -> None:
    """Not before its time, and not after: the definition, said once more and simply."""
    parts = [child for child in children if child.position < rule.subtasks]
    completed = sum(child.status is Status.COMPLETED for child in parts)
    hopeful = completed + sum(child.status not in FINISHED for child in parts)
    if rule.completion is Completion.BEST_OF:
        assert (decision.outcome is None) == (hopeful > completed)
    elif decision.outcome is None:
        assert hopeful >= needed_of(rule)
        assert completed < needed_of(rule) or rule.has_reduce
    elif decision.outcome is Status.COMPLETED:
        assert completed >= needed_of(rule)


@given(rules())
def test_what_may_run_at_first_is_what_waits_for_nothing(rule: Distribution) -> None:
    free = [child.position for child in children_of(rule) if not child.blocked]
    assert free == ([0] if rule.strategy in ONE_AFTER_ANOTHER else list(range(rule.subtasks)))


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (rule_of(Strategy.PARALLEL, Completion.THRESHOLD, 3), "threshold"),
        (rule_of(Strategy.PARALLEL, Completion.THRESHOLD, 3, 4), "threshold"),
        (rule_of(Strategy.PARALLEL, Completion.THRESHOLD, 3, 0), "threshold"),
        (rule_of(Strategy.PARALLEL, Completion.ALL, 3, 2), "threshold"),
        (rule_of(Strategy.MAP_REDUCE, Completion.ALL, 3, has_reduce=False), "reduce"),
        (rule_of(Strategy.PARALLEL, Completion.ALL, 3, has_reduce=True), "reduce"),
        (rule_of(Strategy.SEQUENTIAL, Completion.ANY, 3), "completion"),
        (rule_of(Strategy.PIPELINE, Completion.MAJORITY, 3), "completion"),
        (rule_of(Strategy.PIPELINE, Completion.BEST_OF, 3), "completion"),
        (rule_of(Strategy.MAP_REDUCE, Completion.BEST_OF, 3), "completion"),
    ],
)
def test_senseless_combinations_are_refused_by_field(rule: Distribution, field: str) -> None:
    with pytest.raises(MeshError) as caught:
        distribution.validate(rule, rule.subtasks)
    assert caught.value.kind is Kind.INVALID_PARAMS
    assert caught.value.data.field == field


def ended(rule: Distribution, *results: str | None) -> list[Child]:
    """Children that have ended, completed where there is a result."""
    children = children_of(rule)
    for child, result in zip(children, results, strict=True):
        child.status, child.blocked = Status.COMPLETED if result is not None else Status.FAILED, False
        child.result = Raw(result.encode()) if result is not None else None
    return children


def answer_of(rule: Distribution, children: list[Child]) -> object:
    decision = distribution.decide(rule, children)
    assert decision.outcome is Status.COMPLETED, decision.reason
    return msgspec.json.decode(distribution.aggregate(rule, children, decision.winners))


def test_best_of_takes_the_highest_number_and_of_equals_the_first() -> None:
    rule = rule_of(Strategy.PARALLEL, Completion.BEST_OF, 5)
    children = ended(rule, '{"score": 2}', '{"score": 7.5, "id": 1}', '{"score": 7.5, "id": 2}', '{"score": "9"}', None)
    assert answer_of(rule, children) == {
        "task_id": str(children[1].id), "position": 1, "result": {"score": 7.5, "id": 1},
    }  # fmt: skip


def test_best_of_without_a_number_fails_and_says_so() -> None:
    rule = rule_of(Strategy.PARALLEL, Completion.BEST_OF, 4)
    decision = distribution.decide(rule, ended(rule, '{"score": true}', "7", "null", '{"score": null}'))
    assert decision.outcome is Status.FAILED
    assert "score" in decision.reason


def test_results_stand_in_the_order_of_the_subtasks() -> None:
    rule = rule_of(Strategy.PARALLEL, Completion.MAJORITY, 3)
    assert answer_of(rule, ended(rule, "1", None, '"three"')) == {
        "results": [1, None, "three"], "completed": 2, "subtasks": 3,
    }  # fmt: skip


def test_results_too_large_to_stand_together_are_left_with_the_subtasks() -> None:
    rule = rule_of(Strategy.PARALLEL, Completion.ALL, 2)
    half = '"' + "x" * (distribution.FLOW_BYTES_MAX // 2) + '"'
    answer = answer_of(rule, ended(rule, half, half))
    assert isinstance(answer, dict)
    assert (answer["results"], answer["completed"]) == (None, 2)
    assert str(2 * len(half)) in answer["message"]


def test_what_flows_into_the_next_step() -> None:
    parameters = Raw(b'{"mine": 1, "input": "old"}')
    piped = distribution.with_input(parameters, [Raw(b'{"a": 2}')], Strategy.PIPELINE)
    assert msgspec.json.decode(piped) == {"mine": 1, "input": {"a": 2}}
    reduced = distribution.with_input(Raw(b"{}"), [Raw(b"1"), None, Raw(b"[3]")], Strategy.MAP_REDUCE)
    assert msgspec.json.decode(reduced) == {"inputs": [1, None, [3]]}
    with pytest.raises(MeshError) as caught:
        distribution.with_input(Raw(b"{}"), [Raw(b'"' + b"x" * distribution.FLOW_BYTES_MAX + b'"')], Strategy.PIPELINE)
    assert caught.value.kind is Kind.TOO_LARGE
