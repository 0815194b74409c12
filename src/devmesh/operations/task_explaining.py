"""Why a task is where it is: the true reason, read from the same rows that decide it."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import msgspec

from devmesh.core import errors, tasks
from devmesh.core.access import Scope
from devmesh.core.tasks import Assign, Status, Task
from devmesh.operations.registry import Call, operation
from devmesh.operations.task_views import ById
from devmesh.operations.work import Work
from devmesh.store.statements import load
from devmesh.store.tasks import SQL, from_row

AGENTS = load("agents")
STATES = ("available", "degraded", "busy", "draining", "suspended", "offline", "excluded")  # the most hopeful first


class Explanation(msgspec.Struct):
    """`reason` is for programs, `explanation` for people; `detail` holds the figures behind it."""

    task_id: uuid.UUID
    status: Status
    reason: str
    explanation: str
    detail: dict[str, Any] = msgspec.field(default_factory=dict)


class ExplainResult(msgspec.Struct):
    explanation: Explanation


@operation("task.explain", scope=Scope.READ, http="GET /tasks/{task_id}/explain", single=True)
async def explain(work: Work, call: Call[ById]) -> ExplainResult:
    """Say why a task is not running, or what it waits for.

    Reasons: no_capable_agent, all_offline, all_draining, all_suspended, all_busy, all_excluded, target_unavailable,
    waiting_for_claim, waiting_for_siblings, backing_off, about_to_be_assigned, held, waiting_for_subtasks, finished.
    """
    rows = await work.tx.fetch(SQL.get_many, work.tenant_id, [call.params.task_id])
    if not rows:
        raise errors.not_found("task", call.params.task_id)
    task = from_row(rows[0])
    reason, explanation, detail = await _reason(work, task)
    return ExplainResult(Explanation(task.id, task.status, reason, explanation, detail))


Reason = tuple[str, str, dict[str, Any]]


async def _reason(work: Work, task: Task) -> Reason:
    detail: dict[str, Any]
    if task.status in tasks.FINISHED:
        detail = {"finished_at": task.finished_at, "error": task.error}
        return "finished", f"the task is {task.status}", detail
    if task.distribution is not None:
        return await _waiting_for_subtasks(work, task)
    if task.status in tasks.HELD:
        detail = {"agent_id": task.assigned_to, "attempt": task.attempt, "lease_until": task.lease_until}
        return "held", f"an agent holds it ({task.status}) and must renew its lease by {task.lease_until}", detail
    if task.blocked:
        return "waiting_for_siblings", "it waits until the subtasks before it have ended", {"parent_id": task.parent_id}
    if task.ready_at > work.now:
        wait_s = (task.ready_at - work.now) / datetime.timedelta(seconds=1)
        detail = {"ready_at": task.ready_at, "retry_count": task.retry_count, "error": task.error}
        return "backing_off", f"an attempt failed; the next may begin in {wait_s:.1f} s", detail
    return await _waiting_for_agent(work, task)


async def _waiting_for_subtasks(work: Work, task: Task) -> Reason:
    counts: dict[str, int] = {}
    for row in await work.tx.fetch(SQL.children, work.tenant_id, [task.id]):
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    return "waiting_for_subtasks", "it ends by its rule when its subtasks do", {"subtasks": counts}


async def _waiting_for_agent(work: Work, task: Task) -> Reason:
    target, excluded = task.target_agent_id, task.excluded_agent_ids
    rows = await work.tx.fetch(AGENTS.waiting_for, work.tenant_id, task.required_capabilities, target, excluded)
    counts: dict[str, int] = {row["state"]: row["count"] for row in rows}
    detail: dict[str, Any] = {"required_capabilities": task.required_capabilities, "agents": counts}
    if target is not None:
        detail["agent_id"] = target
    if not counts:
        if target is not None:
            return "target_unavailable", "it is meant for an agent that has left", detail
        wanted = ", ".join(task.required_capabilities)
        return "no_capable_agent", f"no agent has the capabilities {wanted}" if wanted else "there is no agent", detail
    state = next(state for state in STATES if state in counts)
    if state in ("available", "degraded"):
        if task.assign is Assign.PULL and target is None:
            return "waiting_for_claim", "it is not assigned by the mesh: an agent must claim it", detail
        return "about_to_be_assigned", "a capable agent has room; the assigner gives it out in its turn", detail
    if target is not None:
        return "target_unavailable", f"it is meant for an agent that is {state}", detail
    if state == "excluded":
        return "all_excluded", "every agent that could do it has rejected it or handed it on", detail
    return f"all_{state}", f"the agents that could do it are {' or '.join(s for s in STATES if s in counts)}", detail
