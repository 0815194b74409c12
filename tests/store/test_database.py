"""Work is done in one transaction or not at all, ends by its deadline, and fails with an answer for the caller."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs
from tests.store.things import ADD, AMOUNT, INSERT, NAMES, names, sql

from devmesh.core.errors import OUTCOME_UNKNOWN, Kind, MeshError, conflict
from devmesh.store import database as store_database
from devmesh.store import faults
from devmesh.store.database import Database, Transaction
from devmesh.store.statements import Statement

pytestmark = pytest.mark.asyncio


SLEEP = sql("select pg_sleep($1)")
KILL = sql("select pg_terminate_backend($1::int)")
OWN_PROCESS = sql("select pg_backend_pid()")


async def failure_of(database: Database, statement: Statement, *args: Any) -> MeshError:
    async def work(transaction: Transaction) -> None:
        await transaction.execute(statement, *args)

    with pytest.raises(MeshError) as caught:
        await database.run(work)
    return caught.value


async def test_work_is_committed_and_answered(database: Database) -> None:
    rung: list[str] = []

    async def work(transaction: Transaction) -> tuple[int, Any, Any]:
        transaction.after_commit(lambda: rung.append("first"))
        transaction.after_commit(lambda: rung.append("second"))
        inserted = await transaction.execute(INSERT, "a", 1)
        row = await transaction.fetch_row(AMOUNT, "a")
        assert row is not None
        assert await transaction.fetch_row(AMOUNT, "b") is None
        assert len(await transaction.fetch(NAMES)) == 1
        assert rung == []
        return inserted, row["amount"], await transaction.fetch_value(AMOUNT, "a")

    assert await database.run(work) == (1, 1, 1)
    assert rung == ["first", "second"]
    assert await names(database) == ["a"]


async def test_a_callback_cannot_fail_what_is_committed(database: Database) -> None:
    rung: list[str] = []

    async def work(transaction: Transaction) -> None:
        await transaction.execute(INSERT, "a", 1)
        transaction.after_commit(lambda: rung.remove("not there"))
        transaction.after_commit(lambda: rung.append("rung"))

    await database.run(work)
    assert rung == ["rung"]


async def test_what_a_transaction_has_read_does_not_wait_for_the_garbage_collector(database: Database) -> None:
    class Rows:
        """What a body has read, and its callbacks hold."""

    async def work(transaction: Transaction) -> weakref.ref[Rows]:
        rows = Rows()
        transaction.after_commit(lambda: print(transaction, rows))
        await transaction.execute(INSERT, "a", 1)
        return weakref.ref(rows)

    gc.disable()
    try:
        assert (await database.run(work))() is None
    finally:
        gc.enable()


async def test_an_error_undoes_the_work_and_rings_nothing(database: Database) -> None:
    rung: list[str] = []

    async def work(transaction: Transaction) -> None:
        transaction.after_commit(lambda: rung.append("rung"))
        await transaction.execute(INSERT, "a", 1)
        raise conflict("test.reason", "no")

    with pytest.raises(MeshError) as caught:
        await database.run(work)
    assert caught.value.data.reason == "test.reason"
    assert await names(database) == []
    assert rung == []


async def test_work_that_hides_a_failed_statement_is_not_told_as_done(database: Database) -> None:
    async def work(transaction: Transaction) -> str:
        await transaction.execute(INSERT, "a", 1)
        with pytest.raises(asyncpg.UniqueViolationError):
            await transaction.execute(INSERT, "a", 1)
        return "done"

    with capture_logs() as logs, pytest.raises(MeshError) as caught:
        await database.run(work)
    assert caught.value.kind is Kind.INTERNAL
    assert logs[0]["error_id"] == caught.value.data.error_id
    assert await names(database) == []


async def test_a_deadlock_is_run_again_from_the_start(database: Database) -> None:
    async def prepare(transaction: Transaction) -> None:
        await transaction.execute(INSERT, "a", 0)
        await transaction.execute(INSERT, "b", 0)

    await database.run(prepare)
    both_hold_one = asyncio.Barrier(2)
    one_has_ended = asyncio.Event()
    runs = 0
    rung: list[int] = []

    async def move(first: str, second: str) -> None:
        is_first_run = True

        async def work(transaction: Transaction) -> None:
            nonlocal runs, is_first_run
            runs += 1
            transaction.after_commit(lambda: rung.append(1))
            transaction.after_commit(one_has_ended.set)
            if not is_first_run:  # the row that it let go is the other's, if it does not snatch it back at once
                await one_has_ended.wait()
            await transaction.execute(ADD, first, 1)
            if is_first_run:
                is_first_run = False
                await both_hold_one.wait()
            await transaction.execute(ADD, second, 1)

        await database.run(work, deadline_s=20)

    await asyncio.gather(move("a", "b"), move("b", "a"))
    assert runs == 3
    assert rung == [1, 1]
    for name in ("a", "b"):
        assert (await database.read(AMOUNT, name))[0]["amount"] == 2


async def test_retries_end(database: Database) -> None:
    runs = 0

    async def work(transaction: Transaction) -> None:
        nonlocal runs
        runs += 1
        await transaction.execute(sql("do $$ begin raise serialization_failure; end $$"))

    with pytest.raises(MeshError) as caught:
        await database.run(work)
    assert runs == 6
    assert caught.value.kind is Kind.UNAVAILABLE
    assert caught.value.data.retry_after_ms
    assert not faults.is_member_fault(caught.value)


async def test_a_statement_outlives_a_change_of_the_schema(database: Database) -> None:
    everything = sql("select * from things")

    async def work(transaction: Transaction) -> list[asyncpg.Record]:
        return await transaction.fetch(everything)

    await database.run(work)
    await database.read(sql("alter table things add column more text"))
    assert await database.run(work) == []


async def test_the_deadline_ends_work_and_undoes_it(database: Database) -> None:
    async def work(transaction: Transaction) -> None:
        await transaction.execute(INSERT, "a", 1)
        await transaction.fetch(SLEEP, 30)

    started = asyncio.get_running_loop().time()
    with pytest.raises(MeshError) as caught:
        await database.run(work, deadline_s=0.3)
    assert asyncio.get_running_loop().time() - started < 2
    assert caught.value.kind is Kind.TIMEOUT
    assert caught.value.data.reason is None
    assert await names(database) == []


async def test_the_deadline_counts_the_wait_for_a_connection(database: Database) -> None:
    hold = asyncio.Event()

    async def holding(_transaction: Transaction) -> None:
        await hold.wait()

    async def nothing(_transaction: Transaction) -> None:
        pass

    holders = [asyncio.create_task(database.run(holding)) for _ in range(4)]
    await asyncio.sleep(0.1)
    waiter = asyncio.create_task(database.run(nothing, deadline_s=0.3))
    await asyncio.sleep(0.1)
    assert database.stats == (4, 0, 1)
    with pytest.raises(MeshError) as caught:
        await waiter
    assert caught.value.kind is Kind.TIMEOUT
    hold.set()
    await asyncio.gather(*holders)
    assert database.stats == (4, 4, 0)


async def test_a_deadline_of_its_own_sets_the_servers_limits(database: Database) -> None:
    async def work(transaction: Transaction) -> list[str]:
        limits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        return [await transaction.fetch_value(sql(f"show {name}")) for name in limits]

    assert await database.run(work) == ["6s", "4s", "10s"]
    assert await database.run(work, deadline_s=60) == ["61s", "48s", "65s"]
    assert await database.run(work) == ["6s", "4s", "10s"]


async def test_cancelled_work_is_undone_and_its_connection_used_again(database: Database) -> None:
    inserted = asyncio.Event()

    async def work(transaction: Transaction) -> None:
        await transaction.execute(INSERT, "a", 1)
        inserted.set()
        await transaction.fetch(SLEEP, 30)

    task = asyncio.create_task(database.run(work))
    await inserted.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await names(database) == []
    assert database.stats.idle == database.stats.size


async def test_a_connection_killed_in_the_middle_is_unavailable_and_replaced(database: Database) -> None:
    async def killed_while_idle(transaction: Transaction) -> None:
        await transaction.execute(INSERT, "a", 1)
        await database.read(KILL, await transaction.fetch_value(OWN_PROCESS))
        await asyncio.sleep(0.05)
        await transaction.execute(INSERT, "b", 1)

    async def killed_while_busy(transaction: Transaction) -> None:
        process = await transaction.fetch_value(OWN_PROCESS)
        await asyncio.gather(transaction.fetch(SLEEP, 30), kill_later(process))

    async def kill_later(process: int) -> None:
        await asyncio.sleep(0.1)
        await database.read(KILL, process)

    for work in (killed_while_idle, killed_while_busy):
        with pytest.raises(MeshError) as caught:
            await database.run(work)
        assert caught.value.kind is Kind.UNAVAILABLE
        assert caught.value.data.retry_after_ms
        assert caught.value.data.reason is None
        assert not faults.is_member_fault(caught.value)
        assert await names(database) == []
    assert await database.read(OWN_PROCESS)


async def test_a_connection_lost_at_commit_is_told_as_unknown_and_not_repeated(database: Database) -> None:
    runs = 0

    async def work(transaction: Transaction) -> None:
        nonlocal runs
        runs += 1
        await transaction.execute(INSERT, "a", 1)
        await database.read(KILL, await transaction.fetch_value(OWN_PROCESS))
        await asyncio.sleep(0.05)

    with pytest.raises(MeshError, match=r"outcome is unknown.*idempotency_key") as caught:
        await database.run(work)
    assert runs == 1
    assert caught.value.kind is Kind.UNAVAILABLE
    assert caught.value.data.reason == OUTCOME_UNKNOWN
    assert not faults.is_member_fault(caught.value)


async def slow_commits(database: Database) -> None:
    """Makes every commit that inserts wait for a second."""
    await database.read(
        sql(
            "create function wait() returns trigger language plpgsql as"
            " $$ begin perform pg_sleep(1); return null; end $$"
        )
    )
    await database.read(
        sql(
            "create constraint trigger wait after insert on things"
            " deferrable initially deferred for each row execute function wait()"
        )
    )


async def test_a_deadline_within_commit_is_told_as_unknown(database: Database) -> None:
    await slow_commits(database)

    async def work(transaction: Transaction) -> None:
        await transaction.execute(INSERT, "a", 1)

    with pytest.raises(MeshError, match="outcome is unknown") as caught:
        await database.run(work, deadline_s=0.3)
    assert caught.value.kind is Kind.TIMEOUT
    assert caught.value.data.reason == OUTCOME_UNKNOWN
    assert await database.read(OWN_PROCESS)


async def test_a_cancellation_within_commit_stays_a_cancellation(database: Database) -> None:
    await slow_commits(database)

    async def work(transaction: Transaction) -> None:
        await transaction.execute(INSERT, "a", 1)

    task = asyncio.create_task(database.run(work))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await database.read(OWN_PROCESS)


async def test_a_refusal_is_undone_only_where_something_was_begun(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    roll_back, undone = store_database._roll_back, []

    async def noted(connection: Any) -> bool:
        undone.append(connection.is_in_transaction())
        return await roll_back(connection)

    monkeypatch.setattr(store_database, "_roll_back", noted)

    async def refuse(transaction: Transaction) -> None:
        raise conflict("test", "no")

    async def refuse_late(transaction: Transaction) -> None:
        await transaction.execute(INSERT, "a", 1)
        await refuse(transaction)

    for work, expected in ((refuse, []), (refuse_late, [True])):
        with pytest.raises(MeshError, match="no"):
            await database.run(work)
        assert undone == expected
    assert await names(database) == []


async def test_a_commit_that_the_server_refuses_is_an_outcome(database: Database) -> None:
    await database.read(sql("create table others (name text references things deferrable initially deferred)"))
    error = await failure_of(database, sql("insert into others values ('nobody')"))
    assert error.kind is Kind.CONFLICT
    assert error.data.reason is None
