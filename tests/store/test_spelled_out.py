"""Statements that go in one message with BEGIN or COMMIT: part of the work, and their values come through as they are."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from tests.store.things import ADD_ONE, AMOUNT, INSERT, NAMES, PUT, names, sql

from devmesh.core.errors import OUTCOME_UNKNOWN, MeshError
from devmesh.store.database import Database, Transaction
from devmesh.store.statements import SEPARATOR


async def test_what_goes_with_begin_and_with_commit_is_part_of_the_work(database: Database) -> None:
    async def work(transaction: Transaction) -> int:
        assert await transaction.execute_spelled_out(PUT, "first", "1") == 1
        transaction.commit_with(PUT, "before the last", "3")
        transaction.commit_with(ADD_ONE, "before the last")
        await transaction.execute(INSERT, "second", 2)
        return len(await transaction.fetch(NAMES))

    assert await database.run(work) == 2
    assert await names(database) == ["before the last", "first", "second"]
    assert (await database.read(AMOUNT, "before the last"))[0]["amount"] == 4


async def test_work_may_be_nothing_but_what_goes_with_its_commit(database: Database) -> None:
    async def work(transaction: Transaction) -> None:
        transaction.commit_with(PUT, "a", "1")

    await database.run(work)
    assert await names(database) == ["a"]


async def test_work_that_asks_nothing_begins_no_transaction(database: Database, fresh_database: str) -> None:
    rung: list[str] = []

    async def work(transaction: Transaction) -> None:
        transaction.after_commit(lambda: rung.append("rung"))

    await database.read(NAMES)
    await database.run(work)
    assert rung == ["rung"]
    beside = await asyncpg.connect(fresh_database)
    last = await beside.fetch(
        "select query from pg_stat_activity where datname = current_database() and application_name = 'test'"
    )
    await beside.close()
    assert [row["query"] for row in last] == [NAMES.text]


@pytest.mark.parametrize(
    "values", [("a", "1"), ("b", "2000")], ids=["a name that is there", "an amount that is too large"]
)
async def test_what_fails_with_the_commit_fails_the_work(database: Database, values: tuple[str, str]) -> None:
    rung: list[str] = []
    await database.run(lambda transaction: transaction.execute(INSERT, "a", 0))

    async def work(transaction: Transaction) -> None:
        transaction.after_commit(lambda: rung.append("rung"))
        await transaction.execute(INSERT, "c", 0)
        transaction.commit_with(PUT, *values)

    with pytest.raises(MeshError) as caught:
        await database.run(work)
    assert caught.value.data.reason != OUTCOME_UNKNOWN
    assert (await names(database), rung) == (["a"], [])


async def test_a_deadlock_in_what_goes_with_the_commit_is_run_again(database: Database) -> None:
    async def prepare(transaction: Transaction) -> None:
        await transaction.execute(INSERT, "a", 0)
        await transaction.execute(INSERT, "b", 0)

    await database.run(prepare)
    both_hold_one = asyncio.Barrier(2)
    runs = 0

    async def move(first: str, second: str) -> None:
        is_first_run = True

        async def work(transaction: Transaction) -> None:
            nonlocal runs, is_first_run
            runs += 1
            await transaction.execute_spelled_out(ADD_ONE, first)
            transaction.commit_with(ADD_ONE, second)
            if is_first_run:
                is_first_run = False
                await both_hold_one.wait()

        await database.run(work, deadline_s=20)

    await asyncio.gather(move("a", "b"), move("b", "a"))
    assert runs >= 3
    for name in ("a", "b"):
        assert (await database.read(AMOUNT, name))[0]["amount"] == 2


ECHO = sql("insert into echoes select $1, v from unnest(string_to_array($2, e'\\x1e')) as v")
ODD = [
    "'", "''", "\\", "\\'", "$1", "$2", "';commit;--", "e'\\x41'", "é\U0001f600\u2028", "\t\n", " ", "%s", ":name",
    "{}", "a" * 9_000,
]  # fmt: skip


async def test_whatever_is_spelled_out_comes_back_as_it_was(fresh_database: str) -> None:
    connection = await asyncpg.connect(fresh_database)
    name = await connection.fetchval("select current_database()")
    await connection.execute(f'alter database "{name}" set standard_conforming_strings = off')
    await connection.execute("create table echoes (whose text, text text)")
    await connection.close()
    database = await Database.open(
        fresh_database, service="test", pool_size_min=1, pool_size_max=1, transaction_deadline_s=5.0
    )
    try:

        async def work(transaction: Transaction) -> None:
            assert await transaction.execute_spelled_out(ECHO, "begin'", SEPARATOR.join(ODD)) == len(ODD)
            transaction.commit_with(ECHO, "commit\\", SEPARATOR.join(ODD))

        await database.run(work)
        for whose in ("begin'", "commit\\"):
            rows = await database.read(sql("select text from echoes where whose = $1 order by ctid"), whose)
            assert [row["text"] for row in rows] == ODD
    finally:
        await database.close()


def test_no_text_with_a_nul_is_spelled_out() -> None:
    with pytest.raises(ValueError, match="number 0"):
        ECHO.spelled_out("a", "b\0c")
