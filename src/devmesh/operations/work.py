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
from devmesh.store.statements import SEPARATOR, load
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
        now: datetime.datetime | None,
        vault: Vault,
        horizons: ClaimHorizons | None = None,
        bell: Bell | None = None,
    ) -> None:
        """`now` is the transaction's time by the database's clock, the only one that leases know; None: not asked for yet."""
        self.tx, self.tenant_id, self._now, self.vault = tx, tenant_id, now, vault
        self.horizons = horizons or ClaimHorizons()
        self._bell = bell
        self.events: list[events.NewEvent] = []
        self.has_news = False
        self.concerns: set[Concern] = set()
        """What may have come about for those who wait. Events add their own."""

    @property
    def now(self) -> datetime.datetime:
        assert self._now is not None, "an operation that is declared with reads_clock=False awaits clock()"
        return self._now

    async def clock(self) -> datetime.datetime:
        """The same, asked for by whoever is the first to need it."""
        if self._now is None:
            self._now = await self.tx.fetch_value(CLOCK.now)
        return self.now

    def is_at(self, now: datetime.datetime) -> datetime.datetime:
        """A statement has told the transaction's time besides."""
        self._now = now
        return now

    def rings_so_far(self, concern: Concern) -> int:
        """To be read before looking: while it stays the same, nothing rang since."""
        return self._bell.rings_so_far(self.tenant_id, concern) if self._bell is not None else 0

    def emit(self, event_type: str, topics: tuple[str, ...], data: object) -> None:
        """`data` is anything that msgspec encodes, or bytes that are JSON already."""
        assert event_type in events.TYPES, f"event type {event_type} is not declared in core/events.py"
        encoded = data if isinstance(data, bytes) else msgspec.json.encode(data)
        self.events.append(events.NewEvent(event_type, topics, encoded))
        self.has_told(event_type)

    def has_told(self, event_type: str) -> None:
        """There is an event of this type: one that is to be appended, or that a statement has appended."""
        self.has_news = True
        self.concerns |= events.concerns_of(event_type)

    def take_events(self) -> tuple[list[str], list[str], list[str]]:
        """The events so far, for a statement that appends them itself: types, topics joined by commas, and data."""
        taken, self.events = self.events, []
        return (
            [event.type for event in taken],
            [",".join(event.topics) for event in taken],
            [event.data.decode() for event in taken],
        )

    def append_events(self) -> None:
        """Has the events numbered and written with the commit, as the last thing that is done under the stream's lock."""
        if self.events:
            self.tx.commit_with(SQL.append, str(self.tenant_id), *map(SEPARATOR.join, self.take_events()))


class WorkRunner:
    def __init__(self, database: Database, bell: Bell, vault: Vault) -> None:
        self.database, self.bell, self.vault = database, bell, vault
        self.horizons = ClaimHorizons()

    async def run(
        self, tenant_id: uuid.UUID, body: Callable[[Work], Awaitable[ResultT]], *, reads_clock: bool = True
    ) -> ResultT:
        """Does a piece of work in one transaction of one tenant. Raises MeshError."""

        async def work_through(tx: Transaction) -> ResultT:
            work = Work(tx, tenant_id, None, self.vault, self.horizons, self.bell)
            # The first thing then: others begin while this process goes on.
            tx.after_commit(lambda: self._ring_for(work))
            if reads_clock:
                await work.clock()
            result = await body(work)
            work.append_events()
            return result

        return await self.database.run(work_through)

    def _ring_for(self, work: Work) -> None:
        if work.has_news or work.concerns:
            self.bell.ring(work.tenant_id, work.concerns)
