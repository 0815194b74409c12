"""The verbs of administrators: tenants, keys, the audit log."""

from __future__ import annotations

import datetime
import uuid
from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from devmesh.core import errors, keys
from devmesh.core.access import DEFAULT_SCOPES, KeyKind, Scope
from devmesh.core.ids import new_id
from devmesh.core.names import (
    IN_WORDS,
    ON_ONE_LINE,
    Moment,
    PageCursor,
    PageLimit,
    decode_page_cursor,
    like,
    page_cursor,
)
from devmesh.operations.registry import Call, Mutation, Params, operation
from devmesh.operations.work import Work
from devmesh.store.statements import load

KEYS = load("keys")
TENANTS = load("tenants")
AGENTS = load("agents")
AUDIT = load("audit")
SHOWN_ONCE = "secret"  # the field of the answers that hold one
OPERATOR_TENANT = "default"  # its administrators look after the tenants

SHORT_NAME = like(
    r"^[a-z0-9][a-z0-9_-]{0,62}$(?!\n)", "1 to 63 letters (a-z), digits, _ and -, of which a letter or a digit is first"
)
PERHAPS_ON_ONE_LINE = like(r"^[^\x00-\x1f\x7f]*$(?!\n)", IN_WORDS[ON_ONE_LINE])
TenantName = Annotated[str, Meta(pattern=SHORT_NAME)]
KeyName = Annotated[str, Meta(max_length=200, pattern=PERHAPS_ON_ONE_LINE)]
RatePerS = Annotated[float, Meta(ge=0.01, le=1_000_000)]


class Tenant(msgspec.Struct):
    id: uuid.UUID
    name: str
    status: str
    created_at: datetime.datetime
    rate_per_s: float | None


class Key(msgspec.Struct):
    """A key without its secret."""

    id: uuid.UUID
    name: str
    prefix: str
    kind: KeyKind
    scopes: list[Scope]
    agent_id: uuid.UUID | None
    expires_at: datetime.datetime | None
    created_at: datetime.datetime
    last_used_at: datetime.datetime | None
    revoked_at: datetime.datetime | None
    replaces_key_id: uuid.UUID | None
    rate_per_s: float | None


class KeyResult(msgspec.Struct):
    key: Key


class NewKeyResult(msgspec.Struct):
    """`secret` is shown this once; a repeated call with the same idempotency key gets null."""

    key: Key
    secret: str | None


class TenantResult(msgspec.Struct):
    tenant: Tenant


class NewTenantResult(msgspec.Struct):
    """`secret` is the new tenant's first administrator key, shown this once."""

    tenant: Tenant
    key: Key
    secret: str | None


class CreateTenant(Mutation, kw_only=True):
    """`rate_per_s` is how many requests all keys of the tenant may make together; without it, what the server is set to."""

    name: TenantName
    rate_per_s: RatePerS | None = None


@operation("tenant.create", scope=Scope.ADMIN, http="POST /tenants", single=True, audited=True, secret=SHOWN_ONCE)
async def create_tenant(work: Work, call: Call[CreateTenant]) -> NewTenantResult:
    """Create a tenant and its first administrator key. For administrators of the tenant `default`."""
    await _require_operator(work)
    row = await work.tx.fetch_row(TENANTS.insert, new_id(), call.params.name, call.params.rate_per_s)
    if row is None:
        raise errors.conflict("tenant.name", f"there is a tenant {call.params.name} already")
    tenant = Tenant(*row)
    key, secret = await create_key_for(work, tenant.id, CreateKey(kind=KeyKind.ADMIN, name="first key"))
    return NewTenantResult(tenant, key, secret)


class ListTenants(Params, kw_only=True):
    limit: PageLimit = 50
    cursor: PageCursor | None = None


class TenantsResult(msgspec.Struct):
    tenants: list[Tenant]
    next_cursor: str | None = None


@operation("tenant.list", scope=Scope.ADMIN, http="GET /tenants", single=True)
async def list_tenants(work: Work, call: Call[ListTenants]) -> TenantsResult:
    """List tenants, newest first. For administrators of the tenant `default`."""
    await _require_operator(work)
    rows = await work.tx.fetch(TENANTS.page, decode_page_cursor(call.params.cursor), call.params.limit)
    found = [Tenant(*row) for row in rows]
    return TenantsResult(found, page_cursor([tenant.id for tenant in found], call.params.limit))


class SuspendTenant(Mutation, kw_only=True):
    tenant_id: uuid.UUID
    suspended: bool = True


@operation("tenant.suspend", scope=Scope.ADMIN, http="POST /tenants/{tenant_id}/suspend", single=True, audited=True)
async def suspend_tenant(work: Work, call: Call[SuspendTenant]) -> TenantResult:
    """Refuse a tenant's keys, and close its connections within 5 s, until `suspended: false`."""
    await _require_operator(work)
    if call.params.tenant_id == work.tenant_id:
        raise errors.conflict("tenant.own", "a tenant cannot suspend itself")
    status = "suspended" if call.params.suspended else "active"
    row = await work.tx.fetch_row(TENANTS.suspend, call.params.tenant_id, status)
    if row is None:
        raise errors.not_found("tenant", call.params.tenant_id)
    return TenantResult(Tenant(*row))


class LimitTenant(Mutation, kw_only=True):
    """`rate_per_s: null` takes the tenant back to what the server is set to."""

    tenant_id: uuid.UUID
    rate_per_s: RatePerS | None


@operation("tenant.limit", scope=Scope.ADMIN, http="POST /tenants/{tenant_id}/limit", single=True, audited=True)
async def limit_tenant(work: Work, call: Call[LimitTenant]) -> TenantResult:
    """Set how many requests a second all keys of a tenant may make together, within 5 s."""
    await _require_operator(work)
    row = await work.tx.fetch_row(TENANTS.limit, call.params.tenant_id, call.params.rate_per_s)
    if row is None:
        raise errors.not_found("tenant", call.params.tenant_id)
    return TenantResult(Tenant(*row))


class CreateKey(Mutation, kw_only=True):
    """`scopes` default to what the kind usually needs; `agent` binds the key to one agent, which it then acts as;
    `rate_per_s` is how many requests it may make, without it what the server is set to."""

    kind: KeyKind
    scopes: list[Scope] | None = None
    agent: uuid.UUID | None = None
    expires_at: Moment | None = None
    name: KeyName = ""
    rate_per_s: RatePerS | None = None


@operation("key.create", scope=Scope.ADMIN, http="POST /keys", single=True, audited=True, secret=SHOWN_ONCE)
async def create_key(work: Work, call: Call[CreateKey]) -> NewKeyResult:
    """Create an API key. Its secret is in this answer and nowhere else."""
    expires_at = call.params.expires_at
    if expires_at is not None and expires_at <= work.now:
        raise errors.past("expires_at")
    if call.params.agent is not None and not await work.tx.fetch(AGENTS.owners, work.tenant_id, [call.params.agent]):
        raise errors.not_found("agent", call.params.agent)
    return NewKeyResult(*await create_key_for(work, work.tenant_id, call.params))


class ListKeys(Params, kw_only=True):
    limit: PageLimit = 50
    cursor: PageCursor | None = None


class KeysResult(msgspec.Struct):
    keys: list[Key]
    next_cursor: str | None = None


@operation("key.list", scope=Scope.ADMIN, http="GET /keys", single=True)
async def list_keys(work: Work, call: Call[ListKeys]) -> KeysResult:
    """List API keys, newest first, revoked ones too."""
    rows = await work.tx.fetch(KEYS.page, work.tenant_id, decode_page_cursor(call.params.cursor), call.params.limit)
    found = [Key(*row) for row in rows]
    return KeysResult(found, page_cursor([key.id for key in found], call.params.limit))


class KeyById(Mutation, kw_only=True):
    key_id: uuid.UUID


@operation(
    "key.rotate", scope=Scope.ADMIN, http="POST /keys/{key_id}/rotate", single=True, audited=True, secret=SHOWN_ONCE
)
async def rotate_key(work: Work, call: Call[KeyById]) -> NewKeyResult:
    """Make a successor of a key. Both work until `key.confirm`, so that nothing stops meanwhile."""
    row = await work.tx.fetch_row(KEYS.get, work.tenant_id, call.params.key_id)
    if row is None:
        raise errors.not_found("key", call.params.key_id)
    if row["revoked_at"] is not None:
        raise errors.conflict("key.revoked", "a revoked key has no successor; create a new one")
    asked = CreateKey(
        kind=KeyKind(row["kind"]), scopes=[Scope(scope) for scope in row["scopes"]], agent=row["agent_id"],
        expires_at=row["expires_at"], name=row["name"], rate_per_s=row["rate_per_s"],
    )  # fmt: skip
    return NewKeyResult(*await create_key_for(work, work.tenant_id, asked, row["owner_id"], row["id"]))


@operation("key.confirm", scope=Scope.ADMIN, http="POST /keys/{key_id}/confirm", single=True, audited=True)
async def confirm_key(work: Work, call: Call[KeyById]) -> KeyResult:
    """The successor is in use: revoke the key that it replaces. `key_id` names the successor."""
    row = await work.tx.fetch_row(KEYS.get, work.tenant_id, call.params.key_id)
    if row is None:
        raise errors.not_found("key", call.params.key_id)
    if row["replaces_key_id"] is None:
        raise errors.conflict("key.no_rotation", "this key replaces no other; rotate first")
    await work.tx.fetch_row(KEYS.revoke, work.tenant_id, row["replaces_key_id"])
    return KeyResult(Key(*list(row)[:-1]))


@operation("key.revoke", scope=Scope.ADMIN, http="POST /keys/{key_id}/revoke", single=True, audited=True)
async def revoke_key(work: Work, call: Call[KeyById]) -> KeyResult:
    """Refuse a key from now on; its open connections are closed within 5 s."""
    row = await work.tx.fetch_row(KEYS.revoke, work.tenant_id, call.params.key_id)
    if row is None:
        raise errors.not_found("key", call.params.key_id)
    return KeyResult(Key(*row))


class LimitKey(Mutation, kw_only=True):
    """`rate_per_s: null` takes the key back to what the server is set to."""

    key_id: uuid.UUID
    rate_per_s: RatePerS | None


@operation("key.limit", scope=Scope.ADMIN, http="POST /keys/{key_id}/limit", single=True, audited=True)
async def limit_key(work: Work, call: Call[LimitKey]) -> KeyResult:
    """Set how many requests a second a key may make, within 5 s. What its tenant may make holds all the same."""
    row = await work.tx.fetch_row(KEYS.limit, work.tenant_id, call.params.key_id, call.params.rate_per_s)
    if row is None:
        raise errors.not_found("key", call.params.key_id)
    return KeyResult(Key(*row))


class AuditEntry(msgspec.Struct):
    id: uuid.UUID
    at: datetime.datetime
    key_id: uuid.UUID | None
    agent_id: uuid.UUID | None
    address: str | None
    operation: str
    outcome: str
    detail: Raw


class AuditResult(msgspec.Struct):
    entries: list[AuditEntry]
    next_cursor: str | None = None


class ListAudit(Params, kw_only=True):
    limit: PageLimit = 50
    cursor: PageCursor | None = None


@operation("audit.list", scope=Scope.ADMIN, http="GET /audit", single=True)
async def list_audit(work: Work, call: Call[ListAudit]) -> AuditResult:
    """List admin acts and denied acts, newest first."""
    rows = await work.tx.fetch(AUDIT.page, work.tenant_id, decode_page_cursor(call.params.cursor), call.params.limit)
    found = [AuditEntry(**{**row, "detail": Raw(row["detail"])}) for row in rows]
    return AuditResult(found, page_cursor([entry.id for entry in found], call.params.limit))


async def create_key_for(
    work: Work,
    tenant_id: uuid.UUID,
    asked: CreateKey,
    owner_id: uuid.UUID | None = None,
    replaces_key_id: uuid.UUID | None = None,
) -> tuple[Key, str]:
    """A new key and its secret. A successor keeps its predecessor's owner, and so the agents that it registered."""
    key_id, made = new_id(), keys.new_key()
    scopes = sorted(set(asked.scopes) if asked.scopes is not None else DEFAULT_SCOPES[asked.kind])
    row = await work.tx.fetch_row(
        KEYS.insert, tenant_id, key_id, owner_id or key_id, asked.name, made.prefix, made.key_hash, asked.kind.value,
        [scope.value for scope in scopes], asked.agent, asked.expires_at, replaces_key_id, asked.rate_per_s,
    )  # fmt: skip
    assert row is not None
    return Key(*row), made.secret


async def _require_operator(work: Work) -> None:
    row = await work.tx.fetch_row(TENANTS.by_name, OPERATOR_TENANT)
    if row is None or row["id"] != work.tenant_id:
        raise errors.forbidden(f"tenants are looked after by administrators of the tenant {OPERATOR_TENANT!r}")
