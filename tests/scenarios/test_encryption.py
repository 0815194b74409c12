"""Keys never silently become no encryption: what a service does without one, with a wrong one, and while they are replaced."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from devmesh.core import envelope
from devmesh.core.envelope import MasterKey
from devmesh.store.database import Database
from devmesh.store.vault import Vault, report, verify
from tests.conftest import PSQL, run_sql
from tests.harness import Child, Mesh, eventually
from tests.sealed import new_tenant, opened, put, read

SERVICES = ("rest-api", "mcp-server", "worker")
PG_DUMP = PSQL.with_name("pg_dump")
ISSUER, SECRET = "https://issuer.example", "correct-horse-battery-staple-0123456789"
QUICK = {"DEVMESH_REENCRYPTION_INTERVAL_S": "0.1", "DEVMESH_DATA_KEY_KEPT_S": "1"}


class Keys:
    """Master keys as they are set, and the vault of somebody who has them all."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.vault = Vault([MasterKey.parse(text) for text in texts])

    @property
    def ids(self) -> list[str]:
        return [key.id for key in self.vault.master_keys]

    @property
    def settings(self) -> dict[str, str]:
        """The first is the current one, the others are still read."""
        names = ("ENCRYPTION_MASTER_KEY", "DEVMESH_ENCRYPTION_KEY", "ENCRYPTION_KEY")
        return QUICK | dict(zip(names, self.texts, strict=False))


def health_of(child: Child) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(
        f"http://127.0.0.1:{child.port}/health", params={"details": "true"}, trust_env=False, timeout=5.0
    ).json()
    return answer


def encryption_of(child: Child) -> dict[str, Any]:
    try:
        found: dict[str, Any] = health_of(child)["components"].get("encryption", {"status": "unknown", "message": ""})
    except httpx.HTTPError:
        return {"status": "unreachable", "message": ""}
    return found


def reasons_of_encryption(child: Child) -> list[str]:
    """Why it is not ready, as far as its keys are the reason."""
    with contextlib.suppress(httpx.HTTPError):
        reasons = httpx.get(f"http://127.0.0.1:{child.port}/readyz", trust_env=False).json()["reasons"]
        return [reason for reason in reasons if reason.startswith("encryption: ")]
    return []


def is_unhealthy(child: Child) -> bool:
    return bool(encryption_of(child)["status"] == "unhealthy")


def believe_issuer(mesh: Mesh) -> None:
    """Stores a secret through the wire: tokens that it has signed are believed from then on."""
    asked = {"name": "rotated", "issuer": ISSUER, "algorithm": "HS256", "secret": SECRET}
    answer = httpx.post(
        f"{mesh.rest_url}/api/v1/issuers", json=asked, headers={"X-API-Key": mesh.admin_key}, trust_env=False
    )
    assert answer.status_code == 201, answer.text


def require_believed(mesh: Mesh) -> None:
    """A service reads the secret from the database to believe this."""
    claims = {"iss": ISSUER, "sub": "somebody", "exp": int(time.time()) + 60, "scope": "read"}
    token = jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET))
    answer = httpx.get(
        f"{mesh.rest_url}/api/v1/tasks", headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=10.0
    )
    assert answer.status_code == 200, answer.text


def without_issuer(found: dict[Any, Any]) -> dict[Any, Any]:
    return {row: secret for row, secret in found.items() if secret != SECRET.encode()}


@pytest.mark.parametrize("service", SERVICES)
def test_in_production_no_service_starts_without_a_key(empty_database: str, tmp_path: Path, service: str) -> None:
    child = Mesh(empty_database, tmp_path, {"DEVMESH_ENVIRONMENT": "production"}).add(service)
    child.start()
    assert child.wait() == 1
    [line] = [line for line in child.tail().splitlines() if line.startswith("devmesh ")]
    assert "no master key is set" in line
    assert "devmesh keys generate" in line
    assert "ENCRYPTION_MASTER_KEY" in line
    assert run_sql(empty_database, "select to_regnamespace('mcp') is null") == "t"  # it did not even migrate


@pytest.mark.parametrize("environment", ["production", "development"])
@pytest.mark.parametrize("name", ["ENCRYPTION_MASTER_KEY", "DEVMESH_ENCRYPTION_KEY", "ENCRYPTION_KEY"])
def test_no_service_starts_with_a_malformed_key_and_its_setting_is_named(
    fresh_database: str, tmp_path: Path, name: str, environment: str
) -> None:
    malformed = base64.b64encode(bytes([7] * 32)).decode() if environment == "production" else "s3cret-but-no-key"
    child = Mesh(fresh_database, tmp_path, {"DEVMESH_ENVIRONMENT": environment, name: malformed}).add("rest-api")
    child.start()
    assert child.wait() == 2
    assert f"{name} is '********'" in child.tail()
    assert "32 random bytes in base64" in child.tail()
    assert malformed not in child.tail()
    assert "Traceback" not in child.tail()


async def test_in_development_all_but_storing_a_secret_works_without_a_key(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api")
    [rest] = mesh.children
    assert rest.is_ready()
    found = encryption_of(rest)
    assert (found["status"], "no secret can be stored" in found["message"]) == ("healthy", True)
    assert mesh.new_tenant().startswith("dm_")


async def test_a_service_with_the_wrong_key_is_not_ready_and_names_the_keys(
    fresh_database: str, tmp_path: Path
) -> None:
    right, wrong = Keys(envelope.new_master_key()), Keys(envelope.new_master_key())
    async with opened(fresh_database) as database:
        stored = await put(database, right.vault, await new_tenant(database), [b"s3cret"])
        mesh = Mesh(fresh_database, tmp_path, wrong.settings)
        children = [mesh.add(service) for service in SERVICES]
        for child in children:
            child.start()
        try:
            for child in children:
                await eventually(functools.partial(reasons_of_encryption, child), "it is not ready", 30)
                assert not child.is_ready()
                [reason] = reasons_of_encryption(child)
                assert is_unhealthy(child)
                assert right.ids[0] in reason
                assert wrong.ids[0] in reason
                assert "ENCRYPTION_KEY" in reason
        finally:
            mesh.end()
        for child in children:
            assert wrong.texts[0] not in child.log.read_text()
        assert await read(database, right.vault) == stored  # nothing was touched


@pytest.mark.soak
async def test_a_rotation_while_everybody_reads_and_writes(own_mesh: Callable[..., Mesh], fresh_database: str) -> None:
    """The new master key comes beside the old one, everything is encrypted anew, the old one is removed: all of it opens."""
    old, new = Keys(envelope.new_master_key()), Keys(envelope.new_master_key())
    both, swapped = Keys(old.texts[0], new.texts[0]), Keys(new.texts[0], old.texts[0])
    mesh = own_mesh("rest-api", "worker", **both.settings)
    believe_issuer(mesh)
    require_believed(mesh)
    async with opened(fresh_database) as database:
        tenant_id = await new_tenant(database)
        stored = await put(database, old.vault, tenant_id, [b"secret %d" % number for number in range(300)])
        done, added = asyncio.Event(), dict[Any, bytes]()

        async def write(vault: Vault) -> None:
            while not done.is_set():
                added.update(await put(database, vault, tenant_id, [b"added"]))

        async def read_all() -> int:
            reads = 0
            while not done.is_set():
                found = await read(database, Vault(both.vault.master_keys))  # as by a service that has just started
                assert {row: found[row] for row in stored} == stored
                reads += 1
            return reads

        async with asyncio.TaskGroup() as load:
            load.create_task(write(both.vault))
            reader = load.create_task(read_all())
            mesh.end()
            mesh = own_mesh("rest-api", "worker", **swapped.settings)
            worker = mesh.of("worker")[0]
            await eventually(lambda: is_wrapped_by(database, swapped), "data keys are wrapped anew", 20)
            require_believed(mesh)
            await swapped.vault.rotate(database)
            await eventually(lambda: encryption_of(worker)["status"] == "healthy", "it is through", 20)
            done.set()
        assert reader.result() > 0
        assert added

        require_believed(mesh)
        found = await report(database, swapped.vault.master_keys)
        assert (found.values_to_reseal, found.removable_master_keys) == (0, old.ids)
        details = health_of(worker)["details"]["encryption"]
        assert details["values_to_reseal"] == 0
        assert details["values_resealed"] >= 300
        metrics = httpx.get(f"http://127.0.0.1:{worker.port}/metrics", trust_env=False).text
        assert float(re.findall(r"^devmesh_secrets_reencrypted_total (\S+)", metrics, re.M)[0]) >= 300
        assert "devmesh_secrets_to_reencrypt 0.0" in metrics
        assert "all secrets are sealed under the current data key" in worker.log.read_text()

        mesh.end()
        require_believed(own_mesh("rest-api", "worker", **new.settings))
        assert await verify(database, new.vault) == (1 + len(stored | added), [])
        assert without_issuer(await read(database, new.vault)) == stored | added
        await eventually(lambda: has_one_data_key(database, new), "the old data key is deleted", 10)
        assert without_issuer(await read(database, Vault(new.vault.master_keys))) == stored | added


async def test_a_worker_killed_half_way_through_loses_nothing(
    own_mesh: Callable[..., Mesh], fresh_database: str
) -> None:
    keys = Keys(envelope.new_master_key())
    mesh = own_mesh("rest-api", **keys.settings)
    async with opened(fresh_database) as database:
        secrets = [b"secret %d" % number for number in range(5_000)]
        stored = await put(database, keys.vault, await new_tenant(database), secrets)
        await keys.vault.rotate(database)
        left = [len(stored)]
        for _ in range(2):
            worker = mesh.add("worker")
            worker.start()
            await eventually(functools.partial(has_less_left, database, keys, left[-1]), "it is at work", 30)
            worker.kill()
            left.append((await report(database, keys.vault.master_keys)).values_to_reseal)
            assert await read(database, Vault(keys.vault.master_keys)) == stored
        assert left == sorted(left, reverse=True)
        assert left[1]  # it was half-way
        for _ in range(2):  # which do not harm one another
            mesh.add("worker").start()
        await eventually(functools.partial(has_less_left, database, keys, 1), "it is through", 30)
        assert await verify(database, keys.vault) == (len(stored), [])


async def test_a_stolen_dump_holds_no_secret_and_no_log_does(
    own_mesh: Callable[..., Mesh], fresh_database: str
) -> None:
    keys = Keys(envelope.new_master_key())
    mesh = own_mesh(*SERVICES, **keys.settings, DEVMESH_LOG_LEVEL="debug")
    asked = {"name": "stolen", "issuer": ISSUER, "algorithm": "HS256", "secret": SECRET}
    headers = {"Authorization": f"Bearer {mesh.admin_key}"}
    async with httpx.AsyncClient(base_url=f"{mesh.rest_url}/api/v1", headers=headers, trust_env=False) as http:
        made = await http.post("/issuers", json=asked, headers={"Idempotency-Key": "once"})
        again = await http.post("/issuers", json=asked, headers={"Idempotency-Key": "once"})
        clash = await http.post("/issuers", json=asked)
        wrong = await http.post("/issuers", json={**asked, "name": "stolen too", "jwks_url": 7})
        listed = await http.get("/issuers")
    assert [answer.status_code for answer in (made, again, clash, wrong, listed)] == [201, 201, 409, 400, 200]

    dump = subprocess.run([PG_DUMP, fresh_database], capture_output=True, text=True, timeout=30, check=True).stdout
    assert ISSUER in dump  # it holds what it is asked for
    assert keys.ids[0] in dump
    logs = "".join(child.log.read_text() for child in mesh.children)
    answers = "".join(answer.text for answer in (made, again, clash, wrong, listed))
    for hidden in (SECRET.encode(), base64.b64decode(keys.texts[0])):
        for text in (dump, logs, answers):
            assert hidden.decode(errors="replace") not in text
            assert hidden.hex() not in text
            assert base64.b64encode(hidden).decode().rstrip("=") not in text
    async with opened(fresh_database) as database:
        assert list((await read(database, keys.vault)).values()) == [SECRET.encode()]


async def test_without_a_key_a_secret_is_refused_and_not_stored(
    own_mesh: Callable[..., Mesh], fresh_database: str
) -> None:
    mesh = own_mesh("rest-api")
    asked = {"name": "refused", "issuer": ISSUER, "algorithm": "HS256", "secret": "s3cret" * 10}
    answer = httpx.post(
        f"{mesh.rest_url}/api/v1/issuers", json=asked, headers={"X-API-Key": mesh.admin_key}, trust_env=False
    )
    assert (answer.status_code, answer.json()["kind"]) == (503, "unavailable")
    assert "devmesh keys generate" in answer.json()["detail"]
    assert "s3cret" not in answer.text
    assert run_sql(fresh_database, "select count(*) from mcp.token_issuers") == "0"
    public = {
        "name": "public",
        "issuer": "https://issuer.example",
        "algorithm": "JWKS",
        "jwks_url": "https://i.example/k",
    }
    answer = httpx.post(
        f"{mesh.rest_url}/api/v1/issuers", json=public, headers={"X-API-Key": mesh.admin_key}, trust_env=False
    )
    assert answer.status_code == 201, answer.text  # there is nothing to seal


async def is_wrapped_by(database: Database, keys: Keys) -> bool:
    found = await report(database, keys.vault.master_keys)
    return {key.master_key_id for key in found.data_keys} == {keys.ids[0]}


async def has_one_data_key(database: Database, keys: Keys) -> bool:
    return len((await report(database, keys.vault.master_keys)).data_keys) == 1


async def has_less_left(database: Database, keys: Keys, before: int) -> bool:
    return (await report(database, keys.vault.master_keys)).values_to_reseal < before
