"""The bell: tells whoever listens that a tenant has news. A hint and nothing more: a lost ring costs one poll interval.

Within the process a ring is immediate. Other processes hear of it by one NOTIFY for all the rings of a few milliseconds,
sent after the commit on a connection of its own, because a NOTIFY inside a writing transaction makes commits queue up.
"""

from __future__ import annotations

import asyncio
import collections
import uuid
from collections.abc import Callable

from devmesh import telemetry
from devmesh.engine.loop import Loop
from devmesh.store.database import Database
from devmesh.store.notifications import Notifications

TENANTS_PER_NOTIFY_MAX = 200  # a payload has at most 8,000 bytes; more tenants than these ring for everybody
EVERYBODY = "*"

Listener = Callable[[frozenset[uuid.UUID] | None], None]  # None: any tenant may have news


class Bell(Loop):
    name = "bell"

    def __init__(self, database: Database, coalesce_ms: float) -> None:
        super().__init__(interval_s=1.0)
        self._database, self._coalesce_s = database, coalesce_ms / 1000
        self._listeners: list[Listener] = []
        self._rung: set[uuid.UUID] = set()
        self._unsent: set[uuid.UUID] = set()
        self._rings: collections.Counter[uuid.UUID] = collections.Counter()
        self._waiters: dict[uuid.UUID, set[asyncio.Future[None]]] = {}
        self._channel: Notifications | None = None

    def listen(self, listener: Listener) -> None:
        """Has a listener called, on this loop's thread, with the tenants that have news."""
        self._listeners.append(listener)

    def ring(self, tenant_id: uuid.UUID) -> None:
        """A committed transaction of this process has left events in this tenant's stream."""
        if not self._rung:
            asyncio.get_running_loop().call_soon(self._tell)
        self._rung.add(tenant_id)
        self._unsent.add(tenant_id)
        self.wake()

    def rings_so_far(self, tenant_id: uuid.UUID) -> int:
        """To be read before looking, and given to `wait` after having found nothing: no ring is lost between."""
        return self._rings[tenant_id]

    async def wait(self, tenant_id: uuid.UUID, rings_seen: int, timeout_s: float) -> None:
        """Until the tenant's bell rings once more than was seen, or the time is over."""
        if self._rings[tenant_id] != rings_seen:
            return
        future = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(tenant_id, set())
        waiters.add(future)
        try:
            await asyncio.wait([future], timeout=timeout_s)
        finally:
            waiters.discard(future)
            if not waiters and self._waiters.get(tenant_id) is waiters:
                del self._waiters[tenant_id]

    def _tell(self) -> None:
        rung, self._rung = frozenset(self._rung), set()
        self._tell_listeners(rung)

    def _tell_listeners(self, tenants: frozenset[uuid.UUID] | None) -> None:
        for tenant_id in self._rings if tenants is None else tenants:
            self._rings[tenant_id] += 1
            for future in self._waiters.get(tenant_id, ()):
                if not future.done():
                    future.set_result(None)
        for listener in self._listeners:
            listener(tenants)

    def _hear(self, payload: str) -> None:
        """Another process rang."""
        if payload == EVERYBODY:
            self._tell_listeners(None)
        else:
            self._tell_listeners(frozenset(uuid.UUID(hex=part) for part in payload.split(",")))

    async def run_once(self) -> bool:
        """Keeps the connection, and sends what was rung since the last time."""
        if self._channel is None or self._channel.broken.is_set():
            await self._reconnect()
        if self._unsent and self._channel is not None:
            unsent, self._unsent = self._unsent, set()
            too_many = len(unsent) > TENANTS_PER_NOTIFY_MAX
            await self._channel.send(EVERYBODY if too_many else ",".join(tenant_id.hex for tenant_id in unsent))
            await asyncio.sleep(self._coalesce_s)  # the rings of this time go together
        return bool(self._unsent)

    async def _reconnect(self) -> None:
        telemetry.BELL_IS_CONNECTED.set(0)
        if self._channel is not None:
            await self._channel.close()
        self._channel = await Notifications.open(self._database, self._hear)
        telemetry.BELL_IS_CONNECTED.set(1)
        self._tell_listeners(None)  # whatever rang meanwhile was not heard

    async def stop(self, limit_s: float = 5.0) -> None:
        await super().stop(limit_s)
        if self._channel is not None:
            await self._channel.close()
