"""A worker of this process: it takes jobs for which it has handlers, runs them side by side, and reports by the hundred.

It takes the next jobs while the last ones run, and a slot is free only when the answer to its report has come: what was not
acknowledged is run again, by whoever gets it. Where the jobs come from is not its business: over the WebSocket, or straight
from the database.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from devmesh.client.errors import Fail, LeaseLost, MeshError, Snooze, described, finished, may_pass
from devmesh.client.job_context import BlockingJobContext, Job, JobContext
from devmesh.client.job_handlers import JobHandler
from devmesh.client.job_heart import JobHeart, OpenRequests
from devmesh.client.job_reports import REPORT_TIMEOUT_S, JobReports, Report, completed, failed, given_back, put_off
from devmesh.client.lease import JobLease
from devmesh.client.processes import Processes
from devmesh.client.threads import in_thread
from devmesh.core.errors import OUTCOME_UNKNOWN, Kind

log = logging.getLogger("devmesh.client")

CAPACITY_DEFAULT = 10
LEASE_S_DEFAULT = 30.0
CLAIMED_MAX = 1_000
CLAIMS = 3  # requests under way at once: the database looks for the next jobs while the last ones begin
WAIT_MS, WAIT_HELD_MS = 20_000, 100
# Of a lease, for which a claim waits at the longest: here the lease is counted from when it was asked for.
WAIT_SHARE = 1 / 3
FEW_AFTER_S = 0.05
BEGUN_AT_ONCE = 50
STRAY_SHARE = 4  # of the capacity for jobs that need no process, as it seems: those that do go back
PAUSE_S, PAUSE_S_MAX = 0.2, 5.0
DRAIN_LIMIT_S = 20.0  # of a worker that may not go on
LEAVE_LIMIT_S = 3.0
HAS_LEFT = "worker.terminated"  # the reason of a refusal


class _Claimed(msgspec.Struct):
    jobs: list[Job]


class _Asked(NamedTuple):
    """A claim under way: of which queues, for how many jobs, how many processes are set aside for them, since when
    (monotonic seconds), and its answer to come.
    """

    queues: list[str]
    limit: int
    processes: int
    at: float
    answer: asyncio.Task[list[Job]]


class _Registered(msgspec.Struct):
    class _Worker(msgspec.Struct):
        id: uuid.UUID
        status: str

    worker: _Worker


class JobWorker:
    def __init__(
        self,
        name: str,
        handlers: Iterable[JobHandler],
        open_requests: OpenRequests,
        *,
        open_heart_requests: OpenRequests | None = None,
        capacity: int = CAPACITY_DEFAULT,
        lease_s: float = LEASE_S_DEFAULT,
    ) -> None:
        """`open_heart_requests` is for the thread of heartbeats, beside the database; over a connection it is the same."""
        self.name, self.capacity, self._lease_s = name, capacity, lease_s
        self._handlers: Mapping[str, JobHandler] = {handler.type: handler for handler in handlers}
        self._queues = sorted({handler.queue for handler in self._handlers.values()})
        self._open_requests = open_requests
        self._heart = JobHeart(open_heart_requests or open_requests, lease_s)
        self._processes = Processes()
        in_process = [handler for handler in self._handlers.values() if handler.in_process]
        self._process_types = frozenset(handler.type for handler in in_process)
        self._process_queues = {handler.queue for handler in in_process}
        self._stray_queues = set[str]()  # of others, which brought some of their jobs
        self._are_for_processes = True  # those that the last claim of all queues brought, or some of them
        self._running: set[asyncio.Task[None]] = set()
        self._held = self._asked = 0
        self._is_flowing = self._takes_few = False
        self._is_in_doubt = False  # a claim may have been given jobs of which its answer did not come to tell
        self._reports = JobReports(self._heart, self._freed)
        self._has_room, self._draining = asyncio.Event(), asyncio.Event()
        self._instance_id = uuid.uuid4()
        self._worker_id: uuid.UUID | None = None
        self._is_registered = False

    async def run(self) -> None:
        """Works until it is cancelled. Call `drain` first to end in good order.

        Raises MeshError when it cannot go on, after what is in hand has been reported.
        """
        async with self._open_requests() as requests:
            self._requests = requests
            self._heart.start(await self._register())
            self._reports.start(requests)
            claiming = asyncio.create_task(self._claim_all())
            claiming.add_done_callback(lambda _: self._draining.set())
            try:
                await self._draining.wait()
                if claiming.done() and claiming.exception() is not None:
                    await self.drain(DRAIN_LIMIT_S)
                await self._all_reported()
                has_left = await self._deregister()
                if claiming.done() or not has_left:
                    await claiming
                    await self._all_reported()
            finally:
                self._draining.set()
                claiming.cancel()
                self._reports.stop()
                for task in self._running:
                    task.cancel()
                self._processes.end()
                await asyncio.to_thread(self._heart.stop)

    async def drain(self, limit_s: float) -> None:
        """Takes no more jobs, lets handlers end within the limit, and gives back what they did not."""
        self._draining.set()
        self._has_room.set()
        if self._running:
            await asyncio.wait(self._running, timeout=limit_s)
        for task in self._running:
            task.cancel()

    async def _register(self) -> uuid.UUID:
        asked = {
            "name": self.name, "queues": self._queues, "capacity": self.capacity,
            "heartbeat_interval_s": self._heart.interval_s, "instance_id": self._instance_id,
        }  # fmt: skip
        worker_id = self._worker_id = (await self._requests.request("worker.register", asked, _Registered)).worker.id
        self._is_registered = True
        log.info("worker %s (%s) takes jobs of %s", self.name, worker_id, ", ".join(self._queues))
        return worker_id

    async def _register_again(self) -> None:
        """Goes on after another process of this name has left, and the worker with it. All that it held was taken from it."""
        for lease in self._heart.held:
            lease.lose("its worker has left")
        self._heart.stand_for(await self._register())
        self._is_in_doubt = False
        if self._draining.is_set():
            await self._deregister()

    async def _deregister(self) -> bool:
        """Leaves, so that nobody waits for a heartbeat: what a claim that is under way was or would be given is for others.

        Whether it could. It cannot while another process goes by this name, or when nobody answers.
        """
        asked = {"worker_id": self._worker_id, "instance_id": self._instance_id, "holds_nothing": True}
        try:
            left = await self._requests.request("worker.deregister", asked, _Registered, timeout_s=LEAVE_LIMIT_S)
        except MeshError as error:
            if error.reason == HAS_LEFT:
                return self._is_registered  # else it may be about to come back
            log.warning("worker %s could not be deregistered: %s", self.name, error.message)
            return False
        return left.worker.status == "TERMINATED"

    async def _claim_all(self) -> None:
        """Asks for jobs while there is room for enough, and before the last ones have come while more are waiting."""
        asked = collections.deque[_Asked]()
        pause_s = PAUSE_S
        try:
            while asked or not self._draining.is_set():
                self._ask(asked)
                if not asked and not self._is_in_doubt and self._is_registered:
                    await self._room()
                    continue
                try:
                    if asked:
                        await self._begin(asked.popleft())
                    else:
                        await (self._reconcile() if self._is_registered else self._register_again())
                    pause_s = PAUSE_S
                except MeshError as error:
                    self._take(error)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, PAUSE_S_MAX)
        finally:
            for each in asked:
                each.answer.cancel()

    def _take(self, error: MeshError) -> None:
        """Learns what a refusal says of the next request. Raises it when there can be none."""
        if error.reason == HAS_LEFT:
            self._is_registered = False
        elif not may_pass(error) and error.reason != "worker.state":
            log.warning("no more jobs are taken: %s", error.message)
            raise error
        if not self._draining.is_set():  # else none are asked for any more
            log.warning("no jobs can be had for the moment: %s", error.message)
        self._is_in_doubt |= error.reason == OUTCOME_UNKNOWN or error.kind == Kind.TIMEOUT
        self._is_flowing = False

    def _ask(self, asked: collections.deque[_Asked]) -> None:
        while len(asked) < (CLAIMS if self._is_flowing else 1):
            if self._is_in_doubt or not self._is_registered or self._draining.is_set():
                return
            room = self.capacity - self._held - self._asked
            enough = min(self.capacity // 2, CLAIMED_MAX)  # asking for a few would cost as much as for many
            if room <= 0 or (room < enough and self._held and not self._takes_few):
                return
            queues, limit, processes = self._terms(min(room, CLAIMED_MAX))
            if not queues:
                return
            self._takes_few = False
            self._asked += limit
            self._processes.free -= processes
            answer = asyncio.create_task(self._claim(queues, limit, self._wait_ms(queues)))
            asked.append(_Asked(queues, limit, processes, time.monotonic(), answer))

    def _wait_ms(self, queues: list[str]) -> int:
        """For how long a claim waits for jobs: one that others follow must not keep what these bring from being seen, nor one
        that leaves queues out that a process is free.
        """
        if queues is not self._queues:
            return 0
        return WAIT_HELD_MS if self._held or self._is_flowing else WAIT_MS

    def _terms(self, room: int) -> tuple[list[str], int, int]:
        """Of which queues to ask for jobs, for how many, and for how many of them to set a process aside.

        A job that waited here for a process would run out of its time, and elsewhere one may be free.
        """
        if not self._process_types:
            return self._queues, room, 0
        free = self._processes.free
        if free <= 0:
            others = [queue for queue in self._queues if queue not in self._process_queues | self._stray_queues]
            return others, room, 0
        if self._are_for_processes:
            return self._queues, min(room, free), min(room, free)
        return self._queues, min(room, max(free, self.capacity // STRAY_SHARE)), 0

    async def _reconcile(self) -> None:
        """Gives back what came of claims whose outcome is not known. None is under way.

        A key for each claim would tell as well, and cost the database a record with all payloads for each.
        """
        known = [{"job_id": lease.job_id, "attempt": lease.attempt} for lease in self._heart.held]
        asked = {"worker_id": self._worker_id, "instance_id": self._instance_id, "jobs": known}
        try:
            await self._requests.request("worker.reconcile", asked, dict[str, Any], timeout_s=REPORT_TIMEOUT_S)
        except MeshError as error:
            if may_pass(error):
                raise
            log.warning("jobs that were given out unheard wait for the end of their leases: %s", error.message)
        self._is_in_doubt = False

    async def _room(self) -> None:
        """Until there is room for enough jobs to ask for, or has been room for a few for a while."""
        self._has_room.clear()
        try:
            await asyncio.wait_for(self._has_room.wait(), FEW_AFTER_S if self._held < self.capacity else None)
        except TimeoutError:
            self._takes_few = True

    async def _claim(self, queues: list[str], limit: int, wait_ms: int) -> list[Job]:
        asked = {
            "worker_id": self._worker_id, "queues": queues, "limit": limit, "lease_s": self._lease_s,
            "wait_ms": min(wait_ms, int(self._lease_s * 1000 * WAIT_SHARE)),
        }  # fmt: skip
        timeout_s = WAIT_MS / 1000 + REPORT_TIMEOUT_S
        return (await self._requests.request("job.claim", asked, _Claimed, timeout_s=timeout_s)).jobs

    async def _begin(self, asked: _Asked) -> None:
        """Begins the jobs that an answer brings, a few at a time: what waits for the database's answers goes on between."""
        try:
            jobs = await asked.answer
        finally:
            self._asked -= asked.limit
            self._processes.free += asked.processes
        self._is_flowing = len(jobs) == asked.limit
        excess = self._set_aside(asked, jobs) if self._process_types else None
        loop = asyncio.get_running_loop()
        for number, job in enumerate(jobs, 1):
            if number % BEGUN_AT_ONCE == 0:
                await asyncio.sleep(0)
            lease = JobLease(job.id, job.attempt, self._lease_s, asked.at)
            self._held += 1
            self._heart.hold(lease)
            if self._draining.is_set() or (excess and job.id in excess):  # it was asked for before
                self._reports.say(given_back(job, lease))
                continue
            lease.task = loop.create_task(self._work(job, lease))
            self._running.add(lease.task)
        if not jobs and asked.queues is not self._queues and self._processes.free <= 0:
            await self._room()  # or until a process is free

    def _set_aside(self, asked: _Asked, jobs: list[Job]) -> set[uuid.UUID]:
        """Sets a process aside for each job that is for one. Gives those for which there is none: they are for others."""
        for_processes = [job for job in jobs if job.type in self._process_types]
        strays = {job.queue for job in for_processes} - self._process_queues
        if jobs and asked.queues is self._queues:
            self._are_for_processes, self._stray_queues = bool(for_processes), strays
        else:
            self._stray_queues |= strays
        count = min(len(for_processes), self._processes.free)
        self._processes.free -= count
        return {job.id for job in for_processes[count:]}

    async def _work(self, job: Job, lease: JobLease) -> None:
        """One attempt, until its report waits to be sent."""
        task = lease.task  # it need not be asked for: tasks begin in the loop's next turn
        assert task is not None
        began_s = time.monotonic()
        try:
            report = await self._attempt(job, lease, task)
        except BaseException as error:
            # Also of a Fail or a Snooze of the handler's own making that lacks what ours have.
            log.exception("job %s, attempt %d, failed", job.id, job.attempt)
            report = failed(job, lease, described(error))
        self._heart.vitals.handled(time.monotonic() - began_s)
        self._reports.say(report)
        self._running.discard(task)

    async def _attempt(self, job: Job, lease: JobLease, task: asyncio.Task[Any]) -> Report:
        try:
            result = finished(await self._handle(job, lease, task))
            return given_back(job, lease) if lease.is_known_lost else completed(job, lease, result)
        except LeaseLost as lost:
            return given_back(job, lease) if lease.is_lost else failed(job, lease, described(lost))
        except asyncio.CancelledError as cancelled:  # a handler may also meet one of its own making: then it has failed
            is_ours = lease.is_lost or self._draining.is_set()
            return given_back(job, lease) if is_ours else failed(job, lease, described(cancelled))
        except Snooze as snooze:
            return put_off(job, lease, snooze.delay_s)
        except Fail as failure:
            return failed(job, lease, failure.error, retryable=bool(failure.retryable))

    async def _handle(self, job: Job, lease: JobLease, task: asyncio.Task[Any]) -> Any:
        handler = self._handlers.get(job.type)
        if handler is None:
            log.warning(
                "job %s, attempt %d: there is no handler here for jobs of type %s", job.id, job.attempt, job.type
            )
            raise Fail(
                {"type": "NoHandler", "message": f"worker {self.name} has no handler for jobs of type {job.type}"}
            )
        if handler.in_process:
            return await self._in_process(handler, job, lease)
        if not handler.is_coroutine:
            context = BlockingJobContext(job, lease, self._requests, asyncio.get_running_loop())
            try:
                return await in_thread(handler.function, context)
            finally:
                if task.cancelling():  # its worker stops: the function goes on, and may ask
                    lease.lose("its worker stops")
        loop = asyncio.get_running_loop()
        lease.watch(lambda: loop.call_soon_threadsafe(task.cancel))
        return await handler.function(JobContext(job, lease, self._requests))

    async def _in_process(self, handler: JobHandler, job: Job, lease: JobLease) -> Any:
        """The same in the process that was set aside, where nothing ends it any more."""
        try:
            if (reason := lease.lost_reason) is not None:
                raise asyncio.CancelledError(reason)
            return await self._processes.call(handler.function, job)
        finally:
            self._processes.free += 1
            self._has_room.set()

    def _freed(self, slots: int) -> None:
        self._held -= slots
        self._has_room.set()

    async def _all_reported(self) -> None:
        while self._held:
            self._has_room.clear()
            await self._has_room.wait()
