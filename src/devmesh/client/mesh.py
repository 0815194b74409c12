"""The front door for agents and workers: declare handlers, and run.

mesh = Mesh()

@mesh.agent("summarizer", capabilities=["summarize"], concurrency=4)
async def summarize(task):
    await task.progress(0.5, "half")
    return {"summary": task.parameters["text"][:80]}

@mesh.job("thumbnail", queue="images")
def thumbnail(job):
    return shrink(job.payload["path"])

mesh.run()
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import math
import multiprocessing
import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from devmesh.client.address import find
from devmesh.client.agents import KindName
from devmesh.client.client import Client
from devmesh.client.codecs import CodecName, check_codec
from devmesh.client.errors import MeshError
from devmesh.client.forks import STOP_SIGNALS, end_by
from devmesh.client.heart import Heart
from devmesh.client.job_handlers import (
    JobHandler,
    check_label,
    check_name,
    check_number,
    handler_of,
    refusal,
    unfit_for_processes,
)
from devmesh.client.job_heart import OpenRequests
from devmesh.client.job_worker import CAPACITY_DEFAULT, LEASE_S_DEFAULT, JobWorker
from devmesh.client.loops import close, is_running, run_to_its_end
from devmesh.client.worker import HAND_BACK_LIMIT_S, Declared, Worker
from devmesh.core.agents import CONCURRENCY_MAX
from devmesh.core.agents import Kind as AgentKind
from devmesh.core.errors import Kind
from devmesh.core.jobs import CAPACITY_MAX, LEASE_S_MAX, LEASE_S_MIN
from devmesh.core.stopping import ONE_SIGNAL_S

log = logging.getLogger("devmesh.client")
HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])
DRAIN_LIMIT_S_DEFAULT = 20.0
# While a worker imports a script that ends in `mesh.run()`: that worker runs what is declared there.
is_being_loaded: contextvars.ContextVar[bool] = contextvars.ContextVar("devmesh_is_being_loaded", default=False)


@functools.cache
def _name_of_process(pid: int) -> str:
    """For as long as it runs. Containers may share the name of their machine, and have the same process ids."""
    return f"{socket.gethostname()}:{pid}:{uuid.uuid4().hex[:8]}"


class Mesh:
    """The agents and the jobs of one process. Each agent has a connection of its own; threads renew the leases of all."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        codec: CodecName = "json",
        drain_limit_s: float = DRAIN_LIMIT_S_DEFAULT,
        worker: str | None = None,
        capacity: int = CAPACITY_DEFAULT,
        lease_s: float = LEASE_S_DEFAULT,
    ) -> None:
        """Without `url` and `api_key`, those of the environment, of `.env`, or of the `devmesh up` that runs here.

        `drain_limit_s` is how long handlers may go on when the process is told to stop; what is not done by then is handed
        back. Beside the database the service's own grace bounds it. `worker` is the name under which this process takes
        jobs, by default one that no other process has: what runs under it later is the same worker, and takes over what the
        former process still holds. `capacity` is how many jobs it holds at once, and `lease_s` after how long without a
        heartbeat they are given to others. Raises TypeError or ValueError for what none of these can be.
        """
        if worker:
            check_name("worker", worker)
        check_number("capacity", capacity, 1, CAPACITY_MAX, is_whole=True)
        check_number("lease_s", lease_s, LEASE_S_MIN, LEASE_S_MAX)
        check_number("drain_limit_s", drain_limit_s, 0, math.inf)
        check_codec(codec)
        self._worker_name = worker
        self.capacity, self.lease_s = capacity, lease_s
        self.job_handlers: dict[str, JobHandler] = {}
        self._given = (url, api_key)
        self._codec, self.drain_limit_s = codec, drain_limit_s
        self._declared: dict[str, Declared] = {}
        self._stopping: asyncio.Event | None = None

    def agent(
        self,
        name: str,
        *,
        capabilities: Sequence[str] = (),
        concurrency: int = 1,
        kind: KindName = "custom",
        description: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> Callable[[HandlerT], HandlerT]:
        """Declares an agent. Its handler gets a task and returns the result, which is anything that JSON can hold.

        A coroutine function gets a TaskContext; a plain function runs in a thread and gets a BlockingTaskContext. An
        exception fails the attempt, and another follows while the task has retries left; raise Fail for a failure that no
        retry will mend, Reject to leave the task to another agent. Two processes under one name share its concurrency. Raises
        TypeError or ValueError for what can be no agent, or no handler.
        """
        if not isinstance(name, str):
            raise TypeError(f"name: expected one, as in @mesh.agent('summarizer'), and not {name!r}")
        check_name("name", name)
        if isinstance(capabilities, str):
            raise TypeError("capabilities: expected a list of names, such as ['summarize']")
        capabilities = list(capabilities)  # which may be had only once
        for capability in capabilities:
            check_label("capabilities", capability, "['summarize']")
        check_number("concurrency", concurrency, 1, CONCURRENCY_MAX, is_whole=True)
        if kind not in list(AgentKind):
            raise ValueError(f"kind: expected one of {', '.join(AgentKind)}, and not {kind!r}")
        if name in self._declared:
            raise ValueError(f"agent {name!r} is declared twice")
        registration = {
            "name": name, "capabilities": capabilities, "concurrency": concurrency, "kind": kind,
            "description": description, "metadata": dict(metadata or {}),
        }  # fmt: skip

        def declare(handler: HandlerT) -> HandlerT:
            if (refused := refusal(handler, "task")) is not None:
                raise ValueError(f"agent {name!r}: {refused}")
            self._declared[name] = Declared(name, concurrency, registration, handler)
            return handler

        return declare

    def job(self, job_type: str, *, queue: str = "default", in_process: bool = False) -> Callable[[HandlerT], HandlerT]:
        """Declares the handler of jobs of a type. It gets a job and returns the result, which is anything that JSON can hold.

        A coroutine function gets a JobContext; a plain function runs in a thread and gets a BlockingJobContext. With
        `in_process` a plain function runs in a process instead, for what keeps a processor busy: it stands at the top of a
        module, and gets the bare Job. An exception fails the attempt, and another follows while the job has retries left;
        raise Fail for a failure that no retry will mend, and Snooze to put the job off, which costs no retry. Raises TypeError
        or ValueError for what cannot be a handler.
        """
        check_label("type", job_type)
        check_label("queue", queue)
        if job_type in self.job_handlers:
            raise ValueError(f"jobs of type {job_type!r} have two handlers")

        def declare(handler: HandlerT) -> HandlerT:
            self.job_handlers[job_type] = handler_of(job_type, queue, handler, in_process=in_process)
            return handler

        return declare

    def _declared_elsewhere(self) -> str | None:
        """What nobody would run, because handlers import the script that runs them: it is there twice, with two meshes."""
        script: str | None = getattr(sys.modules.get("__main__"), "__file__", None)
        if script is None:
            return None
        copies = [
            (name, module)
            for name, module in list(sys.modules.items())
            if name not in ("__main__", "__mp_main__") and getattr(module, "__dict__", {}).get("__file__") == script
        ]
        # The script may have several, of which it runs one.
        known = {name for mesh in (self, *_meshes_in(sys.modules["__main__"])) for name in mesh._names}
        for name, module in copies:
            for other in _meshes_in(module):
                if lost := sorted(set(other._names) - known):
                    file = Path(script).name
                    return (
                        f"{file} is here twice, as the script and as the module {name}, whose mesh has {', '.join(lost)} and is"
                        " not run: make the mesh in a module of its own, from which both import it"
                    )
        return None

    @property
    def _names(self) -> list[str]:
        return [*self.job_handlers, *self._declared]

    @property
    def agent_names(self) -> list[str]:
        """The agents that are declared here."""
        return list(self._declared)

    def job_worker(self, open_requests: OpenRequests, open_heart_requests: OpenRequests | None = None) -> JobWorker:
        """The worker that runs these handlers, wherever its requests go: both where they go to the database itself."""
        name = self._worker_name or _name_of_process(os.getpid())
        return JobWorker(
            name, self.job_handlers.values(), open_requests, open_heart_requests=open_heart_requests,
            capacity=self.capacity, lease_s=self.lease_s,
        )  # fmt: skip

    def run(self) -> None:
        """Works until SIGINT or SIGTERM, then drains and returns. A second signal ends the process at once.

        What cannot be mended by waiting, such as a wrong key, ends it with one line and exit code 1. In a script that
        `devmesh worker --app` imports it returns at once.
        """
        if is_being_loaded.get():
            return
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            return  # a process for jobs imports the script that has declared them, and must not become a worker itself
        if is_running():
            raise RuntimeError("a loop runs here already: await mesh.serve() in it")
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        runner = asyncio.Runner()
        try:
            run_to_its_end(runner, self._serve_until_signalled())
        except MeshError as error:
            raise SystemExit(f"devmesh: {error.message}") from None
        finally:
            close(runner)

    async def serve(self) -> None:
        """Works until `stop` is called, then drains and returns. Raises MeshError when it cannot go on."""
        if (twice := self._declared_elsewhere()) is not None:
            raise ValueError(twice)
        if not self._declared and not self.job_handlers:
            raise ValueError("this mesh has no agent and no job: declare one with @mesh.agent(…) or @mesh.job(…)")
        if (unfit := unfit_for_processes(self.job_handlers.values())) is not None:
            raise ValueError(unfit)
        address = find(*self._given)
        heart = Heart(lambda: Client(*address, codec=self._codec, connect_timeout_s=None))
        workers = [Worker(declared, address, self._codec, heart) for declared in self._declared.values()]

        @contextlib.asynccontextmanager
        async def connected() -> AsyncIterator[Client]:
            client = Client(*address, codec="json", connect_timeout_s=None)  # in which reports are written beforehand
            async with client:
                yield client

        jobs = self.job_worker(connected) if self.job_handlers else None
        heart.start()
        self._stopping = asyncio.Event()
        stopping = asyncio.create_task(self._stopping.wait())
        running = [asyncio.create_task(worker.run()) for worker in workers]
        working = asyncio.create_task(jobs.run()) if jobs is not None else None
        running += [working] if working is not None else []
        try:
            await asyncio.wait([stopping, *running], return_when=asyncio.FIRST_COMPLETED)
        finally:
            draining = [worker.drain(self.drain_limit_s) for worker in workers]
            await asyncio.gather(*draining, *([jobs.drain(self.drain_limit_s)] if jobs is not None else []))
            if working is not None:
                await asyncio.wait([working], timeout=HAND_BACK_LIMIT_S)
                working.cancel()
            await asyncio.to_thread(heart.stop)
            stopping.cancel()
        for error in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(error, Exception) and not (isinstance(error, MeshError) and error.kind == Kind.CANCELLED):
                raise error

    def stop(self) -> None:
        """Tells `serve` to drain and return. From the loop that it runs in."""
        if self._stopping is not None:
            self._stopping.set()

    async def _serve_until_signalled(self) -> None:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if self._stopping is None or not self._stopping.is_set():
                loop.call_later(ONE_SIGNAL_S, hurry)
            log.info("stopping")
            self.stop()

        def hurry() -> None:
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own would raise KeyboardInterrupt, wherever we are
            log.info("a second signal ends the process at once")

        for number in STOP_SIGNALS:
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # not here, or not in this thread
                loop.add_signal_handler(number, stop)
                end_by(number)
        try:
            await self.serve()
        finally:
            if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
                with contextlib.suppress(ValueError):
                    signal.signal(signal.SIGINT, signal.default_int_handler)


def _meshes_in(module: object) -> list[Mesh]:
    """Those that have names in a module."""
    return [value for value in vars(module).values() if isinstance(value, Mesh)]
