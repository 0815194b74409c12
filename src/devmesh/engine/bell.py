"""The bell: tells whoever listens that a tenant has news. A hint and nothing more: a lost ring costs one poll interval.

Within the process a ring is immediate. Other processes hear of it by one message for all the rings of a few milliseconds, which
the first carrier that is up takes after the commit: a NOTIFY inside a writing transaction makes commits queue up. All
carriers are listened to, whichever others send by.
"""

from __future__ import annotations

import asyncio
import collections
import uuid
from collections.abc import Callable, Sequence

from devmesh import telemetry
from devmesh.core.components import Component, degraded
from devmesh.core.errors import MeshError
from devmesh.engine.carrier import Carrier
from devmesh.engine.loop import Loop

TENANTS_PER_RING_MAX = 200  # a NOTIFY has at most 8,000 bytes; more tenants than these ring for everybody
EVERYBODY = "*"

Listener = Callable[[frozenset[uuid.UUID] | None], None]  # None: any tenant may have news


class Bell(Loop):
    name = "bell"

    def __init__(self, carriers: Sequence[Carrier], coalesce_ms: float) -> None:
        """The carriers in order of preference; whoever starts the bell starts them as well."""
        super().__init__(interval_s=1.0)
        self._carriers, self._coalesce_s = carriers, coalesce_ms / 1000
        self._listeners: list[Listener] = []
        self._rung: set[uuid.UUID] = set()
        self._unsent: set[uuid.UUID] = set()
        self._rings: collections.Counter[uuid.UUID] = collections.Counter()
        self._waiters: dict[uuid.UUID, set[asyncio.Future[None]]] = {}
        for carrier in carriers:
            carrier.serve(self._hear, self._carrier_came_up)

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

    def disturb(self) -> None:
        """Has everybody who waits look for themselves, although nothing rang."""
        for waiters in self._waiters.values():
            for future in waiters:
                if not future.done():
                    future.set_result(None)

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
        """Another process rang. What is no ring of ours, whoever sent it, is none of our business."""
        if payload == EVERYBODY:
            self._tell_listeners(None)
            return
        try:
            tenants = frozenset(uuid.UUID(hex=part) for part in payload.split(","))
        except ValueError:
            return
        self._tell_listeners(tenants)

    def _carrier_came_up(self) -> None:
        self._tell_listeners(None)  # whatever rang meanwhile was not heard
        self.wake()  # what nobody could carry waits

    async def run_once(self) -> bool:
        """Sends what was rung since the last time."""
        is_up = any(carrier.is_up for carrier in self._carriers)
        telemetry.BELL_IS_CONNECTED.set(is_up)
        if not (self._unsent and is_up):
            return False
        unsent, self._unsent = self._unsent, set()
        too_many = len(unsent) > TENANTS_PER_RING_MAX
        await self._send(EVERYBODY if too_many else ",".join(tenant_id.hex for tenant_id in unsent))
        await asyncio.sleep(self._coalesce_s)  # the rings of this time go together
        return bool(self._unsent)

    async def _send(self, payload: str) -> None:
        """By the first carrier that takes it. The one that fails says so itself."""
        for carrier in self._carriers:
            if carrier.is_up:
                try:
                    await carrier.send(payload)
                except MeshError:
                    continue
                telemetry.RINGS_SENT.labels(carrier.name).inc()
                return

    def state(self, pass_s_max: float) -> Component:
        found = super().state(pass_s_max)
        states = {carrier.name: carrier.state(pass_s_max) for carrier in self._carriers}
        if found.status != "healthy" or any(state.status == "healthy" for state in states.values()):
            return found
        reasons = "; ".join(f"{name}: {state.message}" for name, state in states.items())
        return degraded(f"it does not reach other processes, whose news comes by polling: {reasons}")
