"""The demo from the first process to the last answer: start the fleet, submit, listen, let the accident happen, look back."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from pathlib import Path

from devmesh.client import Client, Event, EventStream, MeshError
from devmesh.client.address import Address
from devmesh.demo import plan as plans
from devmesh.demo.accident import Accident
from devmesh.demo.failure import DemoFailed
from devmesh.demo.files import many
from devmesh.demo.fleet import Fleet
from devmesh.demo.plan import Plan
from devmesh.demo.report import AgentMade, Observed
from devmesh.demo.screen import Screen
from devmesh.demo.story import Line, Story

START_LIMIT_S = 30.0
WORK_LIMIT_S = 120.0
LEAVE_LIMIT_S = 5.0
TICK_S = 0.1  # the screen moves although nothing happens
LOG_PAGE_EVENTS = 100
TITLE_CHARACTERS_MAX = 200


async def play(plan: Plan, address: Address, log_directory: Path, screen: Screen) -> Observed:
    """Plays it on a mesh. Raises DemoFailed or MeshError; whatever happens, nothing of it stays behind but finished tasks."""
    async with Client(*address) as client, client.events("tenant") as stream:
        performance = Performance(plan, client, stream, screen)
        try:
            with Fleet(plan.run, plans.FLEET, address, log_directory) as fleet:
                return await performance.run(fleet)
        finally:
            await performance.leave()


class Performance:
    def __init__(self, plan: Plan, client: Client, stream: EventStream, screen: Screen) -> None:
        self._plan, self._client, self._stream, self._screen = plan, client, stream, screen
        self._story = Story(plan.run, plans.FLEET)
        self._heard: list[str] = []  # the cursor of every event
        self._parent_id: uuid.UUID | None = None

    async def run(self, fleet: Fleet) -> Observed:
        began = time.monotonic()
        since = self._stream.cursor
        assert since is not None
        await self._until_all_are_there(fleet)
        accident = Accident(self._client, fleet, self._story, len(self._plan.found.files))
        await accident.prepare()
        submitted = time.monotonic()
        self._parent_id = await self._submit()
        await self._follow(accident)
        ended = time.monotonic()
        subtasks = [task async for task in self._client.tasks.each(parent_id=self._parent_id, limit=200)]
        again = [task for task in subtasks if task.attempt > 1]
        return Observed(
            parent=await self._client.tasks.get(self._parent_id),
            subtasks=subtasks,
            histories=await asyncio.gather(*(self._client.tasks.history(task.id) for task in again)),
            heard=self._heard,
            logged=await self._log_since(since),
            killed=accident.killed,
            agents=[
                AgentMade(agent.id, agent.name, agent.capability, fleet.pid(agent.name), agent.tasks_done)
                for agent in self._story.agents.values()
                if agent.id is not None
            ],
            fleet_start_s=submitted - began,
            work_s=ended - submitted,
        )

    async def leave(self) -> None:
        """Takes back what has not ended, and takes the agents' names out of the mesh."""
        with contextlib.suppress(MeshError, TimeoutError):
            async with asyncio.timeout(LEAVE_LIMIT_S):
                if self._parent_id is not None and self._story.outcome is None:
                    await self._client.tasks.cancel(self._parent_id, reason="the demo was broken off")
                there = [agent.id for agent in self._story.agents.values() if agent.id is not None]
                await asyncio.gather(*(self._client.agents.deregister(agent_id) for agent_id in there))

    async def _until_all_are_there(self, fleet: Fleet) -> None:
        ends_at = time.monotonic() + START_LIMIT_S
        while missing := self._story.missing:
            fleet.check()
            if time.monotonic() > ends_at:
                raise DemoFailed(f"not connected within {START_LIMIT_S:g} s: {', '.join(missing)}")
            await self._hear()
            for name in missing:
                if name not in self._story.missing:
                    what = self._story.agents[name].capability
                    self._tell(f"{name} (pid {fleet.pid(name)}) is connected, and can {what}")

    async def _submit(self) -> uuid.UUID:
        found = self._plan.found
        made = await self._client.tasks.create_distributed(
            f"look through {many(found)} of {found.root}"[:TITLE_CHARACTERS_MAX],
            self._plan.subtasks,
            distribution="map_reduce",
            reduce=self._plan.reduce,
            tags=[self._plan.run],
        )
        self._story.begins(made.task, made.subtasks)
        self._tell(f"submitted one distributed task: {len(made.subtasks)} subtasks over {many(found)}")
        return made.task.id

    async def _follow(self, accident: Accident) -> None:
        """Listens until the whole has ended."""
        ends_at = time.monotonic() + WORK_LIMIT_S
        while self._story.outcome is None:
            if time.monotonic() > ends_at:
                raise DemoFailed(f"not done within {WORK_LIMIT_S:g} s; {await self._what_is_missing()}")
            event = await self._hear()
            if event is not None and (line := await accident.consider(event)) is not None:
                self._screen.tell(line)

    async def _hear(self) -> Event | None:
        """The next event if one comes soon, told and shown."""
        event = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICK_S):
                event = await self._stream.next()
        if event is not None:
            self._heard.append(event.cursor)
            if (line := self._story.hear(event)) is not None:
                self._screen.tell(line)
        self._screen.show(self._story)
        return event

    async def _log_since(self, since: str) -> list[str]:
        """The cursors of the log's events up to the last one that was heard."""
        logged: list[str] = []
        while not logged or logged[-1] != self._heard[-1]:
            page = await self._client.call("event.list", topics=["tenant"], since=since, limit=LOG_PAGE_EVENTS)
            if not page["events"]:
                break
            for event in page["events"]:
                logged.append(event["cursor"])
                if event["cursor"] == self._heard[-1]:
                    break
            since = page["cursor"]
        return logged

    async def _what_is_missing(self) -> str:
        """Why one of the unfinished subtasks is where it is."""
        task = next(task for task in self._story.tasks.values() if task.status != "completed")
        return f"{task.title}: {(await self._client.tasks.explain(task.id)).explanation}"

    def _tell(self, text: str) -> None:
        self._screen.tell(Line(text, True))
