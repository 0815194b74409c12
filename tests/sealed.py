"""Secrets in a database, put there as operations put them: sealed, in the transaction that writes their row."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from devmesh.core import envelope
from devmesh.core.envelope import EnvelopeError, MasterKey, Place
from devmesh.core.ids import new_id
from devmesh.store.database import Database, Transaction
from devmesh.store.statements import Statement, load
from devmesh.store.vault import Vault

PURPOSE = "token_issuers.secret"
TENANTS = load("tenants")
INSERT = Statement(
    "test.insert_issuers",
    "insert into mcp.token_issuers (tenant_id, issuer_id, name, issuer, algorithm, secret)"
    " select $1, u.id, u.id::text, u.id::text, 'HS256', u.sealed from unnest($2::uuid[], $3::bytea[]) as u (id, sealed)",
    "Inserts issuers.",
)
STORED = Statement(
    "test.stored", "select tenant_id, issuer_id, secret from mcp.token_issuers where secret is not null", "All of them."
)


def new_master_key() -> MasterKey:
    return MasterKey.parse(envelope.new_master_key())


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Database]:
    """A pool on a database."""
    database = await Database.open(dsn, service="tests", pool_size_min=1, pool_size_max=8, transaction_deadline_s=10.0)
    try:
        yield database
    finally:
        await database.close()


async def new_tenant(database: Database) -> uuid.UUID:
    row = await database.run(lambda tx: tx.fetch_row(TENANTS.insert, new_id(), f"t{new_id().hex}", None))
    assert row is not None
    tenant_id: uuid.UUID = row["id"]
    return tenant_id


async def put(
    database: Database, vault: Vault, tenant_id: uuid.UUID, secrets: Sequence[bytes]
) -> dict[uuid.UUID, bytes]:
    """Stores secrets in one transaction. Answers with the secret of each row."""
    stored = {new_id(): secret for secret in secrets}

    async def write(tx: Transaction) -> None:
        sealed = await vault.seal_many(
            tx, [(Place(tenant_id, PURPOSE, row_id), secret) for row_id, secret in stored.items()]
        )
        await tx.execute(INSERT, tenant_id, list(stored), sealed)

    await database.run(write)
    return stored


async def read(database: Database, vault: Vault) -> dict[uuid.UUID, bytes | EnvelopeError]:
    """What every stored secret opens to, by row."""
    rows = await database.read(STORED)
    places = [(Place(row["tenant_id"], PURPOSE, row["issuer_id"]), row["secret"]) for row in rows]
    opened = await vault.open_many(database, places)
    return {place.row_id: secret for (place, _), secret in zip(places, opened, strict=True)}
