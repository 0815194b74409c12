"""Looks for jobs at the front of queues where that costs much, beside the claims and not in them.

A claim begins behind the last one, and what was committed late lies before that. Under an old transaction nothing that was
taken goes away, and a look from the front walks through all of it: half a second after a million jobs, in which a claim would
hold up all that come after it. What a scout sees tells the next claims where to begin (store/claim_horizons.py).
"""

from __future__ import annotations

import time
import uuid

from devmesh.engine.loop import Loop
from devmesh.operations.work import WorkRunner
from devmesh.store.database import Record, Transaction
from devmesh.store.jobs import SQL
from devmesh.store.statements import load

CLOCK = load("clock")

INTERVAL_S = 1.0
LOOK_S_MAX = 20.0  # longer than a claim has: after hours under an old transaction


class QueueScout(Loop):
    name = "queue-scout"

    def __init__(self, runner: WorkRunner) -> None:
        super().__init__(INTERVAL_S)
        self._runner = runner

    async def run_once(self) -> bool:
        """Looks through one queue, if claims have left one to it."""
        horizons = self._runner.horizons
        if not horizons.is_clock_known:  # a first claim that comes to no end would tell nothing
            [[now]] = await self._runner.database.read(CLOCK.now)
            horizons.told(now)
        place = horizons.next_to_scout()
        if place is None:
            return False
        look, began_s = horizons.scout(*place), time.monotonic()
        found = await self._first_due(*place)
        horizons.scouted(*place, look, time.monotonic() - began_s, found["due"], found["moment"])
        return True

    async def _first_due(self, tenant_id: uuid.UUID, queue: str) -> Record:
        async def read(tx: Transaction) -> Record:
            [found] = await tx.fetch(SQL.first_due, tenant_id, queue)
            return found

        return await self._runner.database.run(read, deadline_s=LOOK_S_MAX)
