"""How late this process comes to what is due: a loop that is held up holds up everything, heartbeats and health included."""

from __future__ import annotations

import asyncio
import collections
import time

from devmesh import telemetry
from devmesh.core.components import Component, degraded
from devmesh.engine.loop import Loop

TICK_S = 0.1
TICKS_REMEMBERED = 50
LAG_S_MAX = 1.0


class EventLoop(Loop):
    name = "event-loop"

    def __init__(self) -> None:
        super().__init__(interval_s=TICK_S)
        self._lags_s: collections.deque[float] = collections.deque([0.0], TICKS_REMEMBERED)

    async def run_once(self) -> bool:
        due_at = time.monotonic() + TICK_S
        await asyncio.sleep(TICK_S)
        lag_s = max(0.0, time.monotonic() - due_at)
        self._lags_s.append(lag_s)
        telemetry.EVENT_LOOP_LAG_SECONDS.observe(lag_s)
        return True

    @property
    def lag_s(self) -> float:
        """The longest of late."""
        return max(self._lags_s)

    def state(self, pass_s_max: float) -> Component:
        if self.lag_s > LAG_S_MAX:
            return degraded(f"the process was held up for {self.lag_s:.1f} s of late")
        return super().state(pass_s_max)
