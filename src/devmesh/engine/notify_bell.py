"""The carrier that is always there: PostgreSQL's NOTIFY, on a connection of its own."""

from __future__ import annotations

import time

from devmesh.core.components import Component, degraded
from devmesh.core.errors import MeshError
from devmesh.engine.carrier import Carrier
from devmesh.store.database import Database
from devmesh.store.notifications import Notifications

PROBE_INTERVAL_S = 10.0  # so that a firewall neither forgets the connection nor hides its end


class NotifyBell(Carrier):
    name = "notify"

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database
        self._channel: Notifications | None = None
        self._probed_at = 0.0
        self._failed: MeshError | None = None  # what a ring failed of since the last pass

    @property
    def is_up(self) -> bool:
        return self._channel is not None and not self._channel.broken.is_set()

    async def run_once(self) -> bool:
        """Keeps the connection. A failure to send fails the pass, so that it is told and followed by a pause."""
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed
        if not self.is_up:
            await self._let_go()
            self._channel = await Notifications.open(self._database, self._hear)
            self._probed_at = time.monotonic()
            self._came_up()
        elif self._channel is not None and time.monotonic() - self._probed_at > PROBE_INTERVAL_S:
            self._probed_at = time.monotonic()
            await self._channel.probe()
        return False

    async def send(self, payload: str) -> None:
        assert self._channel is not None
        try:
            await self._channel.send(payload)
        except MeshError as error:
            self._failed = error
            self.wake()
            raise

    def state(self, pass_s_max: float) -> Component:
        found = super().state(pass_s_max)
        if found.status == "healthy" and self.passed.is_set() and not self.is_up:
            return degraded("it does not hear other processes; their news comes by polling")
        return found

    async def stop(self, limit_s: float = 5.0) -> None:
        await super().stop(limit_s)
        await self._let_go()

    async def _let_go(self) -> None:
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()
