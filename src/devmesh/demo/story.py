"""What has happened so far, told by events alone: who is there, who holds what, and the lines worth reading.

Pure: an event goes in, the state follows, perhaps a line comes out. Must not know processes or screens.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from devmesh.client import Event, Task
from devmesh.core.tasks import FINISHED, Status

REPORTS_WANTED = 10  # lines that say how many subtasks are done


class Line(NamedTuple):
    text: str
    is_notable: bool  # else only for those who watch it live


class AgentSeen(msgspec.Struct):
    name: str
    capability: str
    id: uuid.UUID | None = None  # once it is there
    status: str = "starting"
    holds: uuid.UUID | None = None
    tasks_done: int = 0


class TaskSeen(msgspec.Struct):
    id: uuid.UUID
    title: str
    files: int
    status: str = Status.PENDING
    attempt: int = 1
    holder: str | None = None
    progress: float = 0.0


class Story:
    def __init__(self, run: str, capabilities: Mapping[str, str]) -> None:
        self._prefix = f"{run}-"
        self.agents = {name: AgentSeen(name, capability) for name, capability in capabilities.items()}
        self.tasks: dict[uuid.UUID, TaskSeen] = {}
        self._names: dict[uuid.UUID, str] = {}
        self._parent_id: uuid.UUID | None = None
        self.outcome: Status | None = None  # of the whole, once it has ended
        self.error: Any = None

    def begins(self, parent: Task, subtasks: Sequence[Task]) -> None:
        """The tasks as they were created. Events that came before tell nothing new of them."""
        self._parent_id = parent.id
        self.tasks = {
            task.id: TaskSeen(task.id, task.title, len(task.parameters.get("files", ()))) for task in subtasks
        }

    @property
    def missing(self) -> list[str]:
        """Agents that have not come yet."""
        return [agent.name for agent in self.agents.values() if agent.id is None]

    @property
    def tasks_done(self) -> int:
        return sum(task.status == Status.COMPLETED for task in self.tasks.values())

    def name_of(self, agent_id: object) -> str | None:
        """An agent of ours by its id."""
        return self._names.get(uuid.UUID(str(agent_id))) if agent_id is not None else None

    def hear(self, event: Event) -> Line | None:
        """Whatever concerns us; the mesh may have other work as well."""
        if event.type.startswith("agent."):
            return self._hear_of_agent(event.type, event.data["agent"])
        if not event.type.startswith("task."):
            return None
        changed = event.data["task"]
        task_id = uuid.UUID(changed["id"])
        if task_id == self._parent_id:
            return self._hear_of_parent(changed)
        task = self.tasks.get(task_id)
        return self._hear_of_task(event.type, task, changed) if task is not None else None

    def _hear_of_agent(self, event_type: str, changed: Mapping[str, Any]) -> Line | None:
        if event_type == "agent.registered" and changed["name"].startswith(self._prefix):
            name = changed["name"].removeprefix(self._prefix)
            self.agents[name].id, self.agents[name].status = uuid.UUID(changed["id"]), changed["status"]
            self._names[uuid.UUID(changed["id"])] = name
            return None
        name_or_none = self.name_of(changed["id"])
        if name_or_none is None or "status" not in changed:
            return None
        agent = self.agents[name_or_none]
        agent.status = changed["status"]
        if agent.status == "offline":
            return Line(f"the mesh has noticed: {agent.name} is offline", True)
        return None

    def _hear_of_parent(self, changed: Mapping[str, Any]) -> Line | None:
        status = Status(changed.get("status", Status.RUNNING))
        if status in FINISHED:
            self.outcome, self.error = status, changed.get("error")
            return Line(f"the distributed task is {status}", True)
        return None

    def _hear_of_task(self, event_type: str, task: TaskSeen, changed: Mapping[str, Any]) -> Line | None:
        before = task.holder
        task.status = changed.get("status", task.status)
        task.progress = changed.get("progress", task.progress)
        if "assigned_to" in changed:
            task.holder = self.name_of(changed["assigned_to"])
        self._note_holder(task, before)
        attempt, task.attempt = task.attempt, changed.get("attempt", task.attempt)
        match event_type:
            case "task.assigned":
                again = f", attempt {task.attempt}" if task.attempt > 1 else ""
                return Line(f"{task.title}{again} is given to {task.holder}", bool(again))
            case "task.unblocked":
                return Line(f"all parts are there: {task.title} begins with their results", True)
            case "task.completed":
                return self._completed(task)
            case "task.lease_expired":
                return Line(f"the lease of {task.title}, attempt {attempt} by {before}, has ended", True)
            case "task.retrying" | "task.failed" | "task.rejected" | "task.timed_out" | "task.cancelled":
                error = changed.get("error")
                return Line(f"{task.title}: {event_type} by {before}: {reason_of(error)}", True)
        return None

    def _completed(self, task: TaskSeen) -> Line:
        if task.holder is not None:
            self.agents[task.holder].tasks_done += 1
        done, every = self.tasks_done, max(len(self.tasks) // REPORTS_WANTED, 1)
        count = f" ({done} of {len(self.tasks)} subtasks are done)"
        if task.attempt > 1:
            return Line(f"{task.holder} has completed {task.title} in attempt {task.attempt}{count}", True)
        return Line(f"{task.holder} has completed {task.title}{count}", done % every == 0)

    def _note_holder(self, task: TaskSeen, before: str | None) -> None:
        """An agent here works on one task at a time."""
        is_held = task.status not in FINISHED and task.status != Status.PENDING
        if before is not None and (before != task.holder or not is_held) and self.agents[before].holds == task.id:
            self.agents[before].holds = None
        if task.holder is not None and is_held:
            self.agents[task.holder].holds = task.id


def reason_of(error: Any) -> str:
    """What an error says, if it says anything."""
    if isinstance(error, dict) and "message" in error:
        return str(error["message"])
    return str(error) if error else "no reason given"
