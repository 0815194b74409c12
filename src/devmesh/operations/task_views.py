"""Tasks as they are looked at: one, a page, a history, a reason, a count, a wait."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence

import msgspec
from msgspec import Raw

from devmesh.core import errors, tasks
from devmesh.core.access import Scope
from devmesh.core.events import Cursor, CursorText, decode_cursor, task_topic
from devmesh.core.ids import first_id_at
from devmesh.core.names import (
    PAGE_BYTES_MAX,
    Label,
    Moment,
    PageCursor,
    PageLimit,
    WaitMs,
    decode_page_cursor,
    fitting,
    page_cursor,
    size_bytes,
)
from devmesh.core.tasks import Status, Task
from devmesh.operations.pages import fit
from devmesh.operations.registry import Call, NotYet, Params, operation
from devmesh.operations.task_moving import TaskResult
from devmesh.operations.work import SQL as EVENTS
from devmesh.operations.work import Work
from devmesh.store.tasks import SQL, from_row

WALKED_MAX = 100_000  # tasks that one page looks through
LAST_ID = uuid.UUID(int=2**128 - 1)
CLOCK_SKEW_MAX = datetime.timedelta(minutes=10)  # between a node, which makes ids, and the database, which dates tasks
HISTORY_ATTEMPTS_MAX = 1_000


class ById(Params, kw_only=True):
    task_id: uuid.UUID


@operation("task.get", scope=Scope.READ, http="GET /tasks/{task_id}")
async def get(work: Work, calls: Sequence[Call[ById]]) -> Sequence[TaskResult | errors.MeshError]:
    """Show a task."""
    found = await _tasks(work, [call.params.task_id for call in calls])
    return [
        TaskResult(found[call.params.task_id])
        if call.params.task_id in found
        else errors.not_found("task", call.params.task_id)
        for call in calls
    ]


class Wait(ById, kw_only=True):
    timeout_ms: WaitMs = 30_000


@operation("task.wait", scope=Scope.READ, http="GET /tasks/{task_id}/wait")
async def wait(work: Work, calls: Sequence[Call[Wait]]) -> Sequence[TaskResult | NotYet | errors.MeshError]:
    """Wait until a task has ended, and show it; after `timeout_ms` show it as it is."""
    found = await _tasks(work, [call.params.task_id for call in calls])
    answers: list[TaskResult | NotYet | errors.MeshError] = []
    for call in calls:
        task = found.get(call.params.task_id)
        if task is None:
            answers.append(errors.not_found("task", call.params.task_id))
        elif task.status in tasks.FINISHED:
            answers.append(TaskResult(task))
        else:
            answers.append(NotYet(TaskResult(task), call.params.timeout_ms))
    return answers


class ListTasks(Params, kw_only=True):
    status: list[Status] | None = None
    assigned_to: uuid.UUID | None = None
    created_by: uuid.UUID | None = None
    parent_id: uuid.UUID | None = None
    type: Label | None = None
    tag: Label | None = None
    limit: PageLimit = 50
    cursor: PageCursor | None = None


class TasksResult(msgspec.Struct):
    tasks: list[Task]
    next_cursor: str | None = None


@operation("task.list", scope=Scope.READ, http="GET /tasks", single=True)
async def list_tasks(work: Work, call: Call[ListTasks]) -> TasksResult:
    """List tasks, newest first, filtered by status, assignee, creator, parent, type and one tag.

    A page holds 1 MiB at most, unless its only task is larger, and looks through 100,000 tasks at most: it may be short,
    or empty where few match, although `next_cursor` leads on.
    """
    asked = call.params
    below = decode_page_cursor(asked.cursor) or LAST_ID
    place: list[object]
    filters = (asked.assigned_to, asked.created_by, asked.type, asked.tag, PAGE_BYTES_MAX)
    if asked.parent_id is not None:
        statement, place = SQL.page_of_parent, [asked.parent_id, asked.status]
    elif asked.status is not None and tasks.FINISHED.isdisjoint(asked.status):
        statement, place = SQL.page_unfinished, [asked.status]
    else:
        statement, place = SQL.page, [WALKED_MAX, asked.status]
    rows = await work.tx.fetch(statement, work.tenant_id, below, asked.limit, *place, *filters)
    page = fit(rows, asked.limit)
    shown = [from_row(row) for row in page.rows]
    if page.is_more:
        return TasksResult(shown, page.cursor("id"))
    reached = None
    if statement is SQL.page:
        reached = await work.tx.fetch_value(SQL.page_reach, work.tenant_id, below, WALKED_MAX)
    return TasksResult(shown, page_cursor([reached], 1) if reached is not None else None)


class HistoryAttempt(msgspec.Struct):
    """An attempt that has ended."""

    attempt: int
    agent_id: uuid.UUID
    agent_name: str | None
    outcome: tasks.Outcome
    error: Raw | None
    assigned_at: datetime.datetime
    ended_at: datetime.datetime


class HistoryDelegation(msgspec.Struct):
    depth: int
    attempt: int
    from_agent_id: uuid.UUID | None
    to_agent_id: uuid.UUID | None
    capabilities: list[str]
    kind: str
    reason: str
    delegated_at: datetime.datetime


class HistoryEvent(msgspec.Struct):
    type: str
    at: datetime.datetime
    data: Raw


class HistoryResult(msgspec.Struct):
    """What happened to a task. `events` is a page of its steps, oldest first, as far back as events are kept."""

    task: Task
    attempts: list[HistoryAttempt]
    delegations: list[HistoryDelegation]
    events: list[HistoryEvent]
    next_cursor: str | None


class History(ById, kw_only=True):
    limit: PageLimit = 100
    cursor: CursorText | None = None


@operation("task.history", scope=Scope.READ, http="GET /tasks/{task_id}/history", single=True)
async def history(work: Work, call: Call[History]) -> HistoryResult:
    """Show what happened to a task: the attempts that have ended, the first 1,000 of them, its delegations and its events.

    Events come in pages of `limit`, and of 1 MiB at most; `next_cursor` leads to those after.
    """
    task_id = call.params.task_id
    found = await _tasks(work, [task_id])
    if task_id not in found:
        raise errors.not_found("task", task_id)
    attempts = await work.tx.fetch(SQL.attempts, work.tenant_id, task_id, HISTORY_ATTEMPTS_MAX)
    delegations = await work.tx.fetch(SQL.delegations, work.tenant_id, task_id)
    events, next_cursor = await _events_of(work, call.params)
    return HistoryResult(
        found[task_id],
        [HistoryAttempt(**{**row, "error": Raw(row["error"]) if row["error"] else None}) for row in attempts],
        [HistoryDelegation(**row) for row in delegations],
        events,
        next_cursor,
    )


async def _events_of(work: Work, asked: History) -> tuple[list[HistoryEvent], str | None]:
    after = decode_cursor(asked.cursor) if asked.cursor is not None else Cursor(0, 0)
    topic = task_topic(asked.task_id)
    rows = await work.tx.fetch(EVENTS.of_topic, work.tenant_id, topic, after.sequence, asked.limit)
    page = rows[: fitting(size_bytes(row["data"]) for row in rows)]
    is_more = len(page) < len(rows) or len(rows) == asked.limit
    next_cursor = Cursor(after.epoch, page[-1]["sequence"]).encode() if is_more else None
    return [HistoryEvent(row["type"], row["at"], Raw(row["data"])) for row in page], next_cursor


class Stats(Params, kw_only=True):
    since: Moment | None = None


class StatsResult(msgspec.Struct):
    """Counts of the tenant's tasks created since a time (24 hours ago by default), by status."""

    since: datetime.datetime
    counts: dict[str, int]
    total: int
    mean_duration_s: float | None  # of the completed ones, from creation to end


@operation("task.stats", scope=Scope.READ, http="GET /tasks/stats", single=True)
async def stats(work: Work, call: Call[Stats]) -> StatsResult:
    """Count tasks by status, and say how long the completed ones took."""
    since = call.params.since or work.now - datetime.timedelta(hours=24)
    lowest = first_id_at((since - CLOCK_SKEW_MAX).timestamp())
    rows = {row["status"]: row for row in await work.tx.fetch(SQL.stats, work.tenant_id, since, lowest)}
    counts = {status.value: rows[status]["count"] if status in rows else 0 for status in Status}
    done = rows.get(Status.COMPLETED)
    return StatsResult(since, counts, sum(counts.values()), done["mean_s"] if done else None)


async def _tasks(work: Work, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Task]:
    rows = await work.tx.fetch(SQL.get_many, work.tenant_id, list(ids))
    return {row["id"]: from_row(row) for row in rows}
