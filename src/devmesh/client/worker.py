"""One agent of this process at work: it takes its tasks as they come, runs the handler, and reports how that ended.

The table of tasks is the truth. Events only say that it changed; on every new connection the worker looks for itself, so
none is overlooked. `task.accept` is the fence between processes that go by one name: whoever is let through runs the attempt,
and no attempt is run twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from devmesh.client.address import Address
from devmesh.client.agents import One
from devmesh.client.client import Client
from devmesh.client.codecs import CodecName
from devmesh.client.connection import Connection, Event
from devmesh.client.context import BlockingTaskContext, TaskContext
from devmesh.client.errors import Fail, MeshError, Reject, described, finished, unusable
from devmesh.client.heart import Heart
from devmesh.client.job_handlers import is_coroutine
from devmesh.client.lease import TaskLease
from devmesh.client.tasks import Page, Task
from devmesh.client.threads import in_thread
from devmesh.core.errors import Kind
from devmesh.core.tasks import Status

log = logging.getLogger("devmesh.client")

LEASE_ENDING = {
    "task.cancelled": "it was cancelled",
    "task.timed_out": "it ran out of time",
    "task.lease_expired": "its lease ended",
    "task.reassigned": "it was given to another agent",
}
TELL_TIMEOUT_S, TELL_PAUSE_S = 10.0, 0.5
HAND_BACK_LIMIT_S = 5.0
STOPPING = "the agent is stopping"


class Declared(NamedTuple):
    """An agent as its decorator declared it."""

    name: str
    concurrency: int
    registration: dict[str, Any]
    handler: Callable[[Any], Any]


class Said(NamedTuple):
    """A call that tells how an attempt ended."""

    method: str
    params: dict[str, Any]


class AgentClient(Client):
    """A client whose every connection stands for its agent, which it registers when it is not known."""

    def __init__(self, address: Address, codec: CodecName, worker: Worker) -> None:
        super().__init__(*address, codec=codec, connect_timeout_s=None)
        self._worker = worker

    async def _greet(self, connection: Connection) -> None:
        await super()._greet(connection)
        if self._registered is None:
            answer = await connection.request("agent.register", self._worker.declared.registration, One)
            self.agent_id, self._registered = answer.agent.id, str(answer.agent.id)
        await self._worker.begin(connection)

    async def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            self._worker.hear(event)


class Worker:
    def __init__(self, declared: Declared, address: Address, codec: CodecName, heart: Heart) -> None:
        self.declared, self._heart = declared, heart
        self.client = AgentClient(address, codec, self)
        self._is_blocking = not is_coroutine(declared.handler)
        self._slots = asyncio.Semaphore(declared.concurrency)
        self._runs: dict[tuple[uuid.UUID, int], asyncio.Task[None]] = {}
        self._leases: set[TaskLease] = set()
        self._is_draining = self._is_handing_back = False
        self._others_go_on = False  # other processes under this name, while this one drains

    async def run(self) -> None:
        """Works until the server does not take the key any more, or whatever else ends the session. Raises MeshError."""
        await self.client.connect()
        raise await self.client.ended()

    async def drain(self, limit_s: float) -> None:
        """Takes no more work, lets handlers end within the limit, hands back what they did not, and disconnects."""
        if self.client.is_usable:
            self._others_go_on = await self._say_draining()
        self._is_draining = True  # only now: what has come meanwhile is worked on, for nobody knew to whom to leave it
        if self.client.is_usable:
            await _all_done(self._runs, limit_s)
        self._is_handing_back = True
        for lease in list(self._leases):
            lease.lose(STOPPING)
        await _all_done(self._runs, HAND_BACK_LIMIT_S)
        for run in self._runs.values():
            run.cancel()  # a handler that does not listen: its lease will end
        if self.client.agent_id is not None:
            self._heart.release(self.client.agent_id)
        await self.client.close()

    async def begin(self, connection: Connection) -> None:
        """On every new connection: says so, and looks for tasks whose events it may have missed."""
        agent_id = self.client.agent_id
        assert agent_id is not None
        log.info("agent %s (%s) is connected to %s", self.declared.name, agent_id, self.client.url)
        self._heart.stand_for(agent_id)
        filters: dict[str, Any] = {"assigned_to": agent_id, "status": [Status.ASSIGNED], "limit": 200}
        while True:
            page = await connection.request("task.list", filters, Page)
            for task in page.tasks:
                self._offer(task)
            if page.next_cursor is None:
                return
            filters["cursor"] = page.next_cursor

    def hear(self, event: Event) -> None:
        """What concerns this agent. Much of it is only news."""
        if event.type == "task.assigned":
            self._offer(msgspec.convert(event.data["task"], Task))
        elif event.type in LEASE_ENDING:
            self._lose(event)

    def _offer(self, task: Task) -> None:
        key = (task.id, task.attempt)
        if key not in self._runs and task.assigned_to == self.client.agent_id:
            run = self._runs[key] = asyncio.create_task(self._work(task), name=f"task {task.id}")
            run.add_done_callback(lambda run: self._done(key, run))

    def _lose(self, event: Event) -> None:
        changed: dict[str, Any] = event.data["task"]
        for lease in list(self._leases):
            if str(lease.task_id) == changed["id"] and changed.get("attempt", lease.attempt + 1) > lease.attempt:
                lease.lose(LEASE_ENDING[event.type])

    def _done(self, key: tuple[uuid.UUID, int], run: asyncio.Task[None]) -> None:
        del self._runs[key]
        if not run.cancelled() and (fault := run.exception()) is not None:
            log.error("task %s was dropped by a fault of the client; its lease will end", key[0], exc_info=fault)

    async def _work(self, task: Task) -> None:
        """One attempt, from its assignment to its report."""
        async with self._slots:
            if self._is_draining:
                await self._turn_away(task)
            elif (lease := await self._accept(task)) is not None:
                self._leases.add(lease)
                self._heart.hold(lease)
                try:
                    handling = asyncio.create_task(self._handle(task, lease))
                    if not self._is_blocking:
                        lease.watch(_canceller(handling))
                    await asyncio.wait([handling])
                    await self._report(task, lease, handling.result())
                finally:
                    lease.end()
                    self._heart.release(lease)
                    self._leases.remove(lease)

    async def _accept(self, task: Task) -> TaskLease | None:
        """The lease, or None when another process of this name has the task, or it is nobody's any more."""
        assert task.assigned_to is not None
        asked_at = time.monotonic()
        params = {"task_id": task.id, "attempt": task.attempt, "agent_id": task.assigned_to}
        try:
            await self.client.request("task.accept", params, dict[str, Any], timeout_s=task.lease_s)
        except MeshError as error:
            log.info("task %s, attempt %d, is not taken on: %s", task.id, task.attempt, error.message)
            return None
        return TaskLease(task.id, task.attempt, task.assigned_to, task.lease_s, asked_at)

    async def _handle(self, task: Task, lease: TaskLease) -> Said:
        """Runs the handler, and tells how it ended. Nothing that it raises ends more than its attempt."""
        try:
            return await self._outcome(task, lease)
        except BaseException as error:
            # Also of a Fail or a Reject of the handler's own making that lacks what ours have.
            log.exception("the handler of task %s, attempt %d, failed", task.id, task.attempt)
            return _failed(described(error))

    async def _outcome(self, task: Task, lease: TaskLease) -> Said:
        try:
            return Said("task.complete", {"result": finished(await self._result(task, lease))})
        except asyncio.CancelledError:
            return _failed({"type": "CancelledError", "message": "the handler was cancelled"})
        except Reject as reject:
            return Said("task.reject", {"reason": reject.reason})
        except Fail as failure:
            return _failed(failure.error, retryable=bool(failure.retryable))

    async def _result(self, task: Task, lease: TaskLease) -> Any:
        if self._is_blocking:
            context = BlockingTaskContext(task, lease, self.client, asyncio.get_running_loop())
            return await in_thread(self.declared.handler, context)
        return await self.declared.handler(TaskContext(task, lease, self.client))

    async def _report(self, task: Task, lease: TaskLease, said: Said) -> None:
        """Tells how the attempt ended, unless it is not this worker's any more."""
        if lease.is_over:
            return  # the handler has handed it on
        if (reason := lease.lost_reason) is not None:
            if self._is_handing_back:
                await self._hand_back(task)
            else:
                log.warning("task %s, attempt %d, was lost: %s", task.id, task.attempt, reason)
            return
        refusal = await self._tell(lease, said)
        if refusal is not None and (instead := _instead_of(said, refusal)) is not None:
            refusal = await self._tell(lease, instead)
        if refusal is not None:
            log.warning("task %s, attempt %d: %s was refused: %s", task.id, task.attempt, said.method, refusal.message)

    async def _tell(self, lease: TaskLease, said: Said) -> MeshError | None:
        """Says something as the holder; while it cannot be heard, again and again as long as the lease is held.

        The answer is the refusal, if it is one.
        """
        who = {"task_id": lease.task_id, "attempt": lease.attempt, "agent_id": lease.agent_id}
        keyed = {**said.params, **who, "idempotency_key": uuid.uuid4().hex}
        while True:
            try:
                await self.client.request(said.method, keyed, dict[str, Any], timeout_s=TELL_TIMEOUT_S)
                return None
            except MeshError as error:
                if not error.retryable or lease.is_lost:
                    return error
            await asyncio.sleep(TELL_PAUSE_S)

    async def _hand_back(self, task: Task) -> None:
        """Gives a task back that will not be done here, without using up its last retry for that."""
        if task.retry_count >= task.max_retries:
            log.warning("task %s has no retry left; another agent gets it when its lease ends", task.id)
            return
        params = {
            "task_id": task.id, "attempt": task.attempt, "agent_id": task.assigned_to, "retryable": True,
            "error": {"type": "Stopped", "message": STOPPING},
        }  # fmt: skip
        try:
            await self.client.request("task.fail", params, dict[str, Any], timeout_s=HAND_BACK_LIMIT_S)
            log.info("task %s was handed back", task.id)
        except MeshError as error:
            log.warning("task %s could not be handed back; its lease will end: %s", task.id, error.message)

    async def _turn_away(self, task: Task) -> None:
        """What comes while this process drains: another under its name takes it, or it is handed back.

        Only what was won is handed back: another that nobody knew of might have it already.
        """
        if not self._others_go_on and await self._accept(task) is not None:
            await self._hand_back(task)

    async def _say_draining(self) -> bool:
        """Asks for no more work, unless another process works under this name, which goes on. Whether one does."""
        agent_id = self.client.agent_id
        assert agent_id is not None
        own_sessions = 1 + self._heart.counts_for(agent_id)
        params = {"agent_id": agent_id}
        try:
            agent = (await self.client.request("agent.get", params, One, timeout_s=HAND_BACK_LIMIT_S)).agent
            if agent.sessions > own_sessions:
                log.info("agent %s stops here; another process goes on under its name", self.declared.name)
                return True
            await self.client.request("agent.drain", params, One, timeout_s=HAND_BACK_LIMIT_S)
        except MeshError as error:
            log.warning("the mesh could not be told that %s drains: %s", self.declared.name, error.message)
        return False


def _instead_of(said: Said, refusal: MeshError) -> Said | None:
    """What to say when that was refused; None when nothing would be better."""
    if said.method == "task.reject" and refusal.reason == "task.state":  # it has begun: too late to reject
        return _failed({"type": "Reject", "message": said.params["reason"]})
    if refusal.kind in (Kind.INVALID_PARAMS, Kind.TOO_LARGE):
        what = "result" if said.method == "task.complete" else "error"
        return _failed(
            unusable(refusal.message, what), retryable=what == "error" and said.params.get("retryable", True)
        )
    return None


def _failed(error: Any, *, retryable: bool = True) -> Said:
    return Said("task.fail", {"error": error, "retryable": retryable})


def _canceller(handling: asyncio.Task[Any]) -> Callable[[], object]:
    """Cancels a handler from whichever thread."""
    loop = asyncio.get_running_loop()
    return lambda: loop.call_soon_threadsafe(handling.cancel)


async def _all_done(runs: dict[tuple[uuid.UUID, int], asyncio.Task[None]], limit_s: float) -> None:
    if runs:
        await asyncio.wait(list(runs.values()), timeout=limit_s)
