"""Secrets are sealed in the transaction that stores them, under data keys that only a master key opens."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from structlog.testing import capture_logs
from tests.conftest import run_sql
from tests.sealed import PURPOSE, STORED, new_master_key, new_tenant, opened, put, read

from devmesh.core.errors import Kind, MeshError
from devmesh.store import vault as vault_module
from devmesh.store.database import Database, Transaction
from devmesh.store.vault import SEALED, SQL, Vault, forget, report, verify

# Every column of bytes that is not sealed, with why it holds no secret in plain text.
NOT_SECRET = {
    "api_keys.key_hash": "a digest of 256 random bits",
    "idempotency_keys.params_hash": "a digest of parameters",
    "data_keys.wrapped_key": "encrypted under the master key",
    "sealed_values.sealed": "the view of all sealed values",
}


@pytest_asyncio.fixture
async def database(fresh_database: str) -> AsyncIterator[Database]:
    async with opened(fresh_database) as pool:
        yield pool


async def refusal(vault: Vault, database: Database, tenant_id: uuid.UUID) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await put(database, vault, tenant_id, [b"s3cret"])
    return caught.value


def data_keys(dsn: str) -> int:
    return int(run_sql(dsn, "select count(*) from mcp.data_keys"))


async def test_every_column_of_bytes_is_declared_as_sealed_or_known_to_hold_no_secret(
    database: Database, fresh_database: str
) -> None:
    columns = run_sql(
        fresh_database,
        "select table_name || '.' || column_name from information_schema.columns"
        " where table_schema = 'mcp' and data_type = 'bytea'",
    ).splitlines()
    sealed = {column.purpose for column in SEALED}
    assert set(columns) == sealed | set(NOT_SECRET)
    view = run_sql(fresh_database, "select pg_get_viewdef('mcp.sealed_values'::regclass)")
    assert all(f"'{purpose}'" in view for purpose in sealed)


async def test_a_secret_is_opened_by_any_process_with_the_master_key(database: Database, fresh_database: str) -> None:
    master, tenant_id = new_master_key(), await new_tenant(database)
    stored = await put(database, Vault([master]), tenant_id, [b"s3cret", b"", bytes(range(256))])
    assert await read(database, Vault([master])) == stored
    [row_id] = [row_id for row_id, secret in stored.items() if secret == b"s3cret"]
    [sealed] = [row["secret"] for row in await database.read(STORED) if row["issuer_id"] == row_id]

    async def open_inside(tx: Transaction) -> bytes:
        return await Vault([master]).open(tx, tenant_id, PURPOSE, row_id, sealed)

    assert await database.run(open_inside) == b"s3cret"
    assert await Vault([master]).open(database, tenant_id, PURPOSE, row_id, sealed) == b"s3cret"
    assert "s3cret" not in run_sql(fresh_database, "select encode(secret, 'escape') from mcp.token_issuers")


async def test_many_nodes_that_seal_first_at_once_make_one_data_key(database: Database, fresh_database: str) -> None:
    master, tenant_id = new_master_key(), await new_tenant(database)
    stored = await asyncio.gather(
        *(put(database, Vault([master]), tenant_id, [b"%d" % number]) for number in range(20))
    )
    assert data_keys(fresh_database) == 1
    assert await read(database, Vault([master])) == {row: secret for part in stored for row, secret in part.items()}


async def test_a_data_key_whose_transaction_failed_is_not_used_afterwards(
    database: Database, fresh_database: str
) -> None:
    vault, tenant_id = Vault([new_master_key()]), await new_tenant(database)

    async def fail(tx: Transaction) -> None:
        await vault.seal(tx, tenant_id, PURPOSE, uuid.uuid4(), b"s3cret")
        raise MeshError(Kind.CONFLICT, "no")

    with pytest.raises(MeshError):
        await database.run(fail)
    assert data_keys(fresh_database) == 0
    stored = await put(database, vault, tenant_id, [b"s3cret"])
    assert await read(database, Vault(vault.master_keys)) == stored


async def test_a_rotation_by_another_node_is_seen_at_once(database: Database) -> None:
    master, tenant_id = new_master_key(), await new_tenant(database)
    here, there = Vault([master]), Vault([master])
    before = await put(database, here, tenant_id, [b"before"])
    await there.rotate(database)
    after = await put(database, here, tenant_id, [b"after"])
    found = await report(database, [master])
    assert [(key.sealed_values, key.is_current) for key in found.data_keys] == [(1, True), (1, False)]
    assert found.values_to_reseal == 1
    assert await read(database, there) == before | after


async def test_without_a_master_key_nothing_is_stored_and_the_answer_says_what_to_do(
    database: Database, fresh_database: str
) -> None:
    tenant_id = await new_tenant(database)
    refused = await refusal(Vault(), database, tenant_id)
    assert (refused.kind, "devmesh keys generate" in refused.message) == (Kind.UNAVAILABLE, True)
    assert run_sql(fresh_database, "select count(*) from mcp.token_issuers") == "0"
    health = await Vault().check(database)
    assert (health.status, "no secret can be stored" in health.message) == ("healthy", True)

    master = new_master_key()
    await put(database, Vault([master]), tenant_id, [b"s3cret"])
    health = await Vault().check(database)
    assert (health.status, master.id in health.message, "given none" in health.message) == ("unhealthy", True, True)


async def test_another_master_key_opens_nothing_and_health_names_both(database: Database) -> None:
    right, wrong, tenant_id = new_master_key(), new_master_key(), await new_tenant(database)
    [row_id] = await put(database, Vault([right]), tenant_id, [b"s3cret"])
    health = await Vault([wrong]).check(database)
    assert health.status == "unhealthy"
    assert right.id in health.message
    assert wrong.id in health.message
    assert (await Vault([wrong, right]).check(database)).status == "degraded"
    assert (await Vault([right]).check(database)).status == "healthy"

    [sealed] = [row["secret"] for row in await database.read(STORED)]
    with capture_logs() as logs, pytest.raises(MeshError) as caught:
        await Vault([wrong]).open(database, tenant_id, PURPOSE, row_id, sealed)
    assert caught.value.kind is Kind.UNAVAILABLE
    assert right.id not in caught.value.message  # that is for the operator
    assert right.id in str(logs)
    assert (await refusal(Vault([wrong]), database, tenant_id)).kind is Kind.UNAVAILABLE
    assert (await report(database, [wrong])).missing_master_keys == [right.id]


async def test_a_service_that_was_not_given_the_new_master_key_reads_on_until_it_is_started_again(
    database: Database, fresh_database: str
) -> None:
    """As it is while services are started again one after another."""
    old, new, tenant_id = new_master_key(), new_master_key(), await new_tenant(database)
    not_restarted, restarted = Vault([old]), Vault([new, old])
    stored = await put(database, not_restarted, tenant_id, [b"s3cret"])
    [row] = await database.read(SQL.data_keys)
    wrapped = restarted.rewrap(row).hex()
    run_sql(fresh_database, f"update mcp.data_keys set master_key_id = '{new.id}', wrapped_key = '\\x{wrapped}'")
    assert await read(database, not_restarted) == await read(database, restarted) == stored
    stored |= await put(database, not_restarted, tenant_id, [b"from here"])
    assert await read(database, Vault([new])) == stored
    health = await not_restarted.check(database)
    assert (health.status, "until it is started again" in health.message) == ("degraded", True)
    assert (await Vault([old]).check(database)).status == "unhealthy"


async def test_a_key_that_only_bears_the_right_fingerprint_opens_nothing(
    database: Database, fresh_database: str
) -> None:
    right, wrong, tenant_id = new_master_key(), new_master_key(), await new_tenant(database)
    await put(database, Vault([right]), tenant_id, [b"s3cret"])
    run_sql(fresh_database, f"update mcp.data_keys set master_key_id = '{wrong.id}'")
    assert (await Vault([wrong]).check(database)).status == "unhealthy"
    run_sql(
        fresh_database,
        f"update mcp.data_keys set wrapped_key = overlay(wrapped_key placing '\\x{wrong.id}'::bytea from 2 for 8)",
    )
    assert (await Vault([wrong]).check(database)).status == "unhealthy"


@pytest.mark.parametrize(
    "damage",
    [
        "set_byte(secret, length(secret) - 1, get_byte(secret, length(secret) - 1) # 1)",
        "set_byte(secret, 0, 9)",
        "substr(secret, 1, 30)",
        "overlay(secret placing '\\x00000000000000000000000000000001'::bytea from 2 for 16)",
    ],
    ids=["altered", "version", "cut", "data key"],
)
async def test_a_damaged_value_is_named_to_the_operator_and_tells_callers_nothing(
    database: Database, fresh_database: str, damage: str
) -> None:
    master, tenant_id = new_master_key(), await new_tenant(database)
    vault = Vault([master])
    [row_id, *_] = await put(database, vault, tenant_id, [b"s3cret", b"s3cret", b"s3cret"])
    run_sql(fresh_database, f"update mcp.token_issuers set secret = {damage} where issuer_id = '{row_id}'")
    [sealed] = [row["secret"] for row in await database.read(STORED) if row["issuer_id"] == row_id]
    with capture_logs() as logs, pytest.raises(MeshError) as caught:
        await vault.open(database, tenant_id, PURPOSE, row_id, sealed)
    assert caught.value.kind in (Kind.INTERNAL, Kind.UNAVAILABLE)
    assert str(row_id) not in caught.value.message
    assert str(row_id) in str(logs)
    found, unopened = await verify(database, vault)
    assert (found, [value.place.row_id for value in unopened]) == (3, [row_id])


async def test_a_value_moved_to_another_row_does_not_open(database: Database, fresh_database: str) -> None:
    vault, tenant_id, other_id = Vault([new_master_key()]), await new_tenant(database), await new_tenant(database)
    mine = await put(database, vault, tenant_id, [b"mine"])
    theirs = await put(database, vault, other_id, [b"theirs"])
    run_sql(
        fresh_database,
        "update mcp.token_issuers i set secret = o.secret from mcp.token_issuers o where o.issuer_id <> i.issuer_id",
    )
    _, unopened = await verify(database, vault)
    assert {value.place.row_id for value in unopened} == {*mine, *theirs}


async def test_verification_goes_through_all_pages(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_module, "VERIFIED_AT_ONCE", 3)
    vault = Vault([new_master_key()])
    for number in range(3):
        await put(database, vault, await new_tenant(database), [b"%d" % number] * 4)
    assert await verify(database, vault) == (12, [])


async def test_a_lost_master_key_can_be_given_up(database: Database) -> None:
    lost, new, tenant_id = new_master_key(), new_master_key(), await new_tenant(database)
    await put(database, Vault([lost]), tenant_id, [b"gone", b"gone too"])
    assert await forget(database, new.id) == 0
    assert await forget(database, lost.id) == 1
    assert (await Vault([new]).check(database)).status == "healthy"
    kept = await put(database, Vault([new]), tenant_id, [b"kept"])
    found = await report(database, [new])
    assert (found.lost_values, found.missing_master_keys) == (2, [])
    assert {row: secret for row, secret in (await read(database, Vault([new]))).items() if row in kept} == kept


async def test_a_purpose_that_is_not_declared_is_our_mistake(database: Database) -> None:
    async def seal(tx: Transaction) -> bytes:
        return await Vault([new_master_key()]).seal(tx, uuid.uuid4(), "things.secret", uuid.uuid4(), b"s3cret")

    with capture_logs() as logs, pytest.raises(MeshError) as caught:
        await database.run(seal)
    assert caught.value.kind is Kind.INTERNAL
    assert "things.secret is not declared" in logs[0]["error"]


async def test_before_the_migration_there_is_nothing_to_report(fresh_database: str) -> None:
    empty = await Database.open(
        fresh_database, service="tests", pool_size_min=1, pool_size_max=1, transaction_deadline_s=5.0
    )
    try:
        found = await report(empty, [new_master_key()])
    finally:
        await empty.close()
    assert (found.data_keys, found.values_to_reseal) == ([], 0)
