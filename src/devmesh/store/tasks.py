"""Tasks between the table and the pure moves: locked, moved in memory, written back in one statement with their events.

Knows rows and events; which moves are legal is core's business, and who may make them is the operations'.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import asyncpg
import msgspec
from msgspec import Raw

from devmesh.core import tasks
from devmesh.core.tasks import Move, Task
from devmesh.store.database import Transaction
from devmesh.store.statements import load

SQL = load("tasks")

# The fields that a move may change, and that `tasks.save` therefore writes.
_CHANGEABLE = (
    "id", "required_capabilities", "target_agent_id", "excluded_agent_ids", "blocked", "delegated_from",
    "delegation_depth", "status", "attempt", "version", "assigned_to", "result", "error", "progress", "progress_message",
    "retry_count", "ready_at", "lease_until", "timeout_at", "updated_at", "assigned_at", "accepted_at", "started_at",
    "finished_at",
)  # fmt: skip
_FIELDS = Task.__struct_fields__
_JSON_PLACES = [_FIELDS.index(name) for name in ("parameters", "metadata", "distribution", "result", "error")]
_ENUM_PLACES = [
    (_FIELDS.index(name), {str(member): member for member in kind})
    for name, kind in (("assign", tasks.Assign), ("strategy", tasks.Strategy), ("status", tasks.Status))
]


def from_row(row: asyncpg.Record) -> Task:
    """A row of mcp.task_rows, whose columns stand in the order of Task's fields, as a task."""
    values: list[Any] = list(row)
    for place in _JSON_PLACES:
        if values[place] is not None:
            values[place] = Raw(values[place])
    for place, members in _ENUM_PLACES:
        values[place] = members[values[place]]
    return Task(*values[: len(_FIELDS)])


class Work(Protocol):
    """The part of a unit of work that is needed here."""

    tx: Transaction
    tenant_id: uuid.UUID

    @property
    def now(self) -> datetime.datetime: ...

    def emit(self, event_type: str, topics: tuple[str, ...], data: object) -> None: ...


class Attempt(msgspec.Struct):
    """How an attempt ended, as it is kept."""

    task_id: uuid.UUID
    attempt: int
    agent_id: uuid.UUID
    outcome: tasks.Outcome
    error: Raw | None
    assigned_at: datetime.datetime
    ended_at: datetime.datetime


class LockedTasks:
    """Tasks whose rows this transaction holds, as its moves have left them. `save` writes them, once."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._tasks: dict[uuid.UUID, Task] = {}
        self._partial: set[uuid.UUID] = set()  # those without their parameters and metadata
        self._changed: dict[uuid.UUID, None] = {}  # in the order of the moves
        self._reparametrised: set[uuid.UUID] = set()
        self._attempts: list[Attempt] = []

    async def lock(self, ids: Iterable[uuid.UUID], *, whole: bool = True) -> None:
        """Locks tasks and the distributed parents above them, in the one order that everybody locks in.

        Whoever has locked a distributed parent may lock its children afterwards in any order: nobody else can hold one.
        Not `whole`: without their parameters and metadata. That is for moves of many tasks, which need neither.
        """
        known = self._tasks.keys() - self._partial if whole else self._tasks
        wanted = [task_id for task_id in ids if task_id not in known]
        if wanted:
            self.hold(await self._work.tx.fetch(SQL.lock, self._work.tenant_id, wanted, whole), whole=whole)

    def hold(self, rows: Sequence[asyncpg.Record], *, whole: bool = True) -> None:
        """Takes rows that a statement has locked."""
        for task in map(from_row, rows):
            held = self._tasks.setdefault(task.id, task)
            if held is task and not whole:
                self._partial.add(task.id)
            elif whole and task.id in self._partial:
                held.parameters, held.metadata = task.parameters, task.metadata
                self._partial.remove(task.id)

    def get(self, task_id: uuid.UUID) -> Task | None:
        return self._tasks.get(task_id)

    def __getitem__(self, task_id: uuid.UUID) -> Task:
        return self._tasks[task_id]

    def changed(self) -> list[Task]:
        return [self._tasks[task_id] for task_id in self._changed]

    def move(self, task_id: uuid.UUID, move: Move) -> Task:
        """Applies a move, tells its event and notes how the attempt ended."""
        before, now = self._tasks[task_id], self._work.now
        assert move.event != tasks.TOLD_WHOLE or task_id not in self._partial
        after = self._tasks[task_id] = tasks.apply(before, move, now)
        self._changed[task_id] = None
        if "parameters" in move.changes:
            self._reparametrised.add(task_id)
        if move.ended is not None and before.assigned_to is not None and before.assigned_at is not None:
            error = after.error if move.ended in (tasks.Outcome.FAILED, tasks.Outcome.CANCELLED) else None
            ended = (before.id, before.attempt, before.assigned_to, move.ended, error, before.assigned_at, now)
            self._attempts.append(Attempt(*ended))
        topics = dict.fromkeys((*tasks.topics(after), *tasks.topics(before)))  # the one who held it is told as well
        self._work.emit(move.event, tuple(topics), tasks.event_data(after, move))
        return after

    async def save(self) -> None:
        if not self._changed:
            return
        rows = [self._row(self._tasks[task_id]) for task_id in self._changed]
        await self._work.tx.execute(SQL.save, self._work.tenant_id, msgspec.json.encode(rows).decode())
        if self._attempts:
            encoded = msgspec.json.encode(self._attempts).decode()
            await self._work.tx.execute(SQL.insert_attempts, self._work.tenant_id, encoded)
        self._changed, self._attempts = {}, []

    def _row(self, task: Task) -> dict[str, Any]:
        row = {name: getattr(task, name) for name in _CHANGEABLE}
        row["parameters"] = task.parameters if task.id in self._reparametrised else None
        return row
