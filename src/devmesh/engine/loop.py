"""The one shape of everything that moves when nobody asks: start, wake, stop, and what happens when a pass fails.

A pass that fails is logged, counted and tried again after a back-off; a loop never ends by itself. Passes are safe on any
number of nodes at once: that is the business of their statements, not of the loop.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable

import msgspec
import structlog

from devmesh import telemetry
from devmesh.core.components import Component, degraded, healthy, unhealthy
from devmesh.core.errors import Kind, MeshError, explain

log = structlog.get_logger(__name__)

BACKOFF_MAX_S = 2.0  # a database that comes back is made use of soon


class Loop(ABC):
    """Runs `run_once` when it is woken, and every `interval_s` anyway."""

    name: str

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self.is_cut_off = False  # its last pass did not end by itself
        self._failures = 0
        self._failure = ""  # what the last pass failed of
        self._pass_began_at: float | None = None  # of the pass under way
        self._pass_s: float | None = None  # how long the last one took
        self.passed = asyncio.Event()  # set after the first pass that succeeded: the loop is ready

    @abstractmethod
    async def run_once(self) -> bool:
        """One pass. True when there is more to do at once."""

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name=self.name)

    def wake(self) -> None:
        """Something may be there to do: do not wait for the interval."""
        self._woken.set()

    async def check(self, pass_s_max: float) -> Component:
        """How the loop is. Its latency is how long the last pass took."""
        found = self.state(pass_s_max)
        latency_ms = None if self._pass_s is None else round(self._pass_s * 1000, 3)
        return msgspec.structs.replace(found, latency_ms=latency_ms)

    def state(self, pass_s_max: float) -> Component:
        """Passes are bounded and work that takes long comes in several, so a long one hangs. A role may know more."""
        if self._task is None or self._task.done():
            return unhealthy("it does not run")
        under_way_s = time.monotonic() - self._pass_began_at if self._pass_began_at is not None else 0.0
        if under_way_s > pass_s_max:
            return unhealthy(f"a pass has been under way for {under_way_s:.1f} s")
        if self._failures:
            count = "pass" if self._failures == 1 else f"{self._failures} passes"
            return degraded(f"its last {count} failed: {self._failure}")
        return healthy()

    async def stop(self, limit_s: float = 5.0) -> None:
        """Lets the pass under way end, within a limit."""
        self._stopping.set()
        self.wake()
        if self._task is not None:
            _, late = await asyncio.wait([self._task], timeout=limit_s)
            self.is_cut_off = bool(late)
            for task in late:
                task.cancel()
                await asyncio.wait([task], timeout=1.0)

    async def for_each(self, tenants: Iterable[uuid.UUID], work: Callable[[uuid.UUID], Awaitable[None]]) -> None:
        """Does a pass's work for each tenant. One whose work fails does not keep the others waiting; the pass fails after."""
        failed: MeshError | None = None
        for tenant_id in tenants:
            try:
                await work(tenant_id)
            except MeshError as error:
                if error.kind is Kind.UNAVAILABLE:  # nobody's work would go well
                    raise
                log.warning("a tenant's work failed", loop=self.name, tenant_id=str(tenant_id), error=error.message)
                failed = error
        if failed is not None:
            raise failed

    def pause_s(self) -> float:
        """How long a pause is that nothing cuts short: the interval, with jitter so that nodes do not march in step."""
        return self._interval_s * random.uniform(0.9, 1.1)  # noqa: S311  jitter is no secret

    async def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            is_more = await self._pass()
            if not is_more and not self._stopping.is_set():
                await self._pause()

    async def _pass(self) -> bool:
        self._pass_began_at = time.monotonic()
        try:
            is_more = await self.run_once()
            self._failures = 0
            self.passed.set()
            return is_more
        except Exception as error:
            self._failures += 1
            telemetry.LOOP_FAILURES.labels(self.name).inc()
            is_known = isinstance(error, MeshError)
            self._failure = explain(error) if isinstance(error, MeshError) else f"{type(error).__name__}, see the log"
            known = {"error": self._failure} if is_known else {"exc_info": True}
            log.warning("a pass failed and will be tried again", loop=self.name, failures=self._failures, **known)
            return False
        finally:
            self._pass_s = time.monotonic() - self._pass_began_at
            self._pass_began_at = None

    async def _pause(self) -> None:
        """Until woken or the interval is over; longer after failures."""
        pause_s, wanted = self.pause_s(), self._woken
        if self._failures:
            pause_s, wanted = min(pause_s * 2 ** min(self._failures, 10), BACKOFF_MAX_S), self._stopping
        try:
            async with asyncio.timeout(pause_s):
                await wanted.wait()
        except TimeoutError:
            pass
