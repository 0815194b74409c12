"""A task that consists of subtasks: what may be asked for, what follows when a subtask ends, and what the whole answers.

Pure: from the rule and the states of the children to a decision. Must not know tables or moves.

What a rule may be:
- `parallel` takes every completion: all, any, majority, threshold (which `threshold` numbers) and best_of.
- `sequential` and `pipeline` take `all` only: a step that fails leaves nothing for the next one to follow.
- `map_reduce` needs `reduce`. Its completion says when enough maps have completed; `best_of` is refused, because it leaves
  one result and nothing to reduce.
- `threshold` belongs to the completion threshold alone and lies between 1 and the number of subtasks; `reduce` belongs to
  map_reduce alone.
"""

from __future__ import annotations

import enum
import itertools
import math
import uuid
from collections.abc import Sequence

import msgspec
from msgspec import Raw

from devmesh.core import errors
from devmesh.core.tasks import FINISHED, Status

FLOW_BYTES_MAX = 1 << 20  # results that flow into one task, be it a parent or the next step


class Strategy(enum.StrEnum):
    PARALLEL = "parallel"
    SEQUENTIAL = "sequential"
    PIPELINE = "pipeline"
    MAP_REDUCE = "map_reduce"


class Completion(enum.StrEnum):
    ALL = "all"
    ANY = "any"
    MAJORITY = "majority"
    THRESHOLD = "threshold"
    BEST_OF = "best_of"


_ONE_AFTER_ANOTHER = (Strategy.SEQUENTIAL, Strategy.PIPELINE)


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """The rule that a parent keeps. The reduce, if there is one, is the child at the position `subtasks`."""

    strategy: Strategy
    completion: Completion
    threshold: int | None
    best_of_field: str  # the number in a result that best_of compares
    subtasks: int  # without the reduce
    has_reduce: bool


class Child(msgspec.Struct):
    """What a rule needs to know of a child. `result` is there where the rule looks at it."""

    id: uuid.UUID
    position: int
    status: Status
    blocked: bool
    result: Raw | None


class Decision(msgspec.Struct, kw_only=True):
    """What follows for a parent: nothing yet, the next steps, or the end."""

    outcome: Status | None = None  # completed or failed, once the rule is met or cannot be met any more
    reason: str = ""  # why it failed
    failed: list[uuid.UUID] = []  # children that did not complete, when that is why
    winners: list[uuid.UUID] = []  # children whose results make the parent's
    spare: list[uuid.UUID] = []  # unfinished children that nobody needs any more
    unblock: list[tuple[uuid.UUID, list[uuid.UUID]]] = []  # who may run now, and whose results flow into it


def validate(rule: Distribution, subtasks: int) -> None:
    """Raises invalid_params for a combination that makes no sense; the module's docstring says which do."""
    if rule.completion is Completion.THRESHOLD:
        if rule.threshold is None:
            raise errors.invalid("threshold: the completion threshold needs the number of subtasks", "threshold")
        if not 1 <= rule.threshold <= subtasks:
            raise errors.invalid(
                f"threshold: expected 1 to {subtasks}, the number of subtasks, not {rule.threshold}", "threshold"
            )
    elif rule.threshold is not None:
        raise errors.invalid(f"threshold: has no meaning with the completion {rule.completion}", "threshold")
    if rule.has_reduce != (rule.strategy is Strategy.MAP_REDUCE):
        raise errors.invalid("reduce: give it with the distribution map_reduce, and only with that", "reduce")
    if rule.strategy in _ONE_AFTER_ANOTHER and rule.completion is not Completion.ALL:
        raise errors.invalid(
            f"completion: {rule.strategy} goes with all, because each step needs the last", "completion"
        )
    if rule.strategy is Strategy.MAP_REDUCE and rule.completion is Completion.BEST_OF:
        raise errors.invalid("completion: best_of leaves one result, so there is nothing to reduce", "completion")


def initially_blocked(rule: Distribution, position: int) -> bool:
    """Whether the child at this position waits for others when it is created."""
    if rule.strategy in _ONE_AFTER_ANOTHER:
        return position > 0
    return position >= rule.subtasks


def decide(rule: Distribution, children: Sequence[Child]) -> Decision:
    """What follows from the states of all of a parent's children. Once all have finished there is always an outcome."""
    parts = [child for child in children if child.position < rule.subtasks]
    decision = _best_of(rule, parts) if rule.completion is Completion.BEST_OF else _count(rule, parts)
    if decision.outcome is Status.COMPLETED and rule.has_reduce:
        [reduce] = [child for child in children if child.position >= rule.subtasks]
        decision = _reduce(reduce, decision, parts)
    elif decision.outcome is None and rule.strategy in _ONE_AFTER_ANOTHER:
        decision.unblock = _next_step(rule, parts)
    if decision.outcome is not None:
        decision.spare = _unfinished(children)
    return decision


def _count(rule: Distribution, parts: Sequence[Child]) -> Decision:
    """Enough have completed, or too many have not."""
    needed = {
        Completion.ALL: rule.subtasks,
        Completion.ANY: 1,
        Completion.MAJORITY: rule.subtasks // 2 + 1,
        Completion.THRESHOLD: rule.threshold or rule.subtasks,
    }[rule.completion]
    completed = sorted(_completed(parts), key=lambda child: child.position)
    failed = _failed(parts)
    if len(completed) >= needed:
        winners = completed[:1] if rule.completion is Completion.ANY else completed
        return Decision(outcome=Status.COMPLETED, winners=[child.id for child in winners])
    if len(parts) - len(failed) < needed:
        reason = f"{len(failed)} of {len(parts)} subtasks did not complete, and {needed} had to"
        return Decision(outcome=Status.FAILED, reason=reason, failed=failed)
    return Decision()


def _best_of(rule: Distribution, parts: Sequence[Child]) -> Decision:
    """The best is known when all have ended; of equals, the first subtask."""
    if _unfinished(parts):
        return Decision()
    scores = {child.id: _score(child.result, rule.best_of_field) for child in _completed(parts)}
    if not scores:
        return Decision(outcome=Status.FAILED, reason="no subtask completed", failed=_failed(parts))
    scored = {child_id: score for child_id, score in scores.items() if score is not None}
    if not scored:
        reason = f"no subtask's result has a number under {rule.best_of_field!r}, so none is the best"
        return Decision(outcome=Status.FAILED, reason=reason, failed=_failed(parts))
    return Decision(outcome=Status.COMPLETED, winners=[max(scored, key=lambda child_id: scored[child_id])])


def _score(result: Raw | None, field: str) -> float | None:
    if result is None:
        return None
    found = msgspec.json.decode(result)
    score = found.get(field) if isinstance(found, dict) else None
    is_number = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
    return score if is_number else None


def _reduce(reduce: Child, maps: Decision, parts: Sequence[Child]) -> Decision:
    """Enough maps have completed: the reduce begins with their results, and when it ends so does the parent."""
    if reduce.status is Status.COMPLETED:
        return Decision(outcome=Status.COMPLETED, winners=[reduce.id])
    if reduce.status in FINISHED:
        return Decision(outcome=Status.FAILED, reason=f"the reduce is {reduce.status}", failed=[reduce.id])
    spare = _unfinished(parts)
    return Decision(spare=spare, unblock=[(reduce.id, maps.winners)] if reduce.blocked else [])


def _next_step(rule: Distribution, parts: Sequence[Child]) -> list[tuple[uuid.UUID, list[uuid.UUID]]]:
    """The step after the last that completed, when it still waits."""
    in_order = sorted(parts, key=lambda child: child.position)
    for before, step in itertools.pairwise(in_order):
        if before.status is Status.COMPLETED and step.blocked and step.status is Status.PENDING:
            return [(step.id, [before.id] if rule.strategy is Strategy.PIPELINE else [])]
    return []


def _completed(children: Sequence[Child]) -> list[Child]:
    return [child for child in children if child.status is Status.COMPLETED]


def _failed(children: Sequence[Child]) -> list[uuid.UUID]:
    return [child.id for child in children if child.status in FINISHED and child.status is not Status.COMPLETED]


def _unfinished(children: Sequence[Child]) -> list[uuid.UUID]:
    return [child.id for child in children if child.status not in FINISHED]


def with_input(parameters: Raw, flowing: Sequence[Raw | None], strategy: Strategy) -> Raw:
    """A step's parameters with what flows into it: `input` in a pipeline, `inputs`, in order, in the reduce.

    Raises too_large when the results are more than one task may be given.
    """
    bytes_flowing = sum(len(bytes(result)) for result in flowing if result is not None)
    if bytes_flowing > FLOW_BYTES_MAX:
        message = (
            f"the results for the next step have {bytes_flowing} bytes, more than {FLOW_BYTES_MAX}: pass references"
        )
        raise errors.MeshError(errors.Kind.TOO_LARGE, message)
    own = msgspec.json.decode(parameters, type=dict[str, Raw])
    if strategy is Strategy.MAP_REDUCE:
        own["inputs"] = Raw(msgspec.json.encode(list(flowing)))
    else:
        own["input"] = Raw(msgspec.json.encode(flowing[0]))
    return Raw(msgspec.json.encode(own))


def aggregate(rule: Distribution, children: Sequence[Child], winners: Sequence[uuid.UUID]) -> bytes:
    """The parent's result as JSON.

    A pipeline and a map_reduce answer what their last step did; any and best_of `{task_id, position, result}` of the one
    that counts; the others `{results, completed, subtasks}`, results in the order of the subtasks and null where one did not
    complete. Results too large to stand together are left with the subtasks: `results` is then null and `message` says so.
    """
    won = [child for child in sorted(children, key=lambda child: child.position) if child.id in set(winners)]
    if rule.strategy in (Strategy.PIPELINE, Strategy.MAP_REDUCE):
        return msgspec.json.encode(won[-1].result)
    if rule.completion in (Completion.ANY, Completion.BEST_OF):
        [winner] = won
        return msgspec.json.encode({"task_id": winner.id, "position": winner.position, "result": winner.result})
    answer: dict[str, object] = {"results": None, "completed": len(won), "subtasks": rule.subtasks}
    bytes_together = sum(len(bytes(child.result)) for child in won if child.result is not None)
    if bytes_together > FLOW_BYTES_MAX:
        answer["message"] = f"the results have {bytes_together} bytes together; read them from the subtasks"
    else:
        by_position = {child.position: child.result for child in won}
        answer["results"] = [by_position.get(position) for position in range(rule.subtasks)]
    return msgspec.json.encode(answer)
