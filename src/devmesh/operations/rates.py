"""How many requests a second a key and its tenant may make, right across all nodes. Token buckets of the database's clock.

A node draws shares of buckets, for many of them in one statement, and spends them in memory (core/rates.py). So a granted
request costs a small part of a database trip, and a refused one none: it is remembered until when an empty bucket is empty.
While the database does not answer, nothing is counted and nobody is refused here.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Sequence

import structlog

from devmesh import telemetry
from devmesh.core.access import Caller
from devmesh.core.errors import Kind, MeshError
from devmesh.core.keys import hash_of
from devmesh.core.rates import Share
from devmesh.operations.gather import Gather
from devmesh.settings import Settings
from devmesh.store.database import Database, Record
from devmesh.store.statements import load

SQL = load("rates")
BUCKETS_MAX = 100_000  # that this process remembers; beyond it, it begins anew, and what it had in hand lapses
REFUSED_MAX = 10_000  # credentials that are remembered as refused
DRAWS_PER_BATCH_MAX = 1_000
DRAW_LIMIT_S = 1.0  # then the database counts as away

log = structlog.get_logger(__name__)


class Bucket:
    """A bucket as this process knows it."""

    __slots__ = ("bucket_id", "default_per_s", "drawing", "owner", "share", "tenant_id")

    def __init__(self, tenant_id: uuid.UUID, bucket_id: uuid.UUID, default_per_s: float) -> None:
        self.tenant_id, self.bucket_id, self.default_per_s = tenant_id, bucket_id, default_per_s
        self.owner = "tenant" if bucket_id == tenant_id else "key"
        self.share = Share()
        self.drawing: asyncio.Future[None] | None = None


class Rates:
    """The limits of all keys and tenants, as this process spends them."""

    REASONS = frozenset({"rate.key", "rate.tenant"})

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._burst_s = database, settings.rate_burst_s
        self._per_key_per_s, self._per_tenant_per_s = settings.rate_per_key_per_s, settings.rate_per_tenant_per_s
        self._buckets: dict[tuple[uuid.UUID, uuid.UUID], Bucket] = {}  # by tenant: tokens of two may name one subject
        self._refused: dict[bytes, tuple[Bucket, Bucket]] = {}
        self._is_away = False
        self._draws: Gather[Bucket, None] = Gather(
            self._draw_many, batch_max=DRAWS_PER_BATCH_MAX, in_flight_max=1, waiting_max=BUCKETS_MAX
        )

    async def admit(self, caller: Caller) -> None:
        """Spends a token of the caller's key and one of its tenant, or none. Raises rate_limited."""
        key = self._known(caller, caller.key_id) or self._new(caller, caller.key_id, self._per_key_per_s)
        tenant = self._known(caller, caller.tenant_id) or self._new(caller, caller.tenant_id, self._per_tenant_per_s)
        if not self._spend(key, tenant):
            await self._wait_and_spend(key, tenant)

    def note_refused(self, credential: str, caller: Caller) -> None:
        """Whose credential it is that was refused, for a wire that carries it with every request."""
        if len(self._refused) >= REFUSED_MAX:
            self._refused.clear()
        key, tenant = self._known(caller, caller.key_id), self._known(caller, caller.tenant_id)
        if key is not None and tenant is not None:
            self._refused[hash_of(credential)] = (key, tenant)

    def refuse_again(self, credential: str | None) -> None:
        """Raises rate_limited when a credential that was refused would only be so again: it need not be looked up."""
        if not self._refused or credential is None:
            return
        now_s = time.monotonic()
        for bucket in self._refused.get(hash_of(credential), ()):
            if bucket.share.is_empty(now_s) and not bucket.share.has_one(now_s):
                raise self._refusal([bucket], now_s)

    async def forget_full(self) -> None:
        """Lets go of the rows of buckets that are full: without one, a bucket is full as well."""
        await self._database.read(SQL.forget)

    def _spend(self, key: Bucket, tenant: Bucket) -> bool:
        """Both or none: what one bucket refuses does not cost the other."""
        now_s = time.monotonic()
        if not (key.share.has_one(now_s) and tenant.share.has_one(now_s)):
            return False
        for bucket in (key, tenant):
            if bucket.share.spend(now_s):
                _ = self._draw(bucket)  # in the background
        return True

    async def _wait_and_spend(self, key: Bucket, tenant: Bucket) -> None:
        while True:
            now_s = time.monotonic()
            lacking = [bucket for bucket in (key, tenant) if not bucket.share.has_one(now_s)]
            if empty := [bucket for bucket in lacking if bucket.share.is_empty(now_s)]:
                raise self._refusal(empty, now_s)
            for bucket in lacking:
                bucket.share.waiting += 1
            try:
                await asyncio.wait([self._draw(bucket) for bucket in lacking])
            finally:
                for bucket in lacking:
                    bucket.share.waiting -= 1
            if self._spend(key, tenant):
                return

    def _refusal(self, empty: Sequence[Bucket], now_s: float) -> MeshError:
        bucket = empty[0]
        again_s = max(bucket.share.promise_s(now_s, self._burst_s) for bucket in empty)
        telemetry.REQUESTS_REFUSED.labels(f"rate of a {bucket.owner}").inc()
        return MeshError(
            Kind.RATE_LIMITED,
            f"this {bucket.owner} may make {bucket.share.rate_per_s:g} requests a second; wait",
            retry_after_ms=math.ceil(again_s * 1000) + 1,
            reason=f"rate.{bucket.owner}",
        )

    def _known(self, caller: Caller, bucket_id: uuid.UUID) -> Bucket | None:
        return self._buckets.get((caller.tenant_id, bucket_id))

    def _new(self, caller: Caller, bucket_id: uuid.UUID, default_per_s: float) -> Bucket:
        if len(self._buckets) >= BUCKETS_MAX:
            self._buckets = {known: kept for known, kept in self._buckets.items() if kept.drawing is not None}
        bucket = self._buckets[caller.tenant_id, bucket_id] = Bucket(caller.tenant_id, bucket_id, default_per_s)
        return bucket

    def _draw(self, bucket: Bucket) -> asyncio.Future[None]:
        """One draw of a bucket at a time; who comes meanwhile waits for the same one."""
        if bucket.drawing is None:
            bucket.drawing = self._draws.add(bucket)
        return bucket.drawing

    async def _draw_many(self, buckets: Sequence[Bucket]) -> list[None]:
        began_s = time.monotonic()
        wanted = [bucket.share.wanted(began_s) for bucket in buckets]
        try:
            async with asyncio.timeout(DRAW_LIMIT_S):
                rows = await self._drawn(buckets, wanted)
        except (MeshError, TimeoutError) as error:
            self._not_drawn(buckets, error)
        else:
            self._is_away = False
            now_s = time.monotonic()
            for bucket, asked, row in zip(buckets, wanted, rows, strict=True):
                bucket.share.drawn(now_s, row["rate_per_s"], self._burst_s, asked, row["drawn"], row["left_over"])
        finally:
            for bucket in buckets:
                bucket.drawing = None
        telemetry.RATE_DRAWS.inc(len(buckets))
        return [None] * len(buckets)

    async def _drawn(self, buckets: Sequence[Bucket], wanted: Sequence[int]) -> list[Record]:
        """What each bucket gives. A new one is drawn from again, now that others see it."""
        rows = list(
            await self._database.read(
                SQL.draw,
                [bucket.tenant_id for bucket in buckets],
                [bucket.bucket_id for bucket in buckets],
                wanted,
                [bucket.default_per_s for bucket in buckets],
                self._burst_s,
            )
        )
        if new := [place for place, row in enumerate(rows) if row["is_new"]]:
            again = await self._drawn([buckets[place] for place in new], [wanted[place] for place in new])
            for place, row in zip(new, again, strict=True):
                rows[place] = row
        return rows

    def _not_drawn(self, buckets: Sequence[Bucket], error: Exception) -> None:
        if not self._is_away:
            log.warning(
                "rates cannot be counted; nobody is refused meanwhile", error=str(error) or type(error).__name__
            )
        self._is_away = True
        for bucket in buckets:
            bucket.share.not_drawn(time.monotonic())
