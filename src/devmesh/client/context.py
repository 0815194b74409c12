"""What a handler is given: the task, its lease, and the few things that it may say while it works.

Coroutines get a TaskContext, whose verbs are awaited. Plain functions run in a thread and get a BlockingTaskContext with the
same verbs, which are called.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar, Unpack

from devmesh.client.asking import Id
from devmesh.client.client import Client
from devmesh.client.errors import LeaseLost, MeshError
from devmesh.client.lease import TaskLease
from devmesh.client.tasks import Creation, Task
from devmesh.core.errors import Kind

T = TypeVar("T")
LEASE_REASONS = frozenset({"task.stale_attempt", "task.state"})


def is_lease_lost(error: MeshError) -> bool:
    """Whether an answer means that the task is not this holder's any more."""
    return error.kind == Kind.NOT_FOUND or (error.kind == Kind.CONFLICT and error.reason in LEASE_REASONS)


class HeldTask:
    """A task in the hands of a handler.

    `attempt` is the fencing token: it rises each time the task is given out anew. Pass it on to whatever you write to, so
    that an attempt that was given up for dead cannot overwrite its successor's work.
    """

    def __init__(self, task: Task, lease: TaskLease, client: Client) -> None:
        self.task, self.client = task, client
        self._lease = lease
        self.id: uuid.UUID = task.id
        self.title, self.description, self.type = task.title, task.description, task.type
        self.parameters: dict[str, Any] = task.parameters
        self.metadata: dict[str, Any] = task.metadata
        self.attempt, self.priority, self.deadline = task.attempt, task.priority, task.deadline
        self.required_capabilities, self.tags, self.parent_id = task.required_capabilities, task.tags, task.parent_id

    def __repr__(self) -> str:
        return f"<task {self.id} {self.title!r}, attempt {self.attempt}>"

    @property
    def is_lost(self) -> bool:
        """Whether the task is not this handler's any more. Safe and cheap to ask from any thread, as often as one likes."""
        return self._lease.is_lost

    @property
    def lost_reason(self) -> str | None:
        """Why it is lost, for people; None while it is held."""
        return self._lease.lost_reason

    async def _progress(self, fraction: float, message: str | None) -> None:
        asked_at = time.monotonic()
        params = {"progress": fraction, "message": message}
        await self._say("task.progress", params)
        self._lease.renewed(asked_at)

    async def _delegate(self, to_agent: Id | None, capabilities: Sequence[str] | None, reason: str) -> None:
        if to_agent is not None:
            target: dict[str, Any] = {"to_agent": to_agent}
        else:
            target = {"capabilities": capabilities or self.required_capabilities}
        await self._say("task.delegate", {**target, "reason": reason})
        self._lease.end()

    async def _say(self, method: str, params: dict[str, Any]) -> None:
        """Says something as the holder. Raises LeaseLost when it is not the holder any more."""
        if (reason := self.lost_reason) is not None:
            raise LeaseLost(reason)
        who = {"task_id": self.id, "attempt": self.attempt, "agent_id": self._lease.agent_id}
        try:
            await self.client.request(method, {**who, **params}, dict[str, Any])
        except MeshError as error:
            if not is_lease_lost(error):
                raise
            self._lease.lose(error.message)
            raise LeaseLost(error.message) from error


class TaskContext(HeldTask):
    """What a coroutine handler is given. When the lease is lost, the handler is cancelled as well."""

    async def progress(self, fraction: float, message: str | None = None) -> None:
        """Report how far the task is, 0-1, never back. It renews the lease. Raises LeaseLost when that is gone."""
        await self._progress(fraction, message)

    async def delegate(
        self, *, to_agent: Id | None = None, capabilities: Sequence[str] | None = None, reason: str = ""
    ) -> None:
        """Hand the task on, to an agent or to whoever has the capabilities (by default, those that it requires).

        It is not this handler's any more then: return; what is returned does not count.
        """
        await self._delegate(to_agent, capabilities, reason)

    async def create_subtask(self, title: str, **details: Unpack[Creation]) -> Task:
        """Create a task below this one: whoever cancels this one cancels it as well."""
        details["parent_id"] = self.id
        return await self.client.tasks.create(title, **details)


class BlockingTaskContext(HeldTask):
    """What a plain function is given. Nobody can stop a thread: ask `is_lost` now and then when the work is long."""

    def __init__(self, task: Task, lease: TaskLease, client: Client, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(task, lease, client)
        self._loop = loop

    def progress(self, fraction: float, message: str | None = None) -> None:
        """Report how far the task is, 0-1, never back. It renews the lease. Raises LeaseLost when that is gone."""
        self._wait(self._progress(fraction, message))

    def delegate(
        self, *, to_agent: Id | None = None, capabilities: Sequence[str] | None = None, reason: str = ""
    ) -> None:
        """Hand the task on, to an agent or to whoever has the capabilities (by default, those that it requires)."""
        self._wait(self._delegate(to_agent, capabilities, reason))

    def create_subtask(self, title: str, **details: Unpack[Creation]) -> Task:
        """Create a task below this one: whoever cancels this one cancels it as well."""
        details["parent_id"] = self.id
        return self._wait(self.client.tasks.create(title, **details))

    def _wait(self, saying: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(saying, self._loop).result()
