"""From a presented credential to a caller: looked up together with the others that came meanwhile, counted when refused."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from devmesh import telemetry
from devmesh.core import keys
from devmesh.core.access import Caller, Scope
from devmesh.core.errors import Kind, MeshError
from devmesh.operations.gather import Gather
from devmesh.settings import Settings
from devmesh.store.database import Database, Record, Transaction
from devmesh.store.statements import load

SQL = load("keys")


class Presented(NamedTuple):
    secret: str
    address: str


class Authenticator:
    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings
        self._gather: Gather[Presented, Caller] = Gather(
            self._check,
            batch_max=settings.gather_batch_max,
            in_flight_max=settings.gather_in_flight_max,
            waiting_max=settings.gather_queue_max,
        )

    async def authenticate(self, secret: str | None, address: str) -> Caller:
        """The caller whom a key belongs to. Raises unauthenticated, each cause by its own `reason`, or rate_limited."""
        if not secret:
            raise refused("missing", "no credential: send `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        return await self._gather.add(Presented(secret, address))

    async def _check(self, presented: Sequence[Presented]) -> Sequence[Caller | BaseException]:
        return await self._database.run(lambda tx: self._look_up(tx, presented))

    async def _look_up(self, tx: Transaction, presented: Sequence[Presented]) -> list[Caller | BaseException]:
        prefixes = [
            item.secret[: keys.PREFIX_CHARACTERS] if keys.is_well_formed(item.secret) else "" for item in presented
        ]
        rows = await tx.fetch(SQL.look_up, prefixes, [item.address for item in presented])
        answers: list[Caller | BaseException] = [
            refused("unknown", "this key is not known")
            if prefix
            else refused("malformed", "this is not a DevMesh key: one begins with dm_ and has 46 characters")
            for prefix in prefixes
        ]
        used: list[tuple[uuid.UUID, uuid.UUID]] = []
        for row in rows:
            place = row["ordinal"] - 1
            item = presented[place]
            if row["locked_s"] is not None:
                answers[place] = locked_out(row["locked_s"])
            elif row["key_hash"] is not None and keys.matches(keys.hash_of(item.secret), row["key_hash"]):
                answers[place] = _caller(row, item.address)
                if row["is_use_unnoted"] and isinstance(answers[place], Caller):
                    used.append((row["tenant_id"], row["key_id"]))
        if used:
            await tx.execute(SQL.note_use, [tenant for tenant, _ in used], [key for _, key in used])
        await self._note_failures(tx, presented, answers)
        return answers

    async def _note_failures(
        self, tx: Transaction, presented: Sequence[Presented], answers: Sequence[Caller | BaseException]
    ) -> None:
        failed = [
            item.address
            for item, answer in zip(presented, answers, strict=True)
            if isinstance(answer, MeshError) and answer.kind is Kind.UNAUTHENTICATED
        ]
        if failed:
            telemetry.AUTHENTICATION_FAILURES.inc(len(failed))
            await tx.execute(SQL.note_failures, failed)
            limit, lockout_s = self._settings.auth_failures_per_minute_max, self._settings.auth_lockout_s
            await tx.execute(SQL.lock_out, sorted(set(failed)), limit, float(lockout_s))

    async def no_longer_valid(self, in_use: set[tuple[uuid.UUID, uuid.UUID]]) -> set[uuid.UUID]:
        """Which of these (tenant, key) pairs were revoked, have expired or belong to a suspended tenant."""
        if not in_use:
            return set()
        tenants, key_ids = [tenant for tenant, _ in in_use], [key for _, key in in_use]
        rows = await self._database.run(lambda tx: tx.fetch(SQL.invalid, tenants, key_ids))
        return {row["key_id"] for row in rows}


def refused(reason: str, message: str) -> MeshError:
    return MeshError(Kind.UNAUTHENTICATED, message, reason=f"credential.{reason}")


def locked_out(locked_s: float) -> MeshError:
    message = "too many refused credentials came from this address; wait"
    return MeshError(
        Kind.RATE_LIMITED, message, retry_after_ms=int(locked_s * 1000) + 1, reason="credential.locked_out"
    )


def _caller(row: Record, address: str) -> Caller | MeshError:
    if row["is_revoked"]:
        return refused("revoked", "this key was revoked")
    if row["is_expired"]:
        return refused("expired", "this key has expired")
    if row["is_suspended"]:
        return refused("suspended", "this tenant is suspended")
    return Caller(
        tenant_id=row["tenant_id"], key_id=row["key_id"], owner_id=row["owner_id"],
        scopes=_scopes(tuple(row["scopes"])), bound_agent_id=row["agent_id"], address=address,
    )  # fmt: skip


@functools.lru_cache(maxsize=1000)
def _scopes(names: tuple[str, ...]) -> frozenset[Scope]:
    """Shared by all callers that hold the same: there are many connections and few sorts of them."""
    return frozenset(Scope(name) for name in names)
