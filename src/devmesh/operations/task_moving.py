"""What the verbs of tasks share: lock, ask whether the caller may, move, settle the parents, save.

A move is core's pure function; this is the walk around it, for many tasks at a time.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import msgspec

from devmesh.core import distribution, errors, tasks
from devmesh.core.access import Caller, acting_agent, is_vouched
from devmesh.core.tasks import Move, Task
from devmesh.operations.registry import Call
from devmesh.operations.work import Work
from devmesh.store.statements import load
from devmesh.store.tasks import SQL, LockedTasks

AGENTS = load("agents")
TREE_MAX = 10_000  # descendants that one transaction cancels


class TaskResult(msgspec.Struct):
    task: Task


async def move_each(
    work: Work, calls: Sequence[Call[Any]], decide: Callable[[Call[Any], Task], Move], *, fenced: bool
) -> list[TaskResult | errors.MeshError]:
    """Makes one move for each call on the task that its `task_id` names, as the agent that holds it.

    `decide` gives the move or raises a conflict. `fenced` calls carry the `attempt` that they were given.
    """
    locked = LockedTasks(work)
    await locked.lock({call.params.task_id for call in calls})
    owners = await assignee_owners(work, calls, locked)
    answers: list[TaskResult | errors.MeshError] = []
    for call in calls:
        try:
            task = require_task(locked, call.params.task_id)
            if fenced or getattr(call.params, "attempt", None) is not None:
                tasks.check_attempt(task.attempt, call.params.attempt)
            require_holder(
                call.caller, call.params.agent_id, task.status, task.assigned_to, owners.get(task.assigned_to)
            )
            tasks.check_version(task, getattr(call.params, "if_version", None))
            answers.append(TaskResult(locked.move(task.id, decide(call, task))))
        except errors.MeshError as refused:
            answers.append(refused)
    await settle(work, locked)
    await locked.save()
    return answers


def require_task(locked: LockedTasks, task_id: uuid.UUID) -> Task:
    task = locked.get(task_id)
    if task is None:
        raise errors.not_found("task", task_id)
    return task


async def assignee_owners(
    work: Work, calls: Sequence[Call[Any]], locked: LockedTasks
) -> dict[uuid.UUID | None, uuid.UUID]:
    """Who registered the agents that hold the calls' tasks, where the caller is not already known to be that agent."""
    asked = set()
    for call in calls:
        task = locked.get(call.params.task_id)
        if task is not None and task.assigned_to is not None and not is_vouched(call.caller, task.assigned_to):
            asked.add(task.assigned_to)
    if not asked:
        return {}
    rows = await work.tx.fetch(AGENTS.owners, work.tenant_id, list(asked))
    return {row["agent_id"]: row["owner_id"] for row in rows}


def require_holder(
    caller: Caller, named: uuid.UUID | None, status: str, holder: uuid.UUID | None, owner_id: uuid.UUID | None
) -> None:
    """Only the agent that holds a task writes to it: the caller's own, or one that the caller's key registered.

    Whoever names no agent and is none acts as the task's holder, if its key registered that one (`owner_id`).
    """
    actor = acting_agent(caller, named) or holder
    if holder is None:
        raise errors.conflict("task.state", f"the task is {status} and no agent holds it")
    if actor != holder or not (is_vouched(caller, holder) or owner_id == caller.owner_id):
        raise errors.forbidden("only the agent that holds this task may do this")


def subject_agent(call: Call[Any]) -> Hashable:
    """The agent that a call acts as: a batch holds one call of each, so that it can be answered by one statement."""
    return call.params.agent_id or call.caller.agent_id


async def own_agents(work: Work, calls: Sequence[Call[Any]]) -> list[uuid.UUID | errors.MeshError]:
    """The agent that each call acts as, checked: the caller's own, or one that its key registered. Or why it may not."""
    wanted = [call.params.agent_id or call.caller.agent_id for call in calls]
    unvouched = {agent_id for call, agent_id in zip(calls, wanted, strict=True)
                 if agent_id is not None and not is_vouched(call.caller, agent_id)}  # fmt: skip
    rows = await work.tx.fetch(AGENTS.owners, work.tenant_id, list(unvouched)) if unvouched else []
    owners = {row["agent_id"]: row["owner_id"] for row in rows}
    found: list[uuid.UUID | errors.MeshError] = []
    for call in calls:
        try:
            found.append(_own_agent(call, owners))
        except errors.MeshError as refused:
            found.append(refused)
    return found


async def require_own_agent(work: Work, call: Call[Any]) -> uuid.UUID:
    """The same for one call. Raises what keeps it."""
    [found] = await own_agents(work, [call])
    if isinstance(found, errors.MeshError):
        raise found
    return found


def _own_agent(call: Call[Any], owners: dict[uuid.UUID, uuid.UUID]) -> uuid.UUID:
    agent_id = acting_agent(call.caller, call.params.agent_id)
    if agent_id is None:
        message = "name the agent that you act as in agent_id, or initialize the session with it"
        raise errors.conflict("session.no_agent", message, "agent_id")
    if not is_vouched(call.caller, agent_id):
        if agent_id not in owners:
            raise errors.not_found("agent", agent_id)
        if owners[agent_id] != call.caller.owner_id and not call.caller.is_admin:
            raise errors.forbidden("this agent was registered by another key")
    return agent_id


async def cancel_tree(work: Work, locked: LockedTasks, roots: Sequence[uuid.UUID], reason: str) -> int:
    """Cancels the unfinished descendants of these tasks, TREE_MAX at most, and says how many were in its reach.

    While a task is waited for, its holder may have given it children: so the tree is read until it holds nothing new. A
    task that is locked gets no more children.
    """
    reached: set[uuid.UUID] = set()
    while True:
        rows = await work.tx.fetch(SQL.tree, work.tenant_id, list(roots), TREE_MAX)
        ids = [row["task_id"] for row in rows if row["task_id"] not in reached]
        if not ids:
            return len(reached)
        reached.update(ids)
        await locked.lock(ids, whole=False)
        cancel_unfinished(work, locked, ids, reason)


def cancel_unfinished(work: Work, locked: LockedTasks, ids: Sequence[uuid.UUID], reason: str) -> None:
    for task_id in ids:
        if locked[task_id].status not in tasks.FINISHED:
            locked.move(task_id, tasks.cancel(locked[task_id], reason, work.now))


async def settle(work: Work, locked: LockedTasks) -> None:
    """Lets distributed parents of finished children go on: unblock the next, cancel the spare, finish by their rule.

    A parent that finishes may itself be a child, so this goes on until nothing more follows. At most as deep as parents lie.
    """
    settled: set[uuid.UUID] = set()
    while True:
        ended = [task for task in locked.changed() if task.status in tasks.FINISHED and task.id not in settled]
        if not ended:
            return
        settled |= {task.id for task in ended}
        if distributed := [task.id for task in ended if task.distribution is not None]:
            await cancel_tree(work, locked, distributed, "its parent has ended")
        for parent_id in sorted({task.parent_id for task in ended if task.parent_id is not None}):
            parent = locked.get(parent_id)  # a distributed one was locked with its child
            if parent is not None and parent.distribution is not None and parent.status not in tasks.FINISHED:
                await _settle_parent(work, locked, parent)


async def _settle_parent(work: Work, locked: LockedTasks, parent: Task) -> None:
    assert parent.distribution is not None
    rule = msgspec.json.decode(parent.distribution, type=distribution.Distribution)
    children = await _children(work, locked, parent.id, rule)
    decision = distribution.decide(rule, children)
    await locked.lock(decision.spare, whole=False)
    await locked.lock([child_id for child_id, _ in decision.unblock])
    cancel_unfinished(work, locked, decision.spare, "its parent no longer needs it")
    results = await _results(work, locked, [*decision.winners, *(i for _, inputs in decision.unblock for i in inputs)])
    try:
        for child_id, inputs in decision.unblock:
            _unblock(work, locked, child_id, [results.get(given) for given in inputs], rule)
    except errors.MeshError as refused:  # what should flow into the next step is too large
        decision = distribution.Decision(outcome=tasks.Status.FAILED, reason=refused.message)
    if decision.outcome is tasks.Status.COMPLETED:
        for child in children:
            child.result = results.get(child.id, child.result)
        result = msgspec.Raw(distribution.aggregate(rule, children, decision.winners))
        locked.move(parent.id, tasks.complete(parent, result, work.now))
    elif decision.outcome is tasks.Status.FAILED:
        error = msgspec.Raw(msgspec.json.encode({"message": decision.reason, "children": decision.failed}))
        locked.move(parent.id, tasks.fail(parent, error, False, work.now, 0.0))


def _unblock(
    work: Work,
    locked: LockedTasks,
    child_id: uuid.UUID,
    flowing: Sequence[msgspec.Raw | None],
    rule: distribution.Distribution,
) -> None:
    child = locked[child_id]
    parameters = distribution.with_input(child.parameters, flowing, rule.strategy) if flowing else None
    locked.move(child_id, tasks.unblock(child, parameters, work.now))


async def _children(
    work: Work, locked: LockedTasks, parent_id: uuid.UUID, rule: distribution.Distribution
) -> list[distribution.Child]:
    """The children as the table has them and as this transaction's moves have left them."""
    children = []
    for row in await work.tx.fetch(SQL.children, work.tenant_id, [parent_id]):
        moved = locked.get(row["task_id"])
        status = moved.status if moved else tasks.Status(row["status"])
        blocked = moved.blocked if moved else row["blocked"]
        children.append(distribution.Child(row["task_id"], row["position"], status, blocked, None))
    if rule.completion is distribution.Completion.BEST_OF and all(c.status in tasks.FINISHED for c in children):
        results = await _results(work, locked, [child.id for child in children])
        for child in children:
            child.result = results.get(child.id)
    return children


async def _results(work: Work, locked: LockedTasks, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, msgspec.Raw | None]:
    found: dict[uuid.UUID, msgspec.Raw | None] = {}
    if ids:
        for row in await work.tx.fetch(SQL.results, work.tenant_id, list(set(ids))):
            found[row["task_id"]] = msgspec.Raw(row["result"]) if row["result"] is not None else None
        for task_id in ids:
            if (moved := locked.get(task_id)) is not None:
                found[task_id] = moved.result
    return found
