"""Re-encryption: data keys go under the current master key, and values under the current data key, while everybody reads.

A round wraps anew what another master key wraps, makes a data key when the current one is old, and seals values anew in small
batches. Only its place in the round is in memory: killed half-way, or run on several nodes at once, it goes on from what the
database holds. Data keys that nothing is sealed under are kept for a while, because somebody may have read a value just before.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import structlog

from devmesh import telemetry
from devmesh.core.components import Component, degraded
from devmesh.core.envelope import EnvelopeError, Place
from devmesh.engine.loop import Loop
from devmesh.store.database import Database, Record, Transaction
from devmesh.store.vault import NOWHERE, SEALED, SQL, SealedColumn, Vault

log = structlog.get_logger(__name__)

RESEALED_MAX = 200  # values that one transaction seals anew
PASS_S_MAX = 2.0
LOG_INTERVAL_S = 5.0
DAY_S = 86_400.0

Position = tuple[uuid.UUID, uuid.UUID]


class Batch(NamedTuple):
    """What one transaction did."""

    resealed: int
    unopened: dict[Place, str]  # with the reason why not; they stay as they are
    last: Position | None  # where the next one goes on; None when there is no next one


class Reencryption(Loop):
    name = "re-encryption"

    def __init__(
        self, database: Database, vault: Vault, interval_s: float, *, data_key_days_max: float, data_key_kept_s: float
    ) -> None:
        super().__init__(interval_s)
        self._database, self._vault = database, vault
        self._data_key_days_max, self._data_key_kept_s = data_key_days_max, data_key_kept_s
        self._after: dict[tuple[uuid.UUID, str], Position | None] = {}  # how far the round is, by data key and purpose
        self._unopened: set[Place] = set()  # of the last round
        self._met: set[Place] = set()  # in this one
        self._left, self._resealed, self._logs_at = 0, 0, 0.0

    async def run_once(self) -> bool:
        if not self._vault.master_keys:
            return False
        await self._database.run(self._rewrap)
        rows = await self._database.read(SQL.data_keys)
        if rows and rows[0]["age_s"] > self._data_key_days_max * DAY_S:
            await self._database.run(lambda tx: self._vault.make_data_key(tx, rows[0]["generation"]))
            return True
        older = [row for row in rows if not row["is_current"] and row["is_used"] and self._vault.can_unwrap(row)]
        if not await self._reseal_all(older):
            return True
        lost = [row["data_key_id"] for row in rows if not row["is_used"] and not self._vault.can_unwrap(row)]
        await self._database.run(lambda tx: self._dispose(tx, lost))
        return False

    def state(self, pass_s_max: float) -> Component:
        if self._unopened:
            return degraded(
                f"{len(self._unopened)} secrets cannot be opened and stay as they are:"
                " `devmesh keys encryption --verify` names them"
            )
        return super().state(pass_s_max)

    def details(self) -> dict[str, Any]:
        """How far it is, for health."""
        return {
            "master_keys": [key.id for key in self._vault.master_keys],
            "values_to_reseal": self._left,
            "values_resealed": self._resealed,
            "values_not_opened": len(self._unopened),
        }

    async def _rewrap(self, tx: Transaction) -> None:
        current = self._vault.current
        found = await tx.fetch(SQL.lock_wrapped_otherwise, current.id)
        rows = [row for row in found if self._vault.can_unwrap(row)]  # health tells of the others
        if not rows:
            return
        wrapped = [self._vault.rewrap(row) for row in rows]
        await tx.execute(SQL.rewrap, [row["data_key_id"] for row in rows], current.id, wrapped)
        was = sorted({row["master_key_id"] for row in rows})
        tx.after_commit(lambda: _tell_rewrapped(len(rows), was, current.id))

    async def _reseal_all(self, older: Sequence[Record]) -> bool:
        """Whether the round is through. When the pass has taken long enough, the next one goes on."""
        ends_at = time.monotonic() + PASS_S_MAX
        if older and not self._after:
            await self._begin()
        for row in older:
            for column in SEALED:
                step = (row["data_key_id"], column.purpose)
                while (after := self._after.get(step, NOWHERE)) is not None:
                    if time.monotonic() > ends_at or self._stopping.is_set():
                        return False
                    self._after[step] = await self._reseal(column, row["data_key_id"], after)
        await self._end()
        return True

    async def _begin(self) -> None:
        self._left = await self._count_left()
        self._logs_at = time.monotonic() + LOG_INTERVAL_S
        if self._left > len(self._unopened):
            log.info("sealing secrets anew", left=self._left)

    async def _end(self) -> None:
        self._unopened, self._met = self._met, set()
        if self._after:
            self._after.clear()
            self._left = await self._count_left()
            if not self._left:
                log.info("all secrets are sealed under the current data key", resealed=self._resealed)

    async def _reseal(self, column: SealedColumn, data_key_id: uuid.UUID, after: Position) -> Position | None:
        batch = await self._database.run(lambda tx: reseal(tx, self._vault, column, data_key_id, after))
        telemetry.SECRETS_REENCRYPTED.inc(batch.resealed)
        self._resealed += batch.resealed
        self._left = max(0, self._left - batch.resealed)
        telemetry.SECRETS_TO_REENCRYPT.set(self._left)
        for place, reason in batch.unopened.items():
            self._met.add(place)
            if place not in self._unopened:
                log.error(
                    "a secret cannot be sealed anew", reason=reason,
                    purpose=place.purpose, tenant_id=str(place.tenant_id), row_id=str(place.row_id),
                )  # fmt: skip
        if time.monotonic() > self._logs_at:
            self._logs_at = time.monotonic() + LOG_INTERVAL_S
            log.info("sealing secrets anew", left=self._left, resealed=self._resealed)
        return batch.last

    async def _count_left(self) -> int:
        rows = await self._database.read(SQL.count_left)
        telemetry.SECRETS_TO_REENCRYPT.set(rows[0]["left"])
        left: int = rows[0]["left"]
        return left

    async def _dispose(self, tx: Transaction, lost: Sequence[uuid.UUID]) -> None:
        """Deletes data keys that nothing needs. Who seals holds a lock on theirs, so the second look is the last word."""
        await tx.execute(SQL.note_unused)
        rows = await tx.fetch(SQL.lock_disposable, float(self._data_key_kept_s), lost)
        if rows and (deleted := await tx.execute(SQL.delete_unused, [row["data_key_id"] for row in rows])):
            tx.after_commit(lambda: log.info("data keys that nothing needs were deleted", data_keys=deleted))


async def reseal(tx: Transaction, vault: Vault, column: SealedColumn, data_key_id: uuid.UUID, after: Position) -> Batch:
    """Seals values of one column anew that lie under one data key, in the order of their places."""
    rows = await tx.fetch(column.lock, data_key_id, *after, RESEALED_MAX)
    if not rows:
        return Batch(0, {}, None)
    values = [(Place(row["tenant_id"], column.purpose, row["row_id"]), row["sealed"]) for row in rows]
    opened = await vault.open_many(tx, values)
    secrets = [(place, secret) for (place, _), secret in zip(values, opened, strict=True) if isinstance(secret, bytes)]
    sealed = await vault.seal_many(tx, secrets)
    places = [place for place, _ in secrets]
    await tx.execute(column.reseal, [place.tenant_id for place in places], [place.row_id for place in places], sealed)
    unopened = {
        place: str(why) for (place, _), why in zip(values, opened, strict=True) if isinstance(why, EnvelopeError)
    }
    return Batch(len(secrets), unopened, (rows[-1]["tenant_id"], rows[-1]["row_id"]))


def _tell_rewrapped(count: int, was: Sequence[str], now: str) -> None:
    telemetry.DATA_KEYS_REWRAPPED.inc(count)
    log.info("data keys were wrapped anew", data_keys=count, was=was, now=now)
