"""Re-encryption goes on under readers and writers, cut off half-way and on several nodes at once, and loses nothing."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from devmesh.core.envelope import MasterKey
from devmesh.core.errors import Kind, MeshError
from devmesh.engine import reencryption
from devmesh.engine.reencryption import Batch, Reencryption, reseal
from devmesh.store.database import Database, Transaction
from devmesh.store.vault import NOWHERE, SEALED, SQL, Vault, report, verify
from tests.conftest import run_sql
from tests.harness import eventually
from tests.sealed import INSERT, PURPOSE, new_master_key, new_tenant, opened, put, read

VALUES = [b"secret %d" % number for number in range(50)]


@pytest_asyncio.fixture
async def database(fresh_database: str) -> AsyncIterator[Database]:
    async with opened(fresh_database) as pool:
        yield pool


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reencryption, "RESEALED_MAX", 3)


def a_loop(database: Database, *keys: MasterKey, days_max: float = 90.0, kept_s: float = 900.0) -> Reencryption:
    """One node's loop, which starts from nothing but the database."""
    return Reencryption(database, Vault(keys), 0.05, data_key_days_max=days_max, data_key_kept_s=kept_s)


async def run_through(loop: Reencryption) -> None:
    while await loop.run_once():
        pass


async def is_through(database: Database, *keys: MasterKey) -> bool:
    found = await report(database, keys)
    return not found.values_to_reseal and {key.master_key_id for key in found.data_keys} == {keys[0].id}


async def test_after_a_new_master_key_the_old_one_can_be_removed(database: Database) -> None:
    old, new, tenant_id = new_master_key(), new_master_key(), await new_tenant(database)
    stored = await put(database, Vault([old]), tenant_id, VALUES)
    assert (await report(database, [new, old])).needed_master_keys == [old.id]
    assert await read(database, Vault([new, old])) == stored  # before anything was done

    await run_through(a_loop(database, new, old))
    assert (await report(database, [new, old])).removable_master_keys == [old.id]
    assert (await Vault([new, old]).check(database)).status == "healthy"
    assert await read(database, Vault([new])) == stored
    assert (await Vault([old]).check(database)).status == "unhealthy"


async def test_after_a_new_data_key_all_values_are_sealed_under_it_and_read_meanwhile(database: Database) -> None:
    master, tenant_id = new_master_key(), await new_tenant(database)
    vault = Vault([master])
    stored = await put(database, vault, tenant_id, VALUES)
    await vault.rotate(database)
    done = asyncio.Event()

    async def keep_reading() -> int:
        reads = 0
        while not done.is_set():
            assert await read(database, Vault([master])) == stored  # with an empty memory each time
            reads += 1
        return reads

    reader = asyncio.create_task(keep_reading())
    await run_through(a_loop(database, master, kept_s=0.0))
    done.set()
    assert await reader > 0
    assert await is_through(database, master)
    assert await verify(database, vault) == (len(VALUES), [])


async def test_a_data_key_that_is_old_is_replaced_and_deleted_when_nothing_needs_it(
    database: Database, fresh_database: str
) -> None:
    master, tenant_id = new_master_key(), await new_tenant(database)
    stored = await put(database, Vault([master]), tenant_id, VALUES)
    [first] = (await report(database, [master])).data_keys
    await run_through(a_loop(database, master))
    assert [key.id for key in (await report(database, [master])).data_keys] == [first.id]

    run_sql(fresh_database, "update mcp.data_keys set created_at = now() - interval '91 days'")
    await run_through(a_loop(database, master))
    current, older = (await report(database, [master])).data_keys
    assert (older.id, older.sealed_values, current.sealed_values) == (first.id, 0, len(VALUES))

    await run_through(a_loop(database, master))  # it is kept for a while
    assert len((await report(database, [master])).data_keys) == 2
    await run_through(a_loop(database, master, kept_s=0.0))
    assert [key.id for key in (await report(database, [master])).data_keys] == [current.id]
    assert await read(database, Vault([master])) == stored


async def test_a_data_key_is_not_deleted_while_a_transaction_seals_under_it(database: Database) -> None:
    """The transaction has looked up its data key, then another becomes current and the first seems to be of no use."""
    master, tenant_id, row_id = new_master_key(), await new_tenant(database), uuid.uuid4()
    vault, sealed, rotated = Vault([master]), asyncio.Event(), asyncio.Event()
    await put(database, vault, tenant_id, [b"first"])

    async def seal_slowly(tx: Transaction) -> None:
        value = await vault.seal(tx, tenant_id, PURPOSE, row_id, b"slow")
        sealed.set()
        await rotated.wait()
        await tx.execute(INSERT, tenant_id, [row_id], [value])

    slow = asyncio.create_task(database.run(seal_slowly))
    await sealed.wait()
    await vault.rotate(database)
    for _ in range(3):  # it is seen to be unused, and then to have been so for long enough
        await run_through(a_loop(database, master, kept_s=0.0))
    assert len((await report(database, [master])).data_keys) == 2
    rotated.set()
    await slow
    assert (await read(database, Vault([master])))[row_id] == b"slow"

    await run_through(a_loop(database, master, kept_s=0.0))
    await run_through(a_loop(database, master, kept_s=0.0))
    assert len((await report(database, [master])).data_keys) == 1
    assert (await read(database, Vault([master])))[row_id] == b"slow"


async def test_a_data_key_that_was_used_between_the_look_and_the_lock_is_not_deleted(
    database: Database, fresh_database: str
) -> None:
    master, tenant_id = new_master_key(), await new_tenant(database)
    stored = await put(database, Vault([master]), tenant_id, [b"s3cret"])
    await Vault([master]).rotate(database)
    run_sql(fresh_database, "update mcp.data_keys set unused_since = now() - interval '1 hour' where generation = 1")

    async def delete(tx: Transaction) -> int:
        [row] = await tx.fetch(SQL.lock_disposable, 900.0, [])
        return await tx.execute(SQL.delete_unused, [row["data_key_id"]])

    assert await database.run(delete) == 0
    assert await read(database, Vault([master])) == stored


async def test_cut_off_in_the_middle_of_a_batch_it_goes_on_from_what_was_committed(database: Database) -> None:
    master, tenant_id = new_master_key(), await new_tenant(database)
    vault = Vault([master])
    stored = await put(database, vault, tenant_id, VALUES)
    [first] = (await report(database, [master])).data_keys
    await vault.rotate(database)

    async def one_batch(tx: Transaction) -> Batch:
        return await reseal(tx, vault, SEALED[0], first.id, NOWHERE)

    async def cut_off(tx: Transaction) -> None:
        assert (await one_batch(tx)).resealed == 3
        raise MeshError(Kind.UNAVAILABLE, "cut off")

    await database.run(one_batch)
    with pytest.raises(MeshError, match="cut off"):
        await database.run(cut_off)
    assert (await report(database, [master])).values_to_reseal == len(VALUES) - 3
    assert await read(database, Vault([master])) == stored
    await run_through(a_loop(database, master))
    assert await is_through(database, master)
    assert await read(database, Vault([master])) == stored


async def test_on_several_nodes_at_once_it_does_no_harm(database: Database) -> None:
    old, new, tenant_id = new_master_key(), new_master_key(), await new_tenant(database)
    stored = await put(database, Vault([old]), tenant_id, VALUES)
    await Vault([new, old]).rotate(database)
    loops = [a_loop(database, new, old, kept_s=0.0) for _ in range(4)]
    for loop in loops:
        loop.start()
    more: dict[uuid.UUID, bytes] = {}
    for number in range(20):
        more |= await put(database, Vault([new, old]), tenant_id, [b"more %d" % number])
    await eventually(lambda: is_through(database, new, old), "it is through")
    await asyncio.gather(*(loop.stop() for loop in loops))
    assert all(loop.state(30.0).status == "unhealthy" for loop in loops)  # they do not run any more
    assert await read(database, Vault([new])) == stored | more


async def test_what_cannot_be_opened_stays_as_it_is_is_named_once_and_keeps_nothing_else_waiting(
    database: Database, fresh_database: str
) -> None:
    master, tenant_id = new_master_key(), await new_tenant(database)
    stored = await put(database, Vault([master]), tenant_id, VALUES)
    broken = sorted(stored)[7]
    run_sql(
        fresh_database,
        "update mcp.token_issuers set secret = set_byte(secret, 40, get_byte(secret, 40) # 1)"
        f" where issuer_id = '{broken}'",
    )
    before = run_sql(fresh_database, f"select secret from mcp.token_issuers where issuer_id = '{broken}'")
    await Vault([master]).rotate(database)
    loop = a_loop(database, master, kept_s=0.0)
    with capture_logs() as logs:
        await run_through(loop)
        await run_through(loop)
    named = [line for line in logs if line["event"] == "a secret cannot be sealed anew"]
    assert [line["row_id"] for line in named] == [str(broken)]
    assert loop.details()["values_not_opened"] == 1
    found = await report(database, [master])
    assert (found.values_to_reseal, len(found.data_keys)) == (1, 2)
    loop.start()
    assert "1 secrets cannot be opened" in loop.state(30.0).message
    assert run_sql(fresh_database, f"select secret from mcp.token_issuers where issuer_id = '{broken}'") == before
    run_sql(fresh_database, f"delete from mcp.token_issuers where issuer_id = '{broken}'")
    await eventually(lambda: loop.state(30.0).status == "healthy", "it is well again")
    await loop.stop()


async def test_a_data_key_that_nobody_can_open_goes_when_nothing_is_sealed_under_it(
    database: Database, fresh_database: str
) -> None:
    lost, new, tenant_id = new_master_key(), new_master_key(), await new_tenant(database)
    await put(database, Vault([lost]), tenant_id, [b"s3cret"])
    await run_through(a_loop(database, new, kept_s=0.0))
    assert (await Vault([new]).check(database)).status == "unhealthy"
    run_sql(fresh_database, "delete from mcp.token_issuers")
    health = await Vault([new]).check(database)
    assert (health.status, "the worker makes others" in health.message) == ("degraded", True)
    await run_through(a_loop(database, new))
    assert (await report(database, [new])).data_keys == []
    stored = await put(database, Vault([new]), tenant_id, [b"s3cret"])
    assert await read(database, Vault([new])) == stored


async def test_without_a_master_key_it_does_nothing(database: Database) -> None:
    master, tenant_id = new_master_key(), await new_tenant(database)
    await put(database, Vault([master]), tenant_id, [b"s3cret"])
    assert await a_loop(database).run_once() is False
    assert await is_through(database, master)


async def test_neither_a_secret_nor_a_key_is_logged(database: Database) -> None:
    old, new, tenant_id = new_master_key(), new_master_key(), await new_tenant(database)
    with capture_logs() as logs:
        await put(database, Vault([old]), tenant_id, VALUES)
        await Vault([new, old]).rotate(database)
        await run_through(a_loop(database, new, old, kept_s=0.0))
    assert {
        "a data key was made",
        "data keys were wrapped anew",
        "all secrets are sealed under the current data key",
    } <= {line["event"] for line in logs}
    assert not re.search(r"secret \d", str(logs))
    assert "AESGCM" not in str(logs)
