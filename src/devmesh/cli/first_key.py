"""The tenant and the key that a mesh on somebody's own machine begins with, so that its first command just works."""

from __future__ import annotations

from devmesh.core.access import KeyKind
from devmesh.core.errors import Kind, MeshError
from devmesh.core.ids import new_id
from devmesh.operations.administration import OPERATOR_TENANT, CreateKey, create_key_for
from devmesh.operations.authentication import Authenticator
from devmesh.operations.work import Work
from devmesh.settings import Settings
from devmesh.store.database import Database, Transaction
from devmesh.store.statements import load
from devmesh.store.vault import Vault

TENANTS = load("tenants")
CLOCK = load("clock")
KEY_NAME = "devmesh up"


async def working_key(dsn: str, settings: Settings, known: str | None, name: str = KEY_NAME) -> str:
    """The known key if it still administers the mesh, else a new one of this name. Raises `MeshError`."""
    database = await Database.open(
        dsn,
        service=KEY_NAME,
        pool_size_min=1,
        pool_size_max=1,
        transaction_deadline_s=settings.transaction_deadline_s,
        search_path=settings.database_search_path,
    )
    try:
        if known is not None and await _is_admin(Authenticator(database, settings), known):
            return known
        return await database.run(lambda tx: _create(tx, name))
    finally:
        await database.close()


async def _is_admin(authenticator: Authenticator, secret: str) -> bool:
    try:
        return (await authenticator.authenticate(secret, KEY_NAME)).is_admin
    except MeshError as error:
        if error.kind in (Kind.UNAUTHENTICATED, Kind.RATE_LIMITED):
            return False
        raise


async def _create(tx: Transaction, name: str) -> str:
    tenant = await tx.fetch_row(TENANTS.insert, new_id(), OPERATOR_TENANT, None)
    tenant = tenant or await tx.fetch_row(TENANTS.by_name, OPERATOR_TENANT)
    assert tenant is not None
    work = Work(tx, tenant["id"], await tx.fetch_value(CLOCK.now), Vault())
    _, secret = await create_key_for(work, work.tenant_id, CreateKey(kind=KeyKind.ADMIN, name=name))
    return secret
