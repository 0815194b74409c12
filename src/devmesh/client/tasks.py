"""Tasks as a client handles them: their verbs with typed parameters, and what these answer, as Python values.

Only shapes and names stand here. What is right and what is not, the server says.
"""

from __future__ import annotations

import asyncio
import datetime
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, Required, TypedDict, Unpack

import msgspec

from devmesh.client.asking import Id, Requests, given
from devmesh.client.errors import MeshError
from devmesh.client.session import Backoff
from devmesh.core import tasks
from devmesh.core.errors import Kind
from devmesh.core.tasks import FINISHED, Outcome, Status

WAIT_S, CROWDED_WAIT_S = 10.0, 1.0  # of one request; a longer wait is several
WAITS_MAX = 128  # at once, so that there is always room for other requests on the connection


class Task(tasks.Task):
    """A task as the server shows it, its caller's own JSON decoded."""

    parameters: dict[str, Any]  # type: ignore[assignment]  # raw in the core, which never looks into it
    metadata: dict[str, Any]  # type: ignore[assignment]  # likewise
    distribution: dict[str, Any] | None  # type: ignore[assignment]  # likewise
    result: Any
    error: Any

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED


class Page(msgspec.Struct):
    """Some tasks, and the cursor of those that follow."""

    tasks: list[Task]
    next_cursor: str | None = None


class Distributed(msgspec.Struct):
    task: Task
    subtasks: list[Task]


class Attempt(msgspec.Struct):
    """An attempt that has ended."""

    attempt: int
    agent_id: uuid.UUID
    agent_name: str | None
    outcome: Outcome
    error: Any
    assigned_at: datetime.datetime
    ended_at: datetime.datetime


class HistoryEvent(msgspec.Struct):
    type: str
    at: datetime.datetime
    data: dict[str, Any]


class History(msgspec.Struct):
    """Everything that happened to a task, oldest first."""

    task: Task
    attempts: list[Attempt]
    delegations: list[dict[str, Any]]
    events: list[HistoryEvent]


class Explanation(msgspec.Struct):
    """Why a task is where it is: `reason` for programs, `explanation` for people, `detail` the figures behind it."""

    task_id: uuid.UUID
    status: Status
    reason: str
    explanation: str
    detail: dict[str, Any]


class Stats(msgspec.Struct):
    since: datetime.datetime
    counts: dict[str, int]
    total: int
    mean_duration_s: float | None


class Details(TypedDict, total=False):
    """What may be said of a new task besides its title."""

    description: str
    type: str
    priority: int  # 1-5, 5 first
    parameters: Mapping[str, Any]
    required_capabilities: Sequence[str]
    assign: str  # auto, pull, or an agent's id
    strategy: Literal["least_loaded", "round_robin", "best_match", "performance"]
    max_retries: int
    timeout_s: float
    lease_s: float
    deadline: datetime.datetime
    tags: Sequence[str]
    metadata: Mapping[str, Any]


class Spec(Details, total=False):
    """A task among several."""

    title: Required[str]


class Creation(Details, total=False):
    parent_id: Id
    idempotency_key: str


class Distribution(Details, total=False):
    distribution: Literal["parallel", "sequential", "pipeline", "map_reduce"]
    completion: Literal["all", "any", "majority", "threshold", "best_of"]
    threshold: int
    best_of_field: str
    reduce: Spec
    idempotency_key: str


class Filters(TypedDict, total=False):
    status: Sequence[str]
    assigned_to: Id
    created_by: Id
    parent_id: Id
    type: str
    tag: str
    limit: int
    cursor: str


TaskList = list[Task]  # inside Tasks, `list` is a verb


class _One(msgspec.Struct):
    task: Task


class _Explained(msgspec.Struct):
    explanation: Explanation


class Tasks:
    """`client.tasks`. Every method raises MeshError when the server says no."""

    def __init__(self, client: Requests) -> None:
        self._client = client
        self._waits = asyncio.Semaphore(WAITS_MAX)

    async def create(self, title: str, **details: Unpack[Creation]) -> Task:
        """Once this has returned, the task will not be lost."""
        return await self._one("create", title=title, **details)

    async def create_many(self, specs: Sequence[Spec], *, parent_id: Id | None = None) -> TaskList:
        """Up to 1,000 at once: all of them, or, when one is wrong, none."""
        params = given(tasks=specs, parent_id=parent_id)
        return (await self._client.request("task.create_many", params, Page)).tasks

    async def create_distributed(
        self, title: str, subtasks: Sequence[Spec], **details: Unpack[Distribution]
    ) -> Distributed:
        """A task that consists of subtasks, and ends by its completion rule when they do."""
        params = {"title": title, "subtasks": subtasks, **details}
        return await self._client.request("task.create_distributed", params, Distributed)

    async def get(self, task_id: Id) -> Task:
        return await self._one("get", task_id=task_id)

    async def list(self, **filters: Unpack[Filters]) -> Page:
        """A page of tasks, newest first."""
        return await self._client.request("task.list", filters, Page)

    async def each(self, **filters: Unpack[Filters]) -> AsyncIterator[Task]:
        """All that the filters let through, newest first, page by page."""
        while True:
            page = await self.list(**filters)
            for task in page.tasks:
                yield task
            if page.next_cursor is None:
                return
            filters["cursor"] = page.next_cursor

    async def wait(self, task_id: Id, *, timeout_s: float | None = None) -> Task:
        """The task once it has ended, however long that takes; after `timeout_s`, MeshError of the kind `timeout`.

        A mesh that does not answer for a while is waited for as well.
        """
        backoff = Backoff()
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        task = await self._wait_a_while(task_id)
                        backoff.reset()
                    except MeshError as error:
                        if not error.retryable:
                            raise
                        await asyncio.sleep(backoff.next_s(error.retry_after_ms))
                        continue
                    if task.is_finished:
                        return task
        except TimeoutError:
            raise MeshError(Kind.TIMEOUT, f"task {task_id} has not ended within {timeout_s:g} s") from None

    async def claim(
        self,
        *,
        capabilities: Sequence[str] | None = None,
        limit: int = 1,
        wait_s: float = 0.0,
        agent_id: Id | None = None,
    ) -> TaskList:
        """Take waiting tasks that this agent can do, the most urgent first; wait up to `wait_s` for one."""
        params = given(capabilities=capabilities, limit=limit, wait_ms=round(wait_s * 1000), agent_id=agent_id)
        timeout_s = wait_s + self._client.timeout_s
        return (await self._client.request("task.claim", params, Page, timeout_s=timeout_s)).tasks

    async def accept(self, task_id: Id, *, attempt: int | None = None, agent_id: Id | None = None) -> Task:
        return await self._one("accept", task_id=task_id, attempt=attempt, agent_id=agent_id)

    async def reject(
        self, task_id: Id, *, reason: str = "", attempt: int | None = None, agent_id: Id | None = None
    ) -> Task:
        """Refuse a task: it will not come to this agent again."""
        return await self._one("reject", task_id=task_id, reason=reason, attempt=attempt, agent_id=agent_id)

    async def progress(
        self, task_id: Id, attempt: int, progress: float, message: str | None = None, *, agent_id: Id | None = None
    ) -> Task:
        """Report how far a task is, 0-1; it renews the lease."""
        return await self._one(
            "progress", task_id=task_id, attempt=attempt, progress=progress, message=message, agent_id=agent_id
        )

    async def heartbeat(self, task_id: Id, attempt: int, *, agent_id: Id | None = None) -> None:
        """Renew the lease. An error means that it is lost."""
        params = given(task_id=task_id, attempt=attempt, agent_id=agent_id)
        await self._client.request("task.heartbeat", params, dict[str, Any])

    async def complete(self, task_id: Id, attempt: int, result: Any = None, *, agent_id: Id | None = None) -> Task:
        return await self._one("complete", task_id=task_id, attempt=attempt, result=result, agent_id=agent_id)

    async def fail(
        self, task_id: Id, attempt: int, error: Any, *, retryable: bool = True, agent_id: Id | None = None
    ) -> Task:
        """End an attempt badly: another follows while retries are left and `retryable` is true."""
        return await self._one(
            "fail", task_id=task_id, attempt=attempt, error=error, retryable=retryable, agent_id=agent_id
        )

    async def cancel(self, task_id: Id, *, reason: str = "") -> Task:
        """Cancel a task and everything below it that has not ended."""
        return await self._one("cancel", task_id=task_id, reason=reason)

    async def delegate(
        self,
        task_id: Id,
        *,
        to_agent: Id | None = None,
        capabilities: Sequence[str] | None = None,
        reason: str = "",
        kind: Literal["manual", "automatic", "failover", "load_balance"] = "manual",
        attempt: int | None = None,
        agent_id: Id | None = None,
    ) -> Task:
        """Hand a held task on, to an agent or to whoever has the capabilities."""
        return await self._one(
            "delegate", task_id=task_id, to_agent=to_agent, capabilities=capabilities, reason=reason, kind=kind,
            attempt=attempt, agent_id=agent_id,
        )  # fmt: skip

    async def reassign(self, task_id: Id, *, to_agent: Id | None = None, reason: str = "") -> Task:
        """For administrators: take a task from its agent and give it to another, or back to the queue."""
        return await self._one("reassign", task_id=task_id, to_agent=to_agent, reason=reason)

    async def retry(self, task_id: Id) -> Task:
        """Put a task that failed, timed out or was cancelled back into the queue with all its retries."""
        return await self._one("retry", task_id=task_id)

    async def history(self, task_id: Id) -> History:
        return await self._client.request("task.history", {"task_id": task_id}, History)

    async def explain(self, task_id: Id) -> Explanation:
        """Why the task is not running, or what it waits for."""
        return (await self._client.request("task.explain", {"task_id": task_id}, _Explained)).explanation

    async def stats(self, *, since: datetime.datetime | None = None) -> Stats:
        return await self._client.request("task.stats", given(since=since), Stats)

    async def _wait_a_while(self, task_id: Id) -> Task:
        """The task as it is when it has ended, or after a while: shorter when many want to wait."""
        async with self._waits:
            wait_s = CROWDED_WAIT_S if self._waits.locked() else WAIT_S
            params = {"task_id": task_id, "timeout_ms": round(wait_s * 1000)}
            timeout_s = wait_s + self._client.timeout_s
            return (await self._client.request("task.wait", params, _One, timeout_s=timeout_s)).task

    async def _one(self, verb: str, **params: Any) -> Task:
        return (await self._client.request(f"task.{verb}", given(**params), _One)).task
