"""How late this process comes to what is due: a loop that is held up holds up everything, heartbeats and health included.

A request that waits in a socket because the process is busy is seen by nobody else, so that admission listens here.
"""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Callable

from devmesh import telemetry
from devmesh.core.components import Component, degraded
from devmesh.engine.loop import Loop

REMEMBERED_S = 5.0
LAG_S_MAX = 1.0


class EventLoop(Loop):
    name = "event-loop"

    def __init__(self, tick_s: float) -> None:
        super().__init__(interval_s=tick_s)
        self._lags_s: collections.deque[float] = collections.deque([0.0], round(REMEMBERED_S / tick_s))
        self._listeners: list[Callable[[float, float], None]] = []

    def listen(self, heard: Callable[[float, float], None]) -> None:
        """Tells the time and how late it is, in seconds, at each tick."""
        self._listeners.append(heard)

    async def run_once(self) -> bool:
        due_at = time.monotonic() + self._interval_s
        await asyncio.sleep(self._interval_s)
        now_s = time.monotonic()
        lag_s = max(0.0, now_s - due_at)
        self._lags_s.append(lag_s)
        telemetry.EVENT_LOOP_LAG_SECONDS.observe(lag_s)
        for heard in self._listeners:
            heard(now_s, lag_s)
        return True

    @property
    def lag_s(self) -> float:
        """The longest of late."""
        return max(self._lags_s)

    def state(self, pass_s_max: float) -> Component:
        if self.lag_s > LAG_S_MAX:
            return degraded(f"the process was held up for {self.lag_s:.1f} s of late")
        return super().state(pass_s_max)
