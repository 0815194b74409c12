"""What an operation's body works with: the transaction, the database's clock, the vault, and a place to put events.

`WorkRunner` is the only way to change a tenant's rows, for the corridor's batches and for the engine's passes alike: one
transaction, its events last, the bell after its commit.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

import msgspec

from devmesh.core import events
from devmesh.core.events import Concern
from devmesh.store.claim_horizons import ClaimHorizons
from devmesh.store.database import Database, Transaction
from devmesh.store.statements import load
from devmesh.store.vault import Vault

SQL = load("events")
CLOCK = load("clock")
ResultT = TypeVar("ResultT")


class Bell(Protocol):
    """Tells whoever listens, here and in other processes, that a tenant has news. A hint: it may be lost."""

    def ring(self, tenant_id: uuid.UUID, concerns: Iterable[Concern]) -> None: ...
    def rings_so_far(self, tenant_id: uuid.UUID, concern: Concern) -> int: ...
    async def wait(self, tenant_id: uuid.UUID, concern: Concern, rings_seen: int, timeout_s: float) -> None: ...
    def disturb(self) -> None: ...


class Work:
    """One transaction of one tenant. Events that are put here are appended at its end, and told after its commit."""

    def __init__(
        self,
        tx: Transaction,
        tenant_id: uuid.UUID,
        now: datetime.datetime,
        vault: Vault,
        horizons: ClaimHorizons | None = None,
    ) -> None:
        """`now` is the transaction's time by the database's clock, the only clock that leases know."""
        self.tx, self.tenant_id, self.now, self.vault = tx, tenant_id, now, vault
        self.horizons = horizons or ClaimHorizons()
        self.events: list[events.NewEvent] = []
        self.concerns: set[Concern] = set()
        """What may have come about for those who wait. Events add their own."""

    def emit(self, event_type: str, topics: tuple[str, ...], data: object) -> None:
        """`data` is anything that msgspec encodes, or bytes that are JSON already."""
        assert event_type in events.TYPES, f"event type {event_type} is not declared in core/events.py"
        encoded = data if isinstance(data, bytes) else msgspec.json.encode(data)
        self.events.append(events.NewEvent(event_type, topics, encoded))
        self.concerns |= events.concerns_of(event_type)

    async def append_events(self) -> None:
        """Numbers and writes the events. Takes the stream's lock, so nothing may follow but the commit."""
        if self.events:
            await self.tx.execute(
                SQL.append,
                self.tenant_id,
                [event.type for event in self.events],
                [",".join(event.topics) for event in self.events],
                [event.data.decode() for event in self.events],
            )


class WorkRunner:
    def __init__(self, database: Database, bell: Bell, vault: Vault) -> None:
        self.database, self.bell, self.vault = database, bell, vault
        self._horizons = ClaimHorizons()

    async def run(self, tenant_id: uuid.UUID, body: Callable[[Work], Awaitable[ResultT]]) -> ResultT:
        """Does a piece of work in one transaction of one tenant. Raises MeshError."""

        async def work_through(tx: Transaction) -> ResultT:
            work = Work(tx, tenant_id, await tx.fetch_value(CLOCK.now), self.vault, self._horizons)
            result = await body(work)
            await work.append_events()
            if work.events or work.concerns:
                tx.after_commit(lambda: self.bell.ring(tenant_id, work.concerns))
            return result

        return await self.database.run(work_through)
