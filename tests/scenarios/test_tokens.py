"""Tokens: what they may say, whom they make of their bearer, and when they end. On both wires."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from devmesh.environment import SettingsError
from devmesh.settings import Settings
from tests.bearers import (
    AUDIENCE,
    CLOSED_LIMIT_S,
    ISSUER,
    SECRET,
    SETTINGS,
    Tenant,
    new_tenant,
    outcome,
    refused,
    rest,
    said,
)
from tests.harness import Mesh
from tests.issuing import by_secret, claims, signed_bytes
from tests.wire import MSGPACK, Wire, WireError


@pytest.fixture
def mesh(issuing_mesh: Mesh) -> Mesh:
    return issuing_mesh


@pytest.fixture
def tenant(mesh: Mesh) -> Tenant:
    return new_tenant(mesh)


# The operator's tokens


async def test_a_token_acts_in_the_tenant_that_it_names(mesh: Mesh, tenant: Tenant) -> None:
    for named in (tenant.id, tenant.name):
        token = by_secret(SECRET, said(tenant, tenant=named))
        async with await Wire.connect(mesh.ws_url, token, subprotocol=MSGPACK) as wire:
            assert wire.initialized["tenant_id"] == tenant.id
            task = (await wire.call("task.create", title=named, assign="pull"))["task"]
        found = rest(mesh, "GET", f"/tasks/{task['id']}", token)
        assert found.json()["task"]["title"] == named


NOW = time.time()  # when this file was loaded: the tests of it may come minutes later


def from_now(changes: dict[str, Any]) -> dict[str, Any]:
    """The same times, as far from now as they were from then."""
    passed_s = int(time.time() - NOW)
    return {
        name: value + passed_s
        if name in ("exp", "nbf", "iat") and isinstance(value, int | float) and value > NOW / 2
        else value
        for name, value in changes.items()
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": None}, "no_expiry"),
        ({"exp": 1}, "expired"),
        ({"exp": int(NOW) - 1}, "expired"),
        ({"exp": NOW + 100_000}, "lifetime"),
        ({"iat": None, "exp": NOW + 100_000}, "lifetime"),
        ({"iat": int(NOW) - 86_400}, "lifetime"),
        ({"nbf": NOW + 300}, "not_yet_valid"),
        ({"iat": NOW + 300, "exp": NOW + 400}, "not_yet_valid"),
        ({"aud": None}, "audience"),
        ({"aud": "another"}, "audience"),
        ({"aud": ["another", "others"]}, "audience"),
        ({"iss": None}, "issuer"),
        ({"iss": "https://nobody.example"}, "issuer"),
        ({"sub": None}, "subject"),
        ({"tenant": None}, "tenant"),
        ({"tenant": "nowhere"}, "tenant"),
        ({"tenant": str(uuid.uuid4())}, "tenant"),
        ({"agent": "nobody"}, "agent"),
        ({"agent": str(uuid.uuid4())}, "agent"),
        ({"sub": ""}, "malformed"),
        ({"sub": "a\0b"}, "malformed"),
        ({"tenant": "a\0b"}, "malformed"),
        ({"agent": "\u202e"}, "malformed"),
        ({"sub": "x" * 1001}, "malformed"),
        ({"sub": 7}, "malformed"),
        ({"exp": "tomorrow"}, "malformed"),
        ({"exp": True}, "malformed"),
        ({"scope": {"read": True}}, "malformed"),
    ],
)
async def test_each_claim_that_is_wrong_has_its_own_reason(
    mesh: Mesh, tenant: Tenant, changes: dict[str, Any], reason: str
) -> None:
    assert await refused(mesh, by_secret(SECRET, said(tenant, **from_now(changes)))) == reason


@pytest.mark.parametrize(
    "changes",
    [
        {"nbf": int(NOW) + 20},
        {"iat": int(NOW) + 20},
        {"iat": None},
        {"aud": ["another", AUDIENCE]},
        {"exp": NOW + 3600.5},
        {"scope": ["read"]},
        {"unheard_of": {"by": ["us"]}},
    ],
)
async def test_what_a_token_may_say_as_well(mesh: Mesh, tenant: Tenant, changes: dict[str, Any]) -> None:
    assert await outcome(mesh, by_secret(SECRET, said(tenant, **from_now(changes)))) is None


async def test_a_token_that_its_issuer_has_not_signed_so_is_refused(mesh: Mesh, tenant: Tenant) -> None:
    good = said(tenant)
    token = by_secret(SECRET, good)
    head, payload, signature = token.split(".")
    forged = by_secret(SECRET, said(tenant, scope="admin")).split(".")[1]
    assert await outcome(mesh, token) is None
    assert await refused(mesh, f"{head}.{forged}.{signature}") == "signature"
    assert await refused(mesh, f"{head}.{payload}.") == "signature"
    assert await refused(mesh, by_secret("x" * 40, good)) == "signature"
    for algorithm in ("none", "None", "HS384", "HS512", "RS256", "dir"):
        assert await refused(mesh, by_secret(SECRET, good, alg=algorithm)) == "algorithm"
    unsigned = by_secret(SECRET, good, alg="none").rpartition(".")[0] + "."
    assert await refused(mesh, unsigned) == "algorithm"


@pytest.mark.parametrize(
    "token",
    [
        "a.b.c",
        "..",
        "eyJhbGciOiJIUzI1NiJ9..",
        "\u00e9.\u00e9.\u00e9",
        signed_bytes(SECRET, b"nonsense"),
        signed_bytes(SECRET, b"[]"),
        signed_bytes(SECRET, b"null"),
        signed_bytes(SECRET, b'{"sub": "\xff"}'),
        signed_bytes(SECRET, b'{"sub": "\\ud800"}'),
        signed_bytes(SECRET, b'{"exp": 1e999}'),
        signed_bytes(SECRET, b"[" * 5000),
        by_secret(SECRET, claims(), crit=["b64"], b64=False),
        by_secret(SECRET, claims(), crit=["x"], x=1),
        by_secret(SECRET, claims(), alg=7),
        by_secret(SECRET, claims(), kid=["x"]),
    ],
)
async def test_what_is_no_token_is_malformed(mesh: Mesh, token: str) -> None:
    assert await refused(mesh, token) == "malformed"


async def test_scopes_are_those_that_the_token_names_and_we_know(mesh: Mesh, tenant: Tenant) -> None:
    some: list[Any] = ["read", "openid read email", ["read", "everything"]]
    none: list[Any] = ["", "openid", [], None]
    for scope in some:
        token = by_secret(SECRET, said(tenant, scope=scope))
        assert rest(mesh, "GET", "/tasks", token).status_code == 200
        assert rest(mesh, "POST", "/tasks", token, json={"title": "no"}).json()["kind"] == "forbidden"
    for scope in none:
        token = by_secret(SECRET, said(tenant, scope=scope))
        assert rest(mesh, "GET", "/tasks", token).json()["kind"] == "forbidden"
    admin = by_secret(SECRET, said(tenant, scope="admin"))
    assert rest(mesh, "GET", "/keys", admin).status_code == 200


async def test_a_token_may_be_bound_to_an_agent(mesh: Mesh, tenant: Tenant) -> None:
    async with await Wire.connect(mesh.ws_url, tenant.key) as admin:
        bound, other = [(await admin.call("agent.register", name=name))["agent"]["id"] for name in ("one", "two")]
        for named in (bound, "one"):
            async with await Wire.connect(mesh.ws_url, by_secret(SECRET, said(tenant, agent=named))) as wire:
                assert wire.initialized["agent_id"] == bound
                with pytest.raises(WireError) as denied:
                    await wire.call("agent.heartbeat", agent_id=other)
                assert denied.value.kind == "forbidden"


async def test_agents_stay_with_the_subject_that_registered_them(mesh: Mesh, tenant: Tenant) -> None:
    async with await Wire.connect(mesh.ws_url, by_secret(SECRET, said(tenant))) as wire:
        agent = (await wire.call("agent.register", name="hers"))["agent"]["id"]
    later = by_secret(SECRET, said(tenant, exp=int(time.time()) + 99))
    async with await Wire.connect(mesh.ws_url, later, agent="hers") as wire:
        assert wire.initialized["agent_id"] == agent
    bob = await Wire.bare(mesh.ws_url, by_secret(SECRET, said(tenant, sub="bob")))
    assert (await bob.ask("initialize", {"agent": "hers"}))["error"]["data"]["kind"] == "forbidden"
    await bob.close()


async def test_the_audit_log_says_who_came_with_a_token(mesh: Mesh, tenant: Tenant) -> None:
    token = by_secret(SECRET, said(tenant, sub="carol", scope="admin"))
    assert rest(mesh, "POST", "/keys", token, json={"kind": "user"}).status_code == 201
    entries = rest(mesh, "GET", "/audit", tenant.key).json()["entries"]
    assert entries[0]["operation"] == "key.create"
    assert entries[0]["detail"] == {"issuer": ISSUER, "subject": "carol"}


# The end of a token


async def test_an_expired_token_closes_what_stands_on_it_and_a_fresh_one_prevents_it(
    mesh: Mesh, tenant: Tenant
) -> None:
    ends_at = time.time() + 2.0
    brief = by_secret(SECRET, said(tenant, exp=ends_at))
    async with (
        await Wire.connect(mesh.ws_url, brief) as doomed,
        await Wire.connect(mesh.ws_url, brief) as refreshed,
        httpx.AsyncClient(trust_env=False, timeout=10) as http,
    ):
        await refreshed.call("agent.register", name="stays")
        headers = {"Authorization": f"Bearer {brief}"}
        async with http.stream("GET", f"{mesh.rest_url}/api/v1/events", headers=headers) as stream:
            for other in (said(tenant, sub="mallory"), said(new_tenant(mesh))):
                with pytest.raises(WireError) as denied:
                    await refreshed.call("session.refresh", token=by_secret(SECRET, other))
                assert denied.value.kind == "forbidden"
            fresh = by_secret(SECRET, said(tenant))
            assert (await refreshed.call("session.refresh", token=fresh))["tenant_id"] == tenant.id
            assert await doomed.closed(CLOSED_LIMIT_S) == 4001
            assert 0 <= time.time() - ends_at < 1.0
            parts = [line async for line in stream.aiter_lines()]
        assert "event: error" in parts
        assert 0 <= time.time() - ends_at < 1.5
        assert (await refreshed.call("agent.heartbeat"))["agent"]["name"] == "stays"


async def test_a_token_is_not_taken_for_a_key_that_is_gone(mesh: Mesh, tenant: Tenant) -> None:
    async with (
        await Wire.connect(mesh.ws_url, by_secret(SECRET, said(tenant))) as wire,
        await Wire.connect(mesh.ws_url, tenant.key) as admin,
    ):
        doomed = await admin.call("key.create", kind="user")
        key_wire = await Wire.connect(mesh.ws_url, doomed["secret"])
        await admin.call("key.revoke", key_id=doomed["key"]["id"])
        assert await key_wire.closed(CLOSED_LIMIT_S) == 4001  # so the watch has looked
        assert (await wire.call("ping"))["pong"] is True


async def test_the_tokens_of_a_suspended_tenant_are_refused(mesh: Mesh, tenant: Tenant) -> None:
    token = by_secret(SECRET, said(tenant))
    wire = await Wire.connect(mesh.ws_url, token)
    rest(mesh, "POST", f"/tenants/{tenant.id}/suspend", mesh.admin_key, json={})
    assert await wire.closed(CLOSED_LIMIT_S) == 4001
    assert await refused(mesh, token) == "suspended"
    rest(mesh, "POST", f"/tenants/{tenant.id}/suspend", mesh.admin_key, json={"suspended": False})
    assert await outcome(mesh, token) is None


async def test_refused_tokens_lock_an_address_out(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api", "mcp-server", **{**SETTINGS, "DEVMESH_AUTH_FAILURES_PER_MINUTE_MAX": "6"})
    tenant = new_tenant(mesh)
    good = by_secret(SECRET, said(tenant))
    assert await outcome(mesh, good) is None
    for wrong in (said(tenant, exp=1), said(tenant, iss="https://nobody.example"), said(tenant, aud="another")):
        await refused(mesh, by_secret(SECRET, wrong))
    assert await refused(mesh, good) == "locked_out"
    assert await refused(mesh, "a.b.c") == "locked_out"
    assert rest(mesh, "GET", "/tasks", tenant.key).status_code == 429


# Settings


def test_a_secret_that_is_too_short_or_keys_without_https_stop_the_start() -> None:
    with pytest.raises(SettingsError, match=r"DEVMESH_JWT_SECRET is '\*+'.*32 to 1,024"):
        Settings.load({"DEVMESH_JWT_SECRET": "short"})
    production = {"DEVMESH_ENVIRONMENT": "production"}
    for url in ("http://keys.example/jwks", "http://localhost.example/jwks"):
        with pytest.raises(SettingsError, match=r"DEVMESH_JWKS_URL.*https"):
            Settings.load({"DEVMESH_JWKS_URL": url, **production})
    for url in ("https://keys.example/jwks", "http://127.0.0.1:9/jwks", "http://localhost/jwks"):
        assert Settings.load({"DEVMESH_JWKS_URL": url, **production}).jwks_url == url
