"""Keeps limits that all nodes share: tells the others what this one holds, and forgets buckets that nobody draws from."""

from __future__ import annotations

import asyncio
import contextlib
import time

from devmesh.core.errors import MeshError
from devmesh.engine.loop import Loop
from devmesh.operations.connections import Connections
from devmesh.operations.rates import Rates

FORGET_INTERVAL_S = 30.0
LAST_REPORT_LIMIT_S = 1.0


class LimitsKeeper(Loop):
    name = "limits-keeper"

    def __init__(self, connections: Connections, rates: Rates, interval_s: float) -> None:
        super().__init__(interval_s)
        self._connections, self._rates = connections, rates
        self._forget_at = 0.0

    async def run_once(self) -> bool:
        await self._connections.report()
        if time.monotonic() >= self._forget_at:
            await self._rates.forget_full()
            self._forget_at = time.monotonic() + FORGET_INTERVAL_S
        return False

    async def stop(self, limit_s: float = 5.0) -> None:
        """Tells the others at once that this node's connections have ended, so that they may come to them."""
        await super().stop(limit_s)
        if self.is_cut_off:  # the database answers nobody, and has its own limit for those who are silent
            return
        with contextlib.suppress(MeshError, TimeoutError):
            async with asyncio.timeout(LAST_REPORT_LIMIT_S):
                await self._connections.report()
