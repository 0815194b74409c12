"""Whole lives of tasks over the WebSocket: created by one side, assigned by the mesh, pushed to an agent, completed."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time

import msgspec

from bench.figures import Figure, percentile
from bench.pgbench import living_limit
from bench.stage import Running, Stage
from bench.wire import Connection, request

AGENTS, AGENT_CONCURRENCY = 200, 4
CALLERS = 20
OPEN_TASKS = 600  # at any time: fewer than the agents have room for, so that assigning is never out of agents
TASK = {"title": "measure", "parameters": {"path": "docs/guide.md"}, "required_capabilities": ["summarize"]}


class _Task(msgspec.Struct):
    id: str
    attempt: int = 0


class _Data(msgspec.Struct):
    task: _Task | None = None


class _Event(msgspec.Struct):
    type: str
    data: _Data


class _Params(msgspec.Struct):
    events: list[_Event]


class _Message(msgspec.Struct):
    """A reply, or a notification of events. Only what is needed here is decoded."""

    id: int = 0
    params: _Params | None = None
    result: _Data | None = None


_decode = msgspec.json.Decoder(_Message).decode


class Load:
    """Keeps a number of tasks open: for each that is completed, another one is created."""

    def __init__(self, callers: list[Connection], agents: list[Connection]) -> None:
        self._turn = itertools.cycle(callers)
        self._ids = itertools.count(1)
        self._wished: dict[int, float] = {}  # when, by the request's id
        self._born: dict[str, float] = {}  # when it was wished for, by the task's id
        self._ended: dict[str, float] = {}  # completed before the answer to its creation came
        self._is_stopping = False
        self.lives_s: list[float] = []
        self.errors = 0
        for caller in callers:
            caller.receiver = self._created
        for agent in agents:
            agent.receiver = functools.partial(self._at_agent, agent)

    def begin(self) -> None:
        for _ in range(OPEN_TASKS):
            self._create_one()

    def stop(self) -> None:
        self._is_stopping = True

    def _create_one(self) -> None:
        request_id = next(self._ids)
        self._wished[request_id] = time.perf_counter()
        next(self._turn).send(request("task.create", TASK, request_id))

    def _created(self, payload: bytes) -> None:
        reply = _decode(payload)
        wished_at = self._wished.pop(reply.id)
        if reply.result is None or reply.result.task is None:
            self.errors += 1
        elif (ended_at := self._ended.pop(reply.result.task.id, None)) is not None:
            self.lives_s.append(ended_at - wished_at)
        else:
            self._born[reply.result.task.id] = wished_at

    def _at_agent(self, agent: Connection, payload: bytes) -> None:
        message = _decode(payload)
        if message.params is not None:
            for event in message.params.events:
                if event.type == "task.assigned" and event.data.task is not None:
                    self._complete(agent, event.data.task)
        elif message.result is None or message.result.task is None:
            self.errors += 1
        else:
            self._completed(message.result.task.id)

    def _completed(self, task_id: str) -> None:
        now = time.perf_counter()
        wished_at = self._born.pop(task_id, None)
        if wished_at is None:
            self._ended[task_id] = now
        else:
            self.lives_s.append(now - wished_at)
        if not self._is_stopping:
            self._create_one()

    def _complete(self, agent: Connection, task: _Task) -> None:
        agent.send(request("task.complete", {"task_id": task.id, "attempt": task.attempt, "result": {"words": 120}}))


async def measure(stage: Stage) -> list[Figure]:
    async with stage.mesh("mcp-server", "worker") as mesh:
        agents = await mesh.connect(AGENTS)
        await asyncio.gather(*(_register(agent, number) for number, agent in enumerate(agents)))
        load = Load(await mesh.connect(CALLERS), agents)
        load.begin()
        figures = await _figures(stage, mesh, load)
        load.stop()
        for agent in agents:
            agent.close()
    return figures


async def _register(agent: Connection, number: int) -> None:
    await agent.call(
        "agent.register", name=f"agent-{number}", capabilities=["summarize"], concurrency=AGENT_CONCURRENCY
    )


async def _figures(stage: Stage, mesh: Running, load: Load) -> list[Figure]:
    await asyncio.sleep(stage.extent.warm_up_s)
    load.lives_s.clear()
    before, began = mesh.costs(), time.perf_counter()
    await asyncio.sleep(stage.extent.measured_s)
    lives_s, elapsed_s = list(load.lives_s), time.perf_counter() - began
    costs = mesh.costs().each(before, len(lives_s))
    load.stop()
    limit = await living_limit(stage, batch=50)
    p50_ms, p95_ms = (percentile(lives_s, share) * 1000 for share in (0.5, 0.95))
    name = f"whole life of a task, {AGENTS} agents, {OPEN_TASKS} open"
    return [
        Figure(name=name, value=len(lives_s) / elapsed_s, unit="/s", at_least=1_000, limit=limit, note=costs),
        Figure(name="… p50 from wish to completion", value=p50_ms, unit="ms"),
        Figure(name="… p95", value=p95_ms, unit="ms"),
        Figure(name="… errors", value=load.errors, unit="", at_most=0),
    ]
