"""Agents for tests: each is one connection that has registered, and says plainly what it does with its tasks."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Self

from tests.harness import Mesh
from tests.wire import Wire, WireError

Task = dict[str, Any]


class Agent:
    """An agent, connected. `wire` may be used for anything else that it says."""

    def __init__(self, wire: Wire, agent: dict[str, Any]) -> None:
        self.wire, self.id, self.name = wire, str(agent["id"]), str(agent["name"])

    @classmethod
    async def join(
        cls, mesh: Mesh, key: str, name: str, *capabilities: str, concurrency: int = 1, **about: Any
    ) -> Self:
        wire = await Wire.connect(mesh.ws_url, key)
        try:
            answer = await wire.call(
                "agent.register", name=name, capabilities=list(capabilities), concurrency=concurrency, **about
            )
        except BaseException:
            await wire.close()
            raise
        return cls(wire, answer["agent"])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.wire.close()

    async def next_task(self, within_s: float = 15.0) -> Task:
        """The next task that it is given, whole as the event brings it."""
        event = await self.wire.next_event(
            "task.assigned", within_s, lambda event: event["data"]["task"]["assigned_to"] == self.id
        )
        task: Task = event["data"]["task"]
        return task

    async def say(self, verb: str, task: Task, **params: Any) -> Task:
        """Does one of a task's verbs under the attempt that it was given."""
        answer = await self.wire.call(f"task.{verb}", task_id=task["id"], attempt=task["attempt"], **params)
        said: Task = answer["task"]
        return said

    async def complete(self, task: Task, result: Any = None) -> Task:
        return await self.say("complete", task, result=result)

    async def refused(self, verb: str, task: Task, **params: Any) -> str:
        """The reason, or the kind, of the error that a verb must meet."""
        try:
            await self.say(verb, task, **params)
        except WireError as refusal:
            return refusal.reason or refusal.kind
        raise AssertionError(f"task.{verb} was not refused")


@contextlib.asynccontextmanager
async def fleet(mesh: Mesh, key: str, **capabilities: list[str]) -> AsyncIterator[list[Agent]]:
    """Several agents of one task at a time, by name."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(await Agent.join(mesh, key, name, *offered))
            for name, offered in capabilities.items()
        ]


async def create(wire: Wire, title: str = "a task", **fields: Any) -> Task:
    task: Task = (await wire.call("task.create", title=title, **fields))["task"]
    return task


async def get(wire: Wire, task: Task) -> Task:
    found: Task = (await wire.call("task.get", task_id=task["id"]))["task"]
    return found


async def wait(wire: Wire, task: Task, within_s: float = 10.0) -> Task:
    """The task once it has ended."""
    ended: Task = (await wire.call("task.wait", task_id=task["id"], timeout_ms=int(within_s * 1000)))["task"]
    assert ended["finished_at"] is not None, f"task {ended['title']!r} is {ended['status']} after {within_s} s"
    return ended


async def refusal(wire: Wire, method: str, **params: Any) -> WireError:
    """The error that a call must meet."""
    try:
        await wire.call(method, **params)
    except WireError as refused:
        return refused
    raise AssertionError(f"{method} was not refused")
