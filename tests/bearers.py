"""Bearers of tokens, on both wires: what becomes of them there, and the tenants and issuers that they come from."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, NamedTuple

import httpx

from tests.conftest import QUICK
from tests.harness import Mesh
from tests.issuing import claims
from tests.wire import Wire

SECRET, ISSUER, AUDIENCE = "the operator's secret, of forty-two bytes..", "https://operator.example", "devmesh"
SETTINGS = {
    **QUICK,
    "DEVMESH_JWT_SECRET": SECRET,
    "DEVMESH_JWT_ISSUER": ISSUER,
    "DEVMESH_JWT_AUDIENCE": AUDIENCE,
    "DEVMESH_JWKS_RETRY_S": "0.2",
    "DEVMESH_KEY_CHECK_INTERVAL_S": "0.5",
}
OTHER_ISSUER = "https://tenant.example"
CLOSED_LIMIT_S = 5.0


class Tenant(NamedTuple):
    id: str
    name: str
    key: str


def rest(mesh: Mesh, method: str, path: str, token: str, **request: Any) -> httpx.Response:
    headers = [(b"Authorization", f"Bearer {token}".encode("latin-1"))]
    return httpx.request(
        method, f"{mesh.rest_url}/api/v1{path}", headers=headers, timeout=20, trust_env=False, **request
    )


def new_tenant(mesh: Mesh) -> Tenant:
    made = rest(mesh, "POST", "/tenants", mesh.admin_key, json={"name": f"t{uuid.uuid4().hex}"}).json()
    return Tenant(made["tenant"]["id"], made["tenant"]["name"], made["secret"])


def said(of: Tenant, /, **changes: Any) -> dict[str, Any]:
    """What a good token of the operator's says."""
    return claims(**{"iss": ISSUER, "aud": AUDIENCE, "tenant": of.name, **changes})


async def outcomes(mesh: Mesh, token: str) -> tuple[str | None, str | None]:
    """What becomes of a token on each wire: None when it is taken, otherwise the reason of its refusal."""
    answer = await asyncio.to_thread(rest, mesh, "GET", "/tasks", token)
    over_rest = answer.json()["reason"] if answer.is_error else None
    wire = await Wire.bare(mesh.ws_url, None)
    try:
        result = await wire.ask("initialize", {"token": token})
        over_websocket = result["error"]["data"]["reason"] if "error" in result else None
        if over_websocket is not None:
            assert await wire.closed() == 4001
    finally:
        await wire.close()
    return over_rest, over_websocket


async def outcome(mesh: Mesh, token: str) -> str | None:
    """What becomes of a token on both wires alike."""
    over_rest, over_websocket = await outcomes(mesh, token)
    assert over_rest == over_websocket
    return over_rest


async def refused(mesh: Mesh, token: str) -> str:
    reason = await outcome(mesh, token)
    assert reason is not None, "the token is taken"
    return reason.removeprefix("credential.")


async def is_everywhere(mesh: Mesh, token: str, reason: str | None) -> bool:
    """Whether both wires have come to the same: what they know of issuers may differ for a few seconds."""
    return await outcomes(mesh, token) == (reason, reason)


async def create_issuer(mesh: Mesh, tenant: Tenant, **asked: Any) -> dict[str, Any]:
    params = {"name": f"i{uuid.uuid4().hex}", "issuer": OTHER_ISSUER, "algorithm": "HS256", **asked}
    answer = await asyncio.to_thread(rest, mesh, "POST", "/issuers", tenant.key, json=params)
    assert answer.status_code == 201, answer.text
    issuer: dict[str, Any] = answer.json()["issuer"]
    return issuer
