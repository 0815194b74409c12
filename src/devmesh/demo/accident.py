"""The accident: one agent is killed (kill -9) while it demonstrably holds a task.

When an event shows an agent in the middle of a task, its process is stopped on the spot. Only then does the mesh say what the
agent holds: what is stopped cannot finish meanwhile. An agent that has slipped through goes on, and the next chance is taken.
"""

from __future__ import annotations

import uuid

import msgspec

from devmesh.client import Client, Event
from devmesh.core.tasks import HELD, Status
from devmesh.demo.fleet import Fleet
from devmesh.demo.plan import FLEET, reports_ahead
from devmesh.demo.story import Line, Story, TaskSeen

FILES_FOR_THE_MIDDLE = 24  # with fewer, tasks are over before anybody can be caught in the middle
DONE_BEFORE = 0.2  # of all subtasks
BEGUN, REPORTS_AHEAD_MIN = 0.25, 5  # of the task in hand
REPORTS_UNDER_WAY_MAX = 1  # an agent waits for the answer to each

# Those that another one of the fleet can stand in for.
VICTIMS = tuple(name for name, capability in FLEET.items() if list(FLEET.values()).count(capability) > 1)


class Held(msgspec.Struct):
    """A task that the agent held when it was killed."""

    task_id: uuid.UUID
    title: str
    attempt: int
    status: str
    progress: float


class Killed(msgspec.Struct):
    agent: str
    pid: int
    held: list[Held]


class Accident:
    def __init__(self, client: Client, fleet: Fleet, story: Story, files: int) -> None:
        self._client, self._fleet, self._story = client, fleet, story
        self._in_the_middle = files >= FILES_FOR_THE_MIDDLE
        self.killed: Killed | None = None

    async def prepare(self) -> None:
        """With little to do, they are stopped beforehand: then whoever is given a task first holds it for certain."""
        if not self._in_the_middle:
            for name in VICTIMS:
                await self._fleet.stop(name)

    async def consider(self, event: Event) -> Line | None:
        """Takes the chance that an event offers, if it does."""
        if self.killed is not None or (task := self._chance(event)) is None:
            return None
        assert task.holder is not None
        await self._fleet.stop(task.holder)
        held = await self._held_by(task.holder)
        if not any(self._is_certain(one) for one in held):
            self._fleet.go_on(task.holder)
            return None
        self.killed = Killed(task.holder, self._fleet.pid(task.holder), held)
        self._fleet.kill(task.holder)
        self._let_others_go_on(task.holder)
        what = " and ".join(f"{one.title} ({one.status}, {one.progress:.0%})" for one in held)
        return Line(f"kill -9 {self.killed.pid}: {task.holder} is gone, and it held {what}", True)

    def _chance(self, event: Event) -> TaskSeen | None:
        """The task that a victim is in the middle of, as far as events tell."""
        wanted = "task.progress" if self._in_the_middle else "task.assigned"
        task = self._story.tasks.get(uuid.UUID(event.data["task"]["id"])) if event.type == wanted else None
        if task is None or task.holder not in VICTIMS:
            return None
        is_early = self._story.tasks_done < DONE_BEFORE * len(self._story.tasks)
        ahead = reports_ahead(task.files, task.progress)
        if self._in_the_middle and (is_early or task.progress < BEGUN or ahead < REPORTS_AHEAD_MIN):
            return None
        return task

    async def _held_by(self, name: str) -> list[Held]:
        agent_id = self._story.agents[name].id
        assert agent_id is not None
        page = await self._client.tasks.list(assigned_to=agent_id, status=sorted(HELD))
        return [
            Held(task.id, task.title, task.attempt, task.status, task.progress)
            for task in page.tasks
            if task.id in self._story.tasks
        ]

    def _is_certain(self, held: Held) -> bool:
        """Whether nothing that is still under way can end the task."""
        ahead = reports_ahead(self._story.tasks[held.task_id].files, held.progress)
        return held.status == Status.ASSIGNED or ahead > REPORTS_UNDER_WAY_MAX

    def _let_others_go_on(self, victim: str) -> None:
        if not self._in_the_middle:
            for name in VICTIMS:
                if name != victim:
                    self._fleet.go_on(name)
