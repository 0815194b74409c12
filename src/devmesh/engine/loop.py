"""The one shape of everything that moves when nobody asks: start, wake, stop, and what happens when a pass fails.

A pass that fails is logged, counted and tried again after a back-off; a loop never ends by itself. Passes are safe on any
number of nodes at once: that is the business of their statements, not of the loop.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable

import structlog

from devmesh import telemetry
from devmesh.core.errors import Kind, MeshError

log = structlog.get_logger(__name__)

BACKOFF_MAX_S = 10.0


class Loop(ABC):
    """Runs `run_once` when it is woken, and every `interval_s` anyway."""

    name: str

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._failures = 0
        self.passed = asyncio.Event()  # set after the first pass that succeeded: the loop is ready

    @abstractmethod
    async def run_once(self) -> bool:
        """One pass. True when there is more to do at once."""

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name=self.name)

    def wake(self) -> None:
        """Something may be there to do: do not wait for the interval."""
        self._woken.set()

    @property
    def is_failing(self) -> bool:
        return self._failures > 0

    async def stop(self, limit_s: float = 5.0) -> None:
        """Lets the pass under way end, within a limit."""
        self._is_stopping = True
        self.wake()
        if self._task is not None:
            _, late = await asyncio.wait([self._task], timeout=limit_s)
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

    async def _run(self) -> None:
        while not self._is_stopping:
            self._woken.clear()
            try:
                is_more = await self.run_once()
                self._failures = 0
                self.passed.set()
            except Exception as error:
                is_more = False
                self._failures += 1
                telemetry.LOOP_FAILURES.labels(self.name).inc()
                known = {"error": error.message} if isinstance(error, MeshError) else {"exc_info": True}
                log.warning("a pass failed and will be tried again", loop=self.name, failures=self._failures, **known)
            if not is_more and not self._is_stopping:
                await self._pause()

    async def _pause(self) -> None:
        """Until woken or the interval is over, with jitter so that nodes do not march in step; longer after failures."""
        pause_s = self._interval_s * random.uniform(0.9, 1.1)  # noqa: S311  jitter is no secret
        if self._failures:
            await asyncio.sleep(min(pause_s * 2 ** min(self._failures, 10), BACKOFF_MAX_S))
            return
        try:
            async with asyncio.timeout(pause_s):
                await self._woken.wait()
        except TimeoutError:
            pass
