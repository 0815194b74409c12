"""Why a task is where it is: the true reason, read from the same rows that decide it."""

from __future__ import annotations

import datetime
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
AGENTS_EXPLAINED_MAX = 1_000


class Explanation(msgspec.Struct):
    """`reason` is for programs, `explanation` for people; `detail` holds the figures behind it."""

    task_id: object
    status: Status
    reason: str
    explanation: str
    detail: dict[str, Any] = {}


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
    return ExplainResult(Explanation(task.id, Status(task.status), reason, explanation, detail))


Reason = tuple[str, str, dict[str, Any]]


async def _reason(work: Work, task: Task) -> Reason:
    if task.status in tasks.FINISHED:
        return "finished", f"the task is {task.status}", {"finished_at": task.finished_at, "error": task.error}
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
    if task.target_agent_id is not None:
        rows = await work.tx.fetch(AGENTS.get_many, work.tenant_id, [task.target_agent_id])
    else:
        required = task.required_capabilities or None
        rows = await work.tx.fetch(
            AGENTS.page, work.tenant_id, None, AGENTS_EXPLAINED_MAX, None, None, required
        )
    capable = [row for row in rows if row["id"] not in task.excluded_agent_ids]
    detail: dict[str, Any] = {
        "required_capabilities": task.required_capabilities,
        "agents": {status: sum(row["status"] == status for row in capable) for status in {r["status"] for r in capable}},
        "excluded": len(rows) - len(capable),
    }
    if task.target_agent_id is not None:
        status = rows[0]["status"] if rows else "deregistered"
        if status not in ("available", "degraded"):
            detail["agent_id"] = task.target_agent_id
            return "target_unavailable", f"it is meant for an agent that is {status}", detail
    if task.assign == Assign.PULL and task.target_agent_id is None:
        return "waiting_for_claim", "it is not assigned by the mesh: an agent must claim it", detail
    if not rows:
        return "no_capable_agent", f"no agent has the capabilities {', '.join(task.required_capabilities)}", detail
    if not capable:
        return "all_excluded", "every agent that could do it has rejected it or handed it on", detail
    for status, reason in (("available", ""), ("degraded", ""), ("busy", "all_busy"), ("draining", "all_draining"),
                           ("suspended", "all_suspended"), ("offline", "all_offline")):  # fmt: skip
        if status in detail["agents"]:
            if not reason:
                return "about_to_be_assigned", "a capable agent has room; the assigner gives it out in its turn", detail
            return reason, f"the agents that could do it are {', '.join(sorted(detail['agents']))}", detail
    raise AssertionError("every status of an agent has its reason")
