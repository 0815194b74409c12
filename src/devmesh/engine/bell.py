"""The bell: tells whoever listens that a tenant has news. A hint and nothing more: a lost ring costs one poll interval.

Within the process a ring is immediate. Other processes hear of it by one message for all the rings of a few milliseconds, which
the first carrier that is up takes after the commit: a NOTIFY inside a writing transaction makes commits queue up. All
carriers are listened to, whichever others send by.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import uuid
from collections.abc import Callable, Iterable, Sequence

from devmesh import telemetry
from devmesh.core.components import Component, degraded
from devmesh.core.errors import MeshError
from devmesh.core.events import Concern
from devmesh.engine.carrier import Carrier
from devmesh.engine.loop import Loop

TENANTS_PER_RING_MAX = 200  # a NOTIFY has at most 8,000 bytes; more tenants than these ring for everybody
EVERYBODY = "*"

Listener = Callable[[frozenset[uuid.UUID] | None], None]  # None: any tenant may have news
Rung = dict[uuid.UUID, frozenset[Concern]]


class Bell(Loop):
    name = "bell"

    def __init__(self, carriers: Sequence[Carrier], coalesce_ms: float) -> None:
        """The carriers in order of preference; whoever starts the bell starts them as well."""
        super().__init__(interval_s=1.0)
        self._carriers, self._coalesce_s = carriers, coalesce_ms / 1000
        self._listeners: list[tuple[Listener, Concern | None]] = []
        self._rung: Rung = {}
        self._unsent: Rung = {}
        self._rings: collections.Counter[tuple[uuid.UUID, Concern]] = collections.Counter()
        self._waiters: dict[tuple[uuid.UUID, Concern], set[asyncio.Future[None]]] = {}
        for carrier in carriers:
            carrier.serve(self._hear, self._carrier_came_up)

    def listen(self, listener: Listener, concern: Concern | None = None) -> None:
        """Has a listener called, on this loop's thread, with the tenants that have news, or news of this concern."""
        self._listeners.append((listener, concern))

    def ring(self, tenant_id: uuid.UUID, concerns: Iterable[Concern]) -> None:
        """A committed transaction of this process has left events in this tenant's stream, or something to wait for."""
        if not self._rung:
            asyncio.get_running_loop().call_soon(self._tell)
        found = frozenset(concerns)
        for rung in (self._rung, self._unsent):
            rung[tenant_id] = rung.get(tenant_id, found) | found
        self.wake()

    def rings_so_far(self, tenant_id: uuid.UUID, concern: Concern) -> int:
        """To be read before looking, and given to `wait` after having found nothing: no ring is lost between."""
        return self._rings.setdefault((tenant_id, concern), 0)

    async def wait(self, tenant_id: uuid.UUID, concern: Concern, rings_seen: int, timeout_s: float) -> None:
        """Until the tenant's bell rings once more than was seen, or the time is over."""
        place = (tenant_id, concern)
        if self._rings[place] != rings_seen:
            return
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        waiters = self._waiters.setdefault(place, set())
        waiters.add(future)
        timer = loop.call_later(timeout_s, _wake, future)
        try:
            await future
        finally:
            timer.cancel()
            waiters.discard(future)
            if not waiters and self._waiters.get(place) is waiters:
                del self._waiters[place]

    def disturb(self) -> None:
        """Has everybody who waits look for themselves, although nothing rang."""
        for waiters in self._waiters.values():
            for future in waiters:
                _wake(future)

    def _tell(self) -> None:
        rung, self._rung = self._rung, {}
        self._tell_of(rung)

    def _tell_of(self, rung: Rung) -> None:
        for tenant_id, concerns in rung.items():
            for concern in concerns:
                self._wake_waiters((tenant_id, concern))
        for listener, wanted in self._listeners:
            heard = frozenset(tenant_id for tenant_id, concerns in rung.items() if wanted is None or wanted in concerns)
            if heard:
                listener(heard)

    def _tell_of_everybody(self) -> None:
        for place in self._rings.keys() | self._waiters.keys():
            self._wake_waiters(place)
        for listener, _ in self._listeners:
            listener(None)

    def _wake_waiters(self, place: tuple[uuid.UUID, Concern]) -> None:
        self._rings[place] += 1
        for future in self._waiters.get(place, ()):
            _wake(future)

    def _hear(self, payload: str) -> None:
        """Another process rang. What is no ring of ours, whoever sent it, is none of our business."""
        if payload == EVERYBODY:
            self._tell_of_everybody()
            return
        try:
            rung = dict(_decoded(part) for part in payload.split(","))
        except ValueError:
            return
        self._tell_of(rung)

    def _carrier_came_up(self) -> None:
        self._tell_of_everybody()  # whatever rang meanwhile was not heard
        self.wake()  # what nobody could carry waits

    async def run_once(self) -> bool:
        """Sends what was rung since the last time."""
        is_up = any(carrier.is_up for carrier in self._carriers)
        telemetry.BELL_IS_CONNECTED.set(is_up)
        if not (self._unsent and is_up):
            return False
        unsent, self._unsent = self._unsent, {}
        too_many = len(unsent) > TENANTS_PER_RING_MAX
        await self._send(EVERYBODY if too_many else ",".join(_encoded(*rung) for rung in unsent.items()))
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


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _encoded(tenant_id: uuid.UUID, concerns: frozenset[Concern]) -> str:
    return f"{tenant_id.hex}.{''.join(sorted(concerns))}"


@functools.lru_cache(maxsize=1_000)  # the same few are heard again and again
def _decoded(part: str) -> tuple[uuid.UUID, frozenset[Concern]]:
    """Raises ValueError for what no process of ours sends."""
    tenant, _, concerns = part.partition(".")
    return uuid.UUID(hex=tenant), frozenset(map(Concern, concerns))
