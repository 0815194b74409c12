"""Tenants' own issuers: whose tokens a tenant believes, and that nobody else is touched by it."""

from __future__ import annotations

import secrets
import time
import uuid
from typing import Any

import pytest

from tests.bearers import (
    CLOSED_LIMIT_S,
    ISSUER,
    OTHER_ISSUER,
    SECRET,
    Tenant,
    create_issuer,
    is_everywhere,
    new_tenant,
    outcome,
    refused,
    rest,
    said,
)
from tests.conftest import run_sql
from tests.harness import Mesh, eventually
from tests.issuing import by_key, by_secret, claims, key_server, new_key
from tests.wire import Wire, WireError


@pytest.fixture
def mesh(issuing_mesh: Mesh) -> Mesh:
    return issuing_mesh


@pytest.fixture
def tenant(mesh: Mesh) -> Tenant:
    return new_tenant(mesh)


async def test_a_tenant_s_issuer_signs_for_that_tenant_only(mesh: Mesh, tenant: Tenant) -> None:
    secret, issuer = secrets.token_urlsafe(40), f"https://{tenant.name}.example"
    made = await create_issuer(mesh, tenant, issuer=issuer, secret=secret, audience="us")
    assert {name for name, value in made.items() if value is None} == {"jwks_url"}
    good = {"iss": issuer, "aud": "us"}
    for named in ({}, {"tenant": tenant.id}, {"tenant": tenant.name}):
        token = by_secret(secret, claims(**good, **named))
        async with await Wire.connect(mesh.ws_url, token) as wire:
            assert wire.initialized["tenant_id"] == tenant.id
    other = new_tenant(mesh)
    assert await refused(mesh, by_secret(secret, claims(**good, tenant=other.name))) == "tenant"
    assert await refused(mesh, by_secret(secret, claims(iss=issuer))) == "audience"
    assert await refused(mesh, by_secret(SECRET, claims(**good))) == "signature"
    assert await refused(mesh, by_secret(secret, said(tenant))) == "signature"


async def test_an_issuer_s_secret_is_never_shown_again(mesh: Mesh, tenant: Tenant) -> None:
    secret = secrets.token_urlsafe(40)
    key = uuid.uuid4().hex
    asked = {"name": "ours", "issuer": OTHER_ISSUER, "algorithm": "HS256", "secret": secret, "idempotency_key": key}
    async with await Wire.connect(mesh.ws_url, tenant.key) as admin:
        await admin.call("subscribe", topics=["tenant"])
        first = await admin.call("issuer.create", **asked)
        assert await admin.call("issuer.create", **asked) == first
        listed = await admin.call("issuer.list")
        assert listed["issuers"] == [first["issuer"]]
        audit = (await admin.call("audit.list"))["entries"]
        assert "issuer.create" in {entry["operation"] for entry in audit}
        with pytest.raises(WireError) as taken:
            await admin.call("issuer.create", **{**asked, "idempotency_key": "another"})
        assert (taken.value.kind, taken.value.reason) == ("conflict", "issuer.name")
        shown = repr([admin.frames, listed, audit])
    stored = run_sql(mesh.dsn, "select encode(secret, 'escape') from mcp.token_issuers where name = 'ours'")
    answers = run_sql(mesh.dsn, "select answer from mcp.idempotency_keys")
    logs = "".join(child.log.read_text() for child in mesh.children)
    assert stored
    assert [secret in place for place in (shown, stored, answers, logs)] == [False] * 4


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({}, "secret"),
        ({"secret": "short"}, "secret"),
        ({"secret": "x" * 1025}, "secret"),
        ({"secret": "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA"}, "secret"),
        ({"secret": "x" * 40, "jwks_url": "https://x.example"}, "jwks_url"),
        ({"algorithm": "JWKS"}, "jwks_url"),
        ({"algorithm": "JWKS", "secret": "x" * 40, "jwks_url": "https://x.example"}, "secret"),
        ({"algorithm": "JWKS", "jwks_url": "file:///etc/passwd"}, "jwks_url"),
        ({"algorithm": "JWKS", "jwks_url": "https://user:word@x.example"}, "jwks_url"),
        ({"algorithm": "JWKS", "jwks_url": "https://x.example:99999"}, "jwks_url"),
        ({"algorithm": "JWKS", "jwks_url": "https:///keys"}, "jwks_url"),
        ({"algorithm": "none", "secret": "x" * 40}, "algorithm"),
        ({"algorithm": "HS512", "secret": "x" * 70}, "algorithm"),
        ({"issuer": "", "secret": "x" * 40}, "issuer"),
        ({"issuer": "with space", "secret": "x" * 40}, "issuer"),
    ],
)
def test_an_issuer_that_cannot_sign_is_refused(mesh: Mesh, tenant: Tenant, asked: dict[str, Any], field: str) -> None:
    params = {"name": "wrong", "issuer": OTHER_ISSUER, "algorithm": "HS256", **asked}
    problem = rest(mesh, "POST", "/issuers", tenant.key, json=params).json()
    assert (problem["kind"], problem["field"]) == ("invalid_params", field)
    assert "BEGIN" not in str(problem)


async def test_a_deleted_issuer_s_tokens_end_in_five_seconds(mesh: Mesh, tenant: Tenant) -> None:
    secret, issuer = secrets.token_urlsafe(40), f"https://{tenant.name}.example"
    made = await create_issuer(mesh, tenant, issuer=issuer, secret=secret)
    token = by_secret(secret, claims(iss=issuer))
    wire = await Wire.connect(mesh.ws_url, token)
    began = time.monotonic()
    assert rest(mesh, "DELETE", f"/issuers/{made['id']}", tenant.key).json()["issuer"] == made
    assert await wire.closed(CLOSED_LIMIT_S) == 4001
    await eventually(lambda: is_everywhere(mesh, token, "credential.issuer"), "its tokens are refused", CLOSED_LIMIT_S)
    assert time.monotonic() - began < CLOSED_LIMIT_S
    assert rest(mesh, "DELETE", f"/issuers/{made['id']}", tenant.key).status_code == 404


@pytest.mark.soak
async def test_a_secret_is_replaced_without_a_gap(mesh: Mesh, tenant: Tenant) -> None:
    issuer = f"https://{tenant.name}.example"
    old, new = secrets.token_urlsafe(40), secrets.token_urlsafe(40)
    replaced = await create_issuer(mesh, tenant, issuer=issuer, secret=old)
    tokens = [by_secret(secret, claims(iss=issuer)) for secret in (old, new)]
    async with await Wire.connect(mesh.ws_url, tokens[0]) as wire:
        agent = (await wire.call("agent.register", name="hers"))["agent"]["id"]
        await create_issuer(mesh, tenant, issuer=issuer, secret=new)
        await eventually(lambda: is_everywhere(mesh, tokens[1], None), "the new secret is believed", CLOSED_LIMIT_S)
        assert await outcome(mesh, tokens[0]) is None
        await wire.call("session.refresh", token=tokens[1])
        rest(mesh, "DELETE", f"/issuers/{replaced['id']}", tenant.key)
        was = "credential.signature"
        await eventually(lambda: is_everywhere(mesh, tokens[0], was), "the old one is not any more", CLOSED_LIMIT_S)
        assert (await wire.call("agent.heartbeat"))["agent"]["id"] == agent


async def test_a_tenant_has_a_bounded_number_of_issuers(mesh: Mesh, tenant: Tenant) -> None:
    for _ in range(20):
        await create_issuer(mesh, tenant, secret=secrets.token_urlsafe(40))
    asked = {"name": "one more", "issuer": OTHER_ISSUER, "algorithm": "HS256", "secret": "x" * 40}
    assert rest(mesh, "POST", "/issuers", tenant.key, json=asked).json()["kind"] == "quota_exceeded"
    listed = rest(mesh, "GET", "/issuers?limit=15", tenant.key).json()
    rest_of = rest(mesh, "GET", f"/issuers?limit=15&cursor={listed['next_cursor']}", tenant.key).json()
    assert len({issuer["id"] for issuer in listed["issuers"] + rest_of["issuers"]}) == 20


async def test_tenants_that_share_an_issuer_are_told_apart_by_the_claim_tenant(mesh: Mesh, tenant: Tenant) -> None:
    key, other, issuer = new_key("ES256"), new_tenant(mesh), f"https://{tenant.name}.example"
    with key_server(key) as server:
        for each in (tenant, other):
            await create_issuer(mesh, each, issuer=issuer, algorithm="JWKS", jwks_url=server.url)
        assert await refused(mesh, by_key(key, "ES256", claims(iss=issuer))) == "ambiguous"
        for each in (tenant, other):
            token = by_key(key, "ES256", claims(iss=issuer, tenant=each.name))
            async with await Wire.connect(mesh.ws_url, token) as wire:
                assert wire.initialized["tenant_id"] == each.id
        assert await refused(mesh, by_key(key, "ES256", claims(iss=issuer, tenant="third"))) == "tenant"


async def test_another_tenant_can_neither_forge_nor_disturb_by_the_same_name(mesh: Mesh, tenant: Tenant) -> None:
    issuer, mallory = f"https://{tenant.name}.example", new_tenant(mesh)
    secret, other_secret = secrets.token_urlsafe(40), secrets.token_urlsafe(40)
    await create_issuer(mesh, tenant, issuer=issuer, secret=secret)
    await create_issuer(mesh, mallory, issuer=issuer, secret=other_secret)
    await create_issuer(mesh, mallory, issuer=ISSUER, secret=other_secret)
    async with await Wire.connect(mesh.ws_url, by_secret(secret, claims(iss=issuer))) as wire:
        assert wire.initialized["tenant_id"] == tenant.id
    assert await refused(mesh, by_secret(other_secret, claims(iss=issuer, tenant=tenant.name))) == "tenant"
    assert await refused(mesh, by_secret(other_secret, said(tenant))) == "tenant"
    assert await outcome(mesh, by_secret(SECRET, said(tenant))) is None
