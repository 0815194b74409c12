"""The public keys of issuers: every kind of them, and servers of keys that stop, hang, lie and change them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from devmesh.core import envelope
from tests import issuing
from tests.bearers import (
    SETTINGS,
    Tenant,
    create_issuer,
    is_everywhere,
    new_tenant,
    outcome,
    refused,
    rest,
    said,
)
from tests.harness import Mesh, eventually
from tests.issuing import KeyServer, by_key, by_secret, certificate_of, claims, key_server, new_key

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"]


@pytest.fixture
def mesh(issuing_mesh: Mesh) -> Mesh:
    return issuing_mesh


@pytest.fixture
def tenant(mesh: Mesh) -> Tenant:
    return new_tenant(mesh)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_public_keys_of_every_kind_are_taken(mesh: Mesh, tenant: Tenant, algorithm: str) -> None:
    key, issuer = new_key(algorithm), f"https://{uuid.uuid4().hex}.example"
    with key_server(key) as server:
        await create_issuer(mesh, tenant, issuer=issuer, algorithm="JWKS", jwks_url=server.url)
        assert await outcome(mesh, by_key(key, algorithm, claims(iss=issuer))) is None
        assert await outcome(mesh, by_key(key, algorithm, claims(iss=issuer), kid=None)) is None
        stranger = new_key(algorithm)
        forged = by_key(stranger, algorithm, claims(iss=issuer), kid=key.kid)
        assert await refused(mesh, forged) == "signature"
        assert await refused(mesh, by_key(stranger, algorithm, claims(iss=issuer))) == "key"
        published = server.document.decode()
        assert await refused(mesh, by_secret(published, claims(iss=issuer), kid=key.kid)) == "algorithm"


async def test_a_key_that_is_added_is_found_at_once_and_asked_for_no_more_than_it_should(
    mesh: Mesh, tenant: Tenant
) -> None:
    old, new, issuer = new_key("ES256"), new_key("RS256"), f"https://{tenant.name}.example"
    with key_server(old) as server:
        await create_issuer(mesh, tenant, issuer=issuer, algorithm="JWKS", jwks_url=server.url)
        assert await outcome(mesh, by_key(old, "ES256", claims(iss=issuer))) is None
        server.publish(old, new)
        token = by_key(new, "RS256", claims(iss=issuer))
        await eventually(lambda: is_everywhere(mesh, token, None), "the new key is known", 2.0)
        asked, began = server.requests, time.monotonic()
        nobody = by_key(new_key("ES256"), "ES256", claims(iss=issuer))
        reasons = await asyncio.gather(*(refused(mesh, nobody) for _ in range(30)))
        assert set(reasons) == {"key"}
        fetches_max = 2 * (1 + (time.monotonic() - began) / float(SETTINGS["DEVMESH_JWKS_RETRY_S"]))
        assert server.requests - asked <= fetches_max, "two services, and each no more often than that"


@pytest.fixture
def operators_keys(fresh_database: str, tmp_path: Path) -> Iterator[Callable[[KeyServer], Mesh]]:
    """Makes a mesh whose operator publishes keys. Its services are started without waiting."""
    made: list[Mesh] = []

    def start(server: KeyServer, **settings: str) -> Mesh:
        quick = {
            "DEVMESH_JWKS_URL": server.url,
            "DEVMESH_JWKS_REFRESH_INTERVAL_S": "1",
            "DEVMESH_JWKS_TIMEOUT_S": "0.5",
            "DEVMESH_BREAKER_FAILURES_MAX": "2",
            "DEVMESH_BREAKER_OPEN_S": "0.5",
        }
        mesh = Mesh(fresh_database, tmp_path, {**SETTINGS, **quick, **settings})
        made.append(mesh)
        Mesh.running.append(mesh)
        return mesh

    yield start
    for mesh in made:
        mesh.end()


def health(mesh: Mesh, service: str = "rest-api") -> dict[str, Any]:
    answer = httpx.get(f"http://127.0.0.1:{mesh.of(service)[0].port}/health", timeout=5, trust_env=False)
    found: dict[str, Any] = answer.json()
    return found


async def jwks_becomes(mesh: Mesh, status: str, message: str = "") -> dict[str, Any]:
    def is_so() -> bool:
        found = health(mesh)["components"].get("jwks", {"status": "absent", "message": ""})
        return found["status"] == status and message in found["message"]

    await eventually(is_so, f"jwks is {status} {message!r}", 15.0)
    return health(mesh)


@pytest.mark.soak
@pytest.mark.timeout(240)
async def test_an_operator_s_keys_outlive_their_server_for_a_while(operators_keys: Callable[..., Mesh]) -> None:
    first, second = new_key("RS256"), new_key("EdDSA")
    with key_server(first) as server:
        mesh = operators_keys(server)
        mesh.start("rest-api", "mcp-server")
        tenant = new_tenant(mesh)
        known = by_key(first, "RS256", said(tenant))
        unknown = by_key(second, "EdDSA", said(tenant))
        assert await outcome(mesh, known) is None
        assert (await jwks_becomes(mesh, "healthy"))["components"]["jwks"]["message"] == "keys: 1"

        server.stop()
        seen = await jwks_becomes(mesh, "degraded", "s old, because it cannot be reached")
        assert (seen["status"], seen["ready"]) == ("degraded", True)
        assert await outcome(mesh, known) is None
        assert await refused(mesh, unknown) == "keys_unavailable"
        await eventually(lambda: breaker(mesh) == 2, "the breaker opens")

        server.start()
        await jwks_becomes(mesh, "healthy")
        await eventually(lambda: breaker(mesh) == 0, "the breaker closes")
        assert await refused(mesh, unknown) == "key"

        for document, status, headers, said_of_it in (
            (b"rubbish", 200, {}, "it is no JWK set"),
            (b'{"keys": []}', 200, {}, "none of the 0 keys"),
            (issuing.key_set(first), 500, {}, "the status 500"),
            (b"", 302, {"Location": server.url}, "it redirects"),
            (b"x" * (1 << 19), 200, {}, "it is longer than"),
        ):
            server.document, server.status, server.headers = document, status, headers
            await jwks_becomes(mesh, "degraded", said_of_it)
            assert await outcome(mesh, known) is None
        server.publish(first)
        server.status, server.headers = 200, {}
        await jwks_becomes(mesh, "healthy")
        server.answers.clear()
        await jwks_becomes(mesh, "degraded", "no whole answer within 0.5 s")
        began = time.monotonic()
        assert await outcome(mesh, known) is None
        assert time.monotonic() - began < 0.5, "who is known does not wait"
        server.answers.set()

        server.publish(second)  # the first one is withdrawn
        await eventually(
            lambda: is_everywhere(mesh, known, "credential.key"), "the withdrawn key is believed no more", 10.0
        )
        assert await outcome(mesh, unknown) is None


def breaker(mesh: Mesh) -> int:
    text = httpx.get(f"{mesh.rest_url}/metrics", timeout=5, trust_env=False).text
    [line] = [line for line in text.splitlines() if line.startswith('devmesh_breaker_state{dependency="jwks"}')]
    return int(float(line.rpartition(" ")[2]))


async def test_without_any_keys_the_operator_s_service_is_not_ready(operators_keys: Callable[..., Mesh]) -> None:
    key = new_key("ES256")
    with key_server(key) as server:
        server.stop()
        mesh = operators_keys(server)
        for service in ("rest-api", "mcp-server"):
            mesh.add(service).start()
        await eventually(lambda: ready_reasons(mesh).startswith("jwks: the keys at"), "it is said", 20.0)
        server.start()
        mesh.start()
        token = by_key(key, "ES256", said(new_tenant(mesh)))
        assert await outcome(mesh, token) is None


def ready_reasons(mesh: Mesh) -> str:
    try:
        answer = httpx.get(f"http://127.0.0.1:{mesh.of('rest-api')[0].port}/readyz", timeout=5, trust_env=False)
        return "; ".join(answer.json()["reasons"])
    except httpx.HTTPError:
        return ""


async def test_in_production_tenants_keys_are_not_fetched_from_private_addresses(
    operators_keys: Callable[..., Mesh],
) -> None:
    key = new_key("ES256")
    with key_server(key) as server, key_server(key) as inside:
        master = {"DEVMESH_ENVIRONMENT": "production", "ENCRYPTION_MASTER_KEY": envelope.new_master_key()}
        mesh = operators_keys(server, **master)
        mesh.start("rest-api", "mcp-server")
        tenant = new_tenant(mesh)
        assert await outcome(mesh, by_key(key, "ES256", said(tenant))) is None  # the operator may
        for number, host in enumerate(("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433")):
            issuer = f"https://{number}.example"
            url = f"http://{host}:{inside.port}/keys"
            await create_issuer(mesh, tenant, issuer=issuer, algorithm="JWKS", jwks_url=url)
            answer = rest(mesh, "GET", "/tasks", by_key(key, "ES256", claims(iss=issuer))).json()
            assert (answer["kind"], answer["reason"]) == ("unavailable", "credential.keys_unavailable")
            assert "private" in answer["detail"]
        assert inside.requests == 0


async def test_by_https_keys_are_taken_from_whom_the_name_belongs_to_and_nobody_else(
    operators_keys: Callable[..., Mesh], tmp_path: Path
) -> None:
    key = new_key("ES256")
    believed, strange = certificate_of("localhost", tmp_path), certificate_of("elsewhere", tmp_path)
    with (
        key_server(key, certificate=believed) as server,
        key_server(key, certificate=strange) as misnamed,
        key_server(key, certificate=certificate_of("localhost", _below(tmp_path))) as unknown,
    ):
        both = tmp_path / "believed.pem"
        both.write_bytes(believed.read_bytes() + strange.read_bytes())
        mesh = operators_keys(server, SSL_CERT_FILE=str(both), ENCRYPTION_MASTER_KEY=envelope.new_master_key())
        mesh.start("rest-api", "mcp-server")
        tenant = new_tenant(mesh)
        assert await outcome(mesh, by_key(key, "ES256", said(tenant))) is None
        for other in (misnamed, unknown):
            issuer = f"https://{other.port}.example"
            await create_issuer(mesh, tenant, issuer=issuer, algorithm="JWKS", jwks_url=other.url)
            answer = rest(mesh, "GET", "/tasks", by_key(key, "ES256", claims(iss=issuer))).json()
            assert answer["reason"] == "credential.keys_unavailable"
            assert "CERTIFICATE_VERIFY_FAILED" in answer["detail"]
            assert other.requests == 0


def _below(directory: Path) -> Path:
    (directory / "below").mkdir()
    return directory / "below"
