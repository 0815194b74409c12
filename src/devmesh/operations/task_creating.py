"""How tasks come to be: one, many, or a distributed one with its subtasks."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from devmesh.core import errors, tasks
from devmesh.core.access import Caller, Scope
from devmesh.core.distribution import Completion, Distribution, initially_blocked, validate
from devmesh.core.distribution import Strategy as Distributing
from devmesh.core.ids import new_id
from devmesh.core.names import (
    EMPTY_OBJECT,
    UUID_PATTERN,
    IdempotencyKey,
    Label,
    Labels,
    Moment,
    Name,
    Text,
    require_object,
)
from devmesh.core.tasks import Assign, JsonObject, Status, Strategy, Task
from devmesh.operations.registry import Call, Mutation, Params, operation
from devmesh.operations.task_moving import AGENTS, TaskResult
from devmesh.operations.work import Work
from devmesh.store.tasks import SQL

LEASE_S_DEFAULT = 30.0
TASKS_PER_CALL_MAX = 1_000
DurationS = Annotated[float, Meta(gt=0, le=30 * 86_400)]
Assignee = Annotated[str, Meta(extra_json_schema={"pattern": f"^(auto|pull|{UUID_PATTERN})$"})]
LeaseS = Annotated[float, Meta(ge=0.5, le=86_400)]


class TaskSpec(Params, kw_only=True):
    """What somebody wants done. `assign` is auto (the mesh chooses), pull (agents claim it) or an agent's id."""

    title: Name
    description: Text = ""
    type: Label = "task"
    priority: Annotated[int, Meta(ge=1, le=5)] = tasks.PRIORITY_DEFAULT
    parameters: JsonObject = msgspec.field(default_factory=lambda: EMPTY_OBJECT)
    required_capabilities: Labels = msgspec.field(default_factory=list)
    assign: Assignee = "auto"
    strategy: Strategy = Strategy.LEAST_LOADED
    max_retries: Annotated[int, Meta(ge=0, le=50)] = 3
    timeout_s: DurationS | None = None
    lease_s: LeaseS = LEASE_S_DEFAULT
    deadline: Moment | None = None
    tags: Labels = msgspec.field(default_factory=list)
    metadata: JsonObject = msgspec.field(default_factory=lambda: EMPTY_OBJECT)


class Create(TaskSpec, kw_only=True):
    idempotency_key: IdempotencyKey | None = None
    parent_id: uuid.UUID | None = None


@operation("task.create", scope=Scope.WRITE, http="POST /tasks")
async def create(work: Work, calls: Sequence[Call[Create]]) -> Sequence[TaskResult | errors.MeshError]:
    """Create a task. The answer is durable: once it has come, the task will not be lost."""
    answers = [_made(work, call) for call in calls]
    unknown = await _unknown_references(work, [answer.task for answer in answers if isinstance(answer, TaskResult)])
    for ordinal, answer in enumerate(answers):
        if isinstance(answer, TaskResult) and (refusal := _refusal(answer.task, unknown)) is not None:
            answers[ordinal] = refusal
    await _insert(work, [answer.task for answer in answers if isinstance(answer, TaskResult)])
    return answers


def _made(work: Work, call: Call[Create]) -> TaskResult | errors.MeshError:
    try:
        return TaskResult(_task(work, call.caller, call.params, parent_id=call.params.parent_id))
    except errors.MeshError as refused:
        return refused


class CreateMany(Mutation, kw_only=True):
    tasks: Annotated[list[TaskSpec], Meta(min_length=1, max_length=TASKS_PER_CALL_MAX)]
    parent_id: uuid.UUID | None = None


class TasksResult(msgspec.Struct):
    tasks: list[Task]


@operation("task.create_many", scope=Scope.WRITE, http="POST /tasks/batch", single=True)
async def create_many(work: Work, call: Call[CreateMany]) -> TasksResult:
    """Create up to 1,000 tasks at once: all of them, or, when one is wrong, none."""
    made = [_task(work, call.caller, spec, parent_id=call.params.parent_id) for spec in call.params.tasks]
    await _require_known(work, made)
    await _insert(work, made)
    return TasksResult(made)


# What goes together, by core/distribution.py; the reduce step and the threshold each with their own kind.
_NULL = {"type": "null"}
_DISTRIBUTED: tuple[dict[str, Any], ...] = (
    {"properties": {"assign": {"const": "auto"}, "required_capabilities": {"maxItems": 0}}},
    {"oneOf": [
        {"properties": {"completion": {"const": "threshold"}, "threshold": {"not": _NULL}},
         "required": ["completion", "threshold"]},
        {"properties": {"completion": {"not": {"const": "threshold"}}, "threshold": _NULL}},
    ]},
    {"oneOf": [
        {"properties": {"distribution": {"const": "map_reduce"}, "reduce": {"not": _NULL},
                        "completion": {"not": {"const": "best_of"}}}, "required": ["distribution", "reduce"]},
        {"properties": {"distribution": {"enum": ["sequential", "pipeline"]}, "completion": {"const": "all"}, "reduce": _NULL},
         "required": ["distribution"]},
        {"properties": {"distribution": {"const": "parallel"}, "reduce": _NULL}},
    ]},
)  # fmt: skip


class CreateDistributed(TaskSpec, kw_only=True):
    """The parent's own fields, and what it consists of. `reduce` is for map_reduce and gets `inputs`, the maps' results.

    No agent holds the parent, so `assign` and `required_capabilities` belong into the subtasks.
    """

    together = _DISTRIBUTED

    idempotency_key: IdempotencyKey | None = None
    subtasks: Annotated[list[TaskSpec], Meta(min_length=1, max_length=TASKS_PER_CALL_MAX)]
    distribution: Distributing = Distributing.PARALLEL
    completion: Completion = Completion.ALL
    threshold: Annotated[int, Meta(ge=1, le=TASKS_PER_CALL_MAX)] | None = None
    best_of_field: Label = "score"
    reduce: TaskSpec | None = None


class DistributedResult(msgspec.Struct):
    task: Task
    subtasks: list[Task]


@operation("task.create_distributed", scope=Scope.WRITE, http="POST /tasks/distributed", single=True)
async def create_distributed(work: Work, call: Call[CreateDistributed]) -> DistributedResult:
    """Create a task that consists of subtasks, and ends by its completion rule when they do.

    `distribution` is parallel, sequential, pipeline (each gets the result before it as `input`) or map_reduce; `completion`
    is all, any, majority, threshold or best_of. Subtasks that are no longer needed are cancelled.
    """
    asked = call.params
    rule = Distribution(
        strategy=asked.distribution, completion=asked.completion, threshold=asked.threshold,
        best_of_field=asked.best_of_field, subtasks=len(asked.subtasks), has_reduce=asked.reduce is not None,
    )  # fmt: skip
    validate(rule, len(asked.subtasks))
    if asked.assign != Assign.AUTO or asked.required_capabilities:
        field = "required_capabilities" if asked.required_capabilities else "assign"
        raise errors.invalid(f"{field}: no agent holds a distributed task; say it of its subtasks", field)
    specs = [*asked.subtasks, *([asked.reduce] if asked.reduce is not None else [])]
    parent = _task(work, call.caller, asked, parent_id=None)
    parent.distribution, parent.status, parent.started_at = Raw(msgspec.json.encode(rule)), Status.RUNNING, work.now
    if asked.timeout_s is not None:
        parent.timeout_at = work.now + datetime.timedelta(seconds=asked.timeout_s)
    children = [
        _task(work, call.caller, spec, parent_id=parent.id, position=position) for position, spec in enumerate(specs)
    ]
    for child in children:
        child.blocked = initially_blocked(rule, child.position)
    await _require_known(work, children, are_parents_new=True)
    await _insert(work, [parent, *children])
    return DistributedResult(parent, children)


def _task(work: Work, caller: Caller, spec: TaskSpec, *, parent_id: uuid.UUID | None, position: int = 0) -> Task:
    """The new task, as the table will hold it."""
    deadline = spec.deadline.astimezone(datetime.UTC) if spec.deadline is not None else None
    if deadline is not None and deadline <= work.now:
        raise errors.past("deadline")
    target = _target(spec)
    now = work.now
    return Task(
        id=new_id(), title=spec.title, description=spec.description, type=spec.type, priority=spec.priority,
        parameters=require_object(spec.parameters, "parameters"),
        required_capabilities=sorted(set(spec.required_capabilities)), tags=list(spec.tags),
        metadata=require_object(spec.metadata, "metadata"), created_by=caller.agent_id, created_by_key_id=caller.key_id,
        assign=Assign.AUTO if target else Assign(spec.assign), strategy=spec.strategy, target_agent_id=target,
        excluded_agent_ids=[], parent_id=parent_id, position=position, distribution=None, blocked=False,
        delegated_from=None, delegation_depth=0, status=Status.PENDING, attempt=1, version=1, assigned_to=None, result=None,
        error=None, progress=0.0, progress_message=None, retry_count=0, max_retries=spec.max_retries,
        timeout_s=spec.timeout_s, lease_s=spec.lease_s, deadline=deadline, ready_at=now, lease_until=None,
        timeout_at=None, created_at=now, updated_at=now, assigned_at=None, accepted_at=None, started_at=None,
        finished_at=None,
    )  # fmt: skip


def _target(spec: TaskSpec) -> uuid.UUID | None:
    """The agent that a task is meant for, when it is meant for one."""
    if spec.assign in ("auto", "pull"):
        return None
    try:
        return uuid.UUID(spec.assign)
    except ValueError:
        raise errors.invalid("assign: expected auto, pull or an agent's id", "assign") from None


async def _unknown_references(work: Work, made: Sequence[Task], *, are_parents_new: bool = False) -> set[uuid.UUID]:
    """The agents and parents that tasks name and this tenant does not have. The others stay until the tasks are committed.

    Tasks are locked before agents, as everywhere.
    """
    agent_ids = {task.target_agent_id for task in made if task.target_agent_id is not None}
    parent_ids = {task.parent_id for task in made if task.parent_id is not None and not are_parents_new}
    unknown = agent_ids | parent_ids
    if parent_ids:
        rows = await work.tx.fetch(SQL.open_parents, work.tenant_id, list(parent_ids))
        unknown -= {row["task_id"] for row in rows}
    if agent_ids:
        rows = await work.tx.fetch(AGENTS.kept, work.tenant_id, list(agent_ids))
        unknown -= {row["agent_id"] for row in rows}
    return unknown


def _refusal(task: Task, unknown: set[uuid.UUID]) -> errors.MeshError | None:
    if task.target_agent_id in unknown:
        return errors.not_found("agent", task.target_agent_id)
    if task.parent_id in unknown:
        return errors.not_found("open parent task", task.parent_id)
    return None


async def _require_known(work: Work, made: Sequence[Task], *, are_parents_new: bool = False) -> None:
    """All of these tasks, or none: raises what keeps the first one."""
    unknown = await _unknown_references(work, made, are_parents_new=are_parents_new)
    for task in made:
        if (refusal := _refusal(task, unknown)) is not None:
            raise refusal


async def _insert(work: Work, made: Sequence[Task]) -> None:
    """Writes new tasks. Each is encoded once, for its row and for its event."""
    if not made:
        return
    encoded = [msgspec.json.encode(task) for task in made]
    await work.tx.execute(SQL.insert_many, work.tenant_id, (b"[" + b",".join(encoded) + b"]").decode())
    for task, text in zip(made, encoded, strict=True):
        work.emit("task.created", tasks.topics(task), b'{"task":' + text + b"}")
