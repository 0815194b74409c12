"""The front door for agents: declare handlers, and run.

mesh = Mesh()

@mesh.agent("summarizer", capabilities=["summarize"], concurrency=4)
async def summarize(task):
    await task.progress(0.5, "half")
    return {"summary": task.parameters["text"][:80]}

mesh.run()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from devmesh.client.address import find
from devmesh.client.agents import KindName
from devmesh.client.client import Client
from devmesh.client.codecs import CodecName
from devmesh.client.errors import MeshError
from devmesh.client.heart import Heart
from devmesh.client.worker import Declared, Worker
from devmesh.core.errors import Kind

log = logging.getLogger("devmesh.client")
HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])
DRAIN_LIMIT_S_DEFAULT = 20.0


class Mesh:
    """The agents of one process. Each has a connection of its own; one thread renews the leases of all."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        codec: CodecName = "json",
        drain_limit_s: float = DRAIN_LIMIT_S_DEFAULT,
    ) -> None:
        """Without `url` and `api_key`, those of the environment, of `.env`, or of the `devmesh up` that runs here.

        `drain_limit_s` is how long handlers may go on when the process is told to stop; what is not done by then is handed
        back.
        """
        self._given = (url, api_key)
        self._codec, self._drain_limit_s = codec, drain_limit_s
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
        retry will mend, Reject to leave the task to another agent. Two processes under one name share its concurrency.
        """
        if isinstance(capabilities, str):
            raise TypeError("capabilities: expected a list of names, such as ['summarize']")
        if name in self._declared:
            raise ValueError(f"agent {name!r} is declared twice")
        registration = {
            "name": name, "capabilities": list(capabilities), "concurrency": concurrency, "kind": kind,
            "description": description, "metadata": dict(metadata or {}),
        }  # fmt: skip

        def declare(handler: HandlerT) -> HandlerT:
            self._declared[name] = Declared(name, concurrency, registration, handler)
            return handler

        return declare

    def run(self) -> None:
        """Works until SIGINT or SIGTERM, then drains and returns. A second signal ends the process at once.

        What cannot be mended by waiting, such as a wrong key, ends it with one line and exit code 1.
        """
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        try:
            asyncio.run(self._serve_until_signalled())
        except MeshError as error:
            raise SystemExit(f"devmesh: {error.message}") from None

    async def serve(self) -> None:
        """Works until `stop` is called, then drains and returns. Raises MeshError when it cannot go on."""
        if not self._declared:
            raise ValueError("this mesh has no agent: declare one with @mesh.agent(…)")
        address = find(*self._given)
        heart = Heart(lambda: Client(*address, codec=self._codec, connect_timeout_s=None))
        workers = [Worker(declared, address, self._codec, heart) for declared in self._declared.values()]
        heart.start()
        self._stopping = asyncio.Event()
        stopping = asyncio.create_task(self._stopping.wait())
        running = [asyncio.create_task(worker.run()) for worker in workers]
        try:
            await asyncio.wait([stopping, *running], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await asyncio.gather(*(worker.drain(self._drain_limit_s) for worker in workers))
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

        def stop(number: int) -> None:
            log.info("stopping; a second signal ends the process at once")
            loop.remove_signal_handler(number)
            self.stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # not here, or not in this thread
                loop.add_signal_handler(number, stop, number)
        await self.serve()
