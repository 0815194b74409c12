"""The clock of admission: looks ten times a second how late this process comes to what is due.

A request that waits in a socket because the process is busy is seen by nobody else.
"""

from __future__ import annotations

import asyncio
import time

from devmesh.core.components import Component
from devmesh.engine.loop import Loop
from devmesh.operations.admission import TICK_S, Admission


class AdmissionWatch(Loop):
    name = "admission"

    def __init__(self, admission: Admission) -> None:
        super().__init__(interval_s=TICK_S)
        self._admission = admission

    async def run_once(self) -> bool:
        due_at = time.monotonic() + TICK_S
        await asyncio.sleep(TICK_S)
        now = time.monotonic()
        self._admission.tick(now, max(0.0, now - due_at))
        return True

    def state(self, pass_s_max: float) -> Component:
        found = super().state(pass_s_max)
        return self._admission.component() if found.status == "healthy" else found
