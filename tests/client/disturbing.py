"""A worker of jobs whose requests go to a real mesh, and are disturbed on the way as a test likes."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from devmesh.client import Client, JobContext, MeshError
from devmesh.client.job_handlers import JobHandler, handler_of
from devmesh.client.job_worker import JobWorker
from devmesh.core.errors import OUTCOME_UNKNOWN, Kind
from tests.harness import Mesh

T = TypeVar("T")
Disturb = Callable[[Mapping[str, Any]], Coroutine[Any, Any, object] | None]


def internal() -> MeshError:
    """A server's answer to what nobody foresaw."""
    return MeshError(Kind.INTERNAL, "an internal error happened", error_id="f3b1")


class Disturbed:
    """Requests. `disturb[method]` gets the parameters first: what it raises is the answer."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.timeout_s = client.timeout_s
        self.disturb: dict[str, Disturb] = {}
        self.late: dict[str, asyncio.Event] = {}  # answers to a method wait until then
        self.loses: dict[str, Callable[[Any], bool]] = {}  # the first answer to a method of which that holds
        self.asked: collections.Counter[str] = collections.Counter()

    async def request(
        self, method: str, params: Mapping[str, Any], shape: type[T], *, timeout_s: float | None = None
    ) -> T:
        self.asked[method] += 1
        if method in self.disturb and (waiting := self.disturb[method](params)) is not None:
            try:
                await asyncio.wait_for(waiting, self.timeout_s if timeout_s is None else timeout_s)
            except TimeoutError:
                raise MeshError(Kind.TIMEOUT, f"no answer to {method}") from None
        answer = await self._client.request(method, params, shape, timeout_s=timeout_s)
        if method in self.loses and self.loses[method](answer):
            del self.loses[method]
            raise MeshError(Kind.UNAVAILABLE, "the database went away", reason=OUTCOME_UNKNOWN)
        if method in self.late:
            await self.late[method].wait()
        return answer

    def refuse(self, method: str, *errors: MeshError) -> None:
        """The next requests for a method are answered so, one after the other."""
        left = list(errors)

        def answer(_: Mapping[str, Any]) -> None:
            if left:
                raise left.pop(0)

        self.disturb[method] = answer


async def well(_job: JobContext) -> str:
    """The handler of a job about which there is nothing to tell."""
    return "well"


@contextlib.asynccontextmanager
async def new_bench(mesh: Mesh, key: str, *handlers: Callable[[Any], Any], **options: Any) -> AsyncIterator[Bench]:
    """A bench with a client and a queue of its own, and these handlers."""
    async with Client(mesh.ws_url, key) as client:
        made = Bench(mesh, key, client, f"q{uuid.uuid4().hex}", **options)
        for handler in handlers:
            made.job(handler)
        yield made


class Bench:
    """A worker of one queue, and an owner of its jobs."""

    def __init__(self, mesh: Mesh, key: str, client: Client, queue: str, **options: Any) -> None:
        self.client, self.queue = client, queue
        self.disturbed = Disturbed(client)
        self._mesh, self._key, self._options = mesh, key, options
        self._handlers: list[JobHandler] = []
        self.heart_disturb: dict[str, Disturb] = {}

    def job(self, function: Callable[[Any], Any]) -> None:
        """Declares the handler of the type that has its name."""
        self._handlers.append(handler_of(function.__name__, self.queue, function))

    def job_in_process(self, function: Callable[[Any], Any], queue: str | None = None) -> None:
        """The same of one that stands at the top of a module."""
        self._handlers.append(handler_of(function.__name__, queue or self.queue, function, in_process=True))

    def worker(self) -> JobWorker:
        return JobWorker(
            self.queue, self._handlers, self._requests, open_heart_requests=self._heart_requests, **self._options
        )

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[asyncio.Task[None]]:
        """Lets a worker work, and ends it in good order unless it has ended by itself."""
        worker = self.worker()
        running = asyncio.create_task(worker.run())
        try:
            yield running
        finally:
            if not running.done():
                await worker.drain(5.0)
                await asyncio.wait([running], timeout=5.0)
            running.cancel()
            await asyncio.wait([running])

    async def enqueue(self, job_type: str, payload: Any = None, **more: Any) -> str:
        asked = {"type": job_type, "payload": payload, "queue": self.queue, "backoff_ms": 0, **more}
        return str((await self.client.call("job.enqueue", **asked))["job"]["id"])

    async def get(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.client.call("job.get", job_id=job_id))["job"]
        return found

    async def worker_of(self, job_id: str) -> dict[str, Any]:
        """The worker that has had a job last."""
        worker_id = (await self.client.call("job.executions", job_id=job_id))["executions"][-1]["worker_id"]
        return dict((await self.client.call("worker.get", worker_id=worker_id))["worker"])

    async def is_over(self, job_id: str) -> bool:
        return (await self.get(job_id))["status"] in ("COMPLETED", "FAILED", "CANCELLED")

    async def is_held(self, job_id: str) -> bool:
        return bool((await self.get(job_id))["status"] == "PROCESSING")

    async def outcomes(self, job_id: str) -> list[str]:
        ends = (await self.client.call("job.executions", job_id=job_id))["executions"]
        return [each["outcome"] for each in ends]

    @contextlib.asynccontextmanager
    async def _requests(self) -> AsyncIterator[Disturbed]:
        yield self.disturbed

    @contextlib.asynccontextmanager
    async def _heart_requests(self) -> AsyncIterator[Disturbed]:
        async with Client(self._mesh.ws_url, self._key) as client:
            requests = Disturbed(client)
            requests.disturb = self.heart_disturb
            yield requests
