"""The pool and the transaction: the only way from the rest of the program to the database.

Must not know any noun, nor what a piece of work does. It promises that work is done in one transaction or not at all,
that it ends by its deadline, and that what is raised is a `MeshError` (or a cancellation) and nothing else.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import asyncpg
import structlog

from devmesh.core.errors import OUTCOME_UNKNOWN, Kind, MeshError, unavailable
from devmesh.store import connections, faults
from devmesh.store.statements import Statement

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    PooledConnection = PoolConnectionProxy[asyncpg.Record]

Record = asyncpg.Record  # so that others can name it without importing the driver
T = TypeVar("T")

log = structlog.get_logger(__name__)
_random = random.SystemRandom()  # so that processes forked alike do not pause alike

RETRIES_MAX = 5
RETRY_PAUSE_S = 0.01  # doubled with each retry, and jittered
ROLLBACK_LIMIT_S = 1.0
RELEASE_LIMIT_S = 1.0
CLOSE_LIMIT_S = 10.0
IDLE_S_MAX = 60.0  # less than firewalls remember a silent connection for
QUERIES_A_CONNECTION_MAX = 1_000_000_000  # the driver would otherwise reconnect every 50,000


class PoolStats(NamedTuple):
    """How busy the pool is."""

    size: int
    idle: int
    waiting: int  # who want a connection and have none yet


class Transaction:
    """One transaction. It is handed to work by `Database.run` and is of no use afterwards.

    It begins with its first statement. Each statement is a round trip, but for those that are spelled out: the first goes in
    one message with BEGIN, the last ones in one with COMMIT.
    """

    __slots__ = ("_after_commit", "_begin", "_connection", "_deadline", "_last")

    def __init__(self, connection: PooledConnection, begin: str, deadline: asyncio.Timeout) -> None:
        self._connection, self._begin, self._deadline = connection, begin, deadline
        self._last: list[str] = []
        self._after_commit: list[Callable[[], None]] = []

    @property
    def is_begun(self) -> bool:
        return not self._begin

    async def fetch(self, statement: Statement, *args: Any) -> list[Record]:
        """Every row."""
        await self._begun()
        return await self._connection.fetch(statement.text, *args)

    async def fetch_whole(self, statement: Statement, *args: Any) -> list[Record]:
        """Every row of a statement that is all there is to do: if nothing was done before, it is a transaction of its own.

        It is committed with its answer then, in one round trip. What is raised afterwards does not undo it.
        """
        if self.is_begun:
            return await self.fetch(statement, *args)
        return await _outcome_of(
            lambda: self._connection.fetch(statement.text, *args), self._connection, self._deadline
        )

    async def fetch_row(self, statement: Statement, *args: Any) -> Record | None:
        """The first row, if there is one."""
        await self._begun()
        return await self._connection.fetchrow(statement.text, *args)

    async def fetch_value(self, statement: Statement, *args: Any) -> Any:
        """The first column of the first row, or None."""
        await self._begun()
        return await self._connection.fetchval(statement.text, *args)

    async def execute(self, statement: Statement, *args: Any) -> int:
        """Runs a statement that returns nothing. Answers with how many rows it touched."""
        await self._begun()
        return _rows(await self._connection.execute(statement.text, *args))

    async def copy(self, table: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
        """Writes new rows into a table of ours: many of them for less of the log than an INSERT takes, and as quickly."""
        await self._begun()
        await self._connection.copy_records_to_table(table, schema_name="mcp", columns=columns, records=rows)

    async def execute_spelled_out(self, statement: Statement, *values: str) -> int:
        """The same as `execute`, in one message with BEGIN if it is the first. See `Statement.spelled_out`."""
        begin, self._begin = self._begin, ""
        text = statement.spelled_out(*values)
        return _rows(await self._connection.execute(f"{begin};{text}" if begin else text))

    def commit_with(self, statement: Statement, *values: str) -> None:
        """Has a statement run last, in one message with COMMIT. What it touches is not told.

        What it locks is held while PostgreSQL commits and no longer: others do not wait for this process to hear of the one
        and to ask for the other.
        """
        self._last.append(statement.spelled_out(*values))

    def end(self) -> str:
        """The message that ends it; nothing if nothing was done."""
        if self._begin and not self._last:
            return ""
        return ";".join([*filter(None, [self._begin]), *self._last, "commit"])

    async def _begun(self) -> None:
        begin, self._begin = self._begin, ""
        if begin:
            await self._connection.execute(begin)

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Has a callback run once this transaction is committed, in the order given. It must be quick and not wait."""
        self._after_commit.append(callback)

    def committed(self) -> None:
        """Runs the callbacks. The work is done whatever becomes of them, so none can fail it.

        They are let go of: they hold what holds this transaction, and what it has read would wait for the garbage collector.
        """
        callbacks, self._after_commit = self._after_commit, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("a callback after commit failed")


class Database:
    """A pool of connections, and work done on them."""

    def __init__(self, pool: asyncpg.Pool, dsn: str, settings: dict[str, str], transaction_deadline_s: float) -> None:
        """For `open`, which makes the pool."""
        self._pool = pool
        self._dsn = dsn
        self._settings = settings
        self._transaction_deadline_s = transaction_deadline_s
        self._waiting = 0
        self._answered_at = time.monotonic()
        self._disk_full_at = -math.inf
        self.on_misfit: Callable[[], None] = lambda: None  # told when the schema has lost what a statement needs

    @classmethod
    async def open(
        cls,
        dsn: str,
        *,
        service: str,
        pool_size_min: int,
        pool_size_max: int,
        transaction_deadline_s: float,
        search_path: str = connections.DEFAULT_SEARCH_PATH,
    ) -> Database:
        """Opens the pool. Raises `MeshError` when the database is away: see `connections.connect_with_backoff`."""
        settings = connections.session_settings(service, transaction_deadline_s, search_path)
        try:
            pool = await asyncpg.create_pool(
                dsn,
                min_size=pool_size_min,
                max_size=pool_size_max,
                max_queries=QUERIES_A_CONNECTION_MAX,
                max_inactive_connection_lifetime=IDLE_S_MAX,
                timeout=connections.CONNECT_LIMIT_S,
                server_settings=settings,
                statement_cache_size=connections.STATEMENTS_CACHED_MAX,
                max_cached_statement_lifetime=0,
                max_cacheable_statement_size=0,  # no limit: the largest statements are the costliest to plan
                reset=_keep_session,
            )
        except Exception as error:
            raise faults.translate(error) from error
        return cls(pool, dsn, settings, transaction_deadline_s)

    async def close(self, limit_s: float = CLOSE_LIMIT_S) -> None:
        """Waits for what is running, within a limit, then closes every connection."""
        try:
            async with asyncio.timeout(limit_s):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def run(self, work: Callable[[Transaction], Awaitable[T]], *, deadline_s: float | None = None) -> T:
        """Does work in one READ COMMITTED transaction and answers with its result.

        Work is run again from its start when it lost a deadlock or a serialisation conflict, and once when it lost its
        connection, so it must have no effect outside of the transaction. The deadline covers everything, waiting for a
        connection included. A commit whose outcome is unknown is never repeated here: only the caller's idempotency key
        makes that safe.
        """
        limit_s = self._transaction_deadline_s if deadline_s is None else deadline_s
        begin = _begin(None if deadline_s is None else connections.time_limits(limit_s))
        try:
            async with asyncio.timeout(limit_s) as deadline:
                for retry in range(RETRIES_MAX):
                    try:
                        return await self._attempt(work, begin, deadline)
                    except connections.DRIVER_ERRORS as error:
                        # It may have ended while nobody used it.
                        is_lost = retry == 0 and faults.is_connection_lost(error)
                        if not (faults.is_retryable(error) or is_lost):
                            raise
                    await asyncio.sleep(_random.uniform(0.2, 1) * RETRY_PAUSE_S * 2**retry)
                return await self._attempt(work, begin, deadline)
        except MeshError:
            raise
        except Exception as error:
            raise self._answer(error) from error

    async def read(self, statement: Statement, *args: Any) -> list[Record]:
        """The rows of one statement, outside of an explicit transaction, within the usual deadline."""
        try:
            async with asyncio.timeout(self._transaction_deadline_s), self._connection() as connection:
                rows = await connection.fetch(statement.text, *args)
                self._answered_at = time.monotonic()
                return rows
        except Exception as error:
            raise self._answer(error) from error

    async def unfit(self, statements: Iterable[Statement]) -> list[str]:
        """What PostgreSQL says against each statement that does not fit the schema, with its name: nothing, if all is well."""
        problems = []
        try:
            async with asyncio.timeout(self._transaction_deadline_s), self._connection() as connection:
                for statement in statements:
                    try:
                        await connection.prepare(statement.text)
                    except (
                        asyncpg.SyntaxOrAccessError,
                        asyncpg.InvalidSchemaNameError,
                    ) as error:  # whatever is missing
                        problems.append(f"{statement.name}: {error}")
        except Exception as error:
            raise faults.translate(error) from error
        return problems

    async def open_dedicated(self) -> asyncpg.Connection:
        """A connection outside of the pool, set like the others, for LISTEN. The caller closes it."""
        try:
            return await connections.open_connection(self._dsn, self._settings)
        except connections.DatabaseUnreachable as error:
            raise faults.translate(error.__cause__ or error) from error

    @property
    def stats(self) -> PoolStats:
        return PoolStats(size=self._pool.get_size(), idle=self._pool.get_idle_size(), waiting=self._waiting)

    @property
    def disk_full_s_ago(self) -> float:
        """How long it is since a write found no room."""
        return time.monotonic() - self._disk_full_at

    @property
    def silence_s(self) -> float:
        """How long it is since anything on the pool was done."""
        return time.monotonic() - self._answered_at

    def _answer(self, error: Exception) -> MeshError:
        if faults.is_misfit(error):
            self.on_misfit()
        if faults.classify(error) is faults.DISK_FULL:
            self._disk_full_at = time.monotonic()
        return faults.translate(error)

    async def _attempt(self, work: Callable[[Transaction], Awaitable[T]], begin: str, deadline: asyncio.Timeout) -> T:
        async with self._connection() as connection:
            transaction = Transaction(connection, begin, deadline)
            result = await work(transaction)
            if message := transaction.end():
                await _commit(connection, message, deadline)
            self._answered_at = time.monotonic()
            transaction.committed()
        return result

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[PooledConnection]:
        """One of the pool, clean again or cut off afterwards."""
        if self._pool.is_closing():
            raise unavailable("this server is shutting down; connect to another")
        self._waiting += 1
        try:
            connection = await self._pool.acquire()
        finally:
            self._waiting -= 1
        try:
            yield connection
        except BaseException as error:
            if _may_have_begun(connection, error) and (
                not await _roll_back(connection) or faults.is_connection_lost(error)
            ):
                await self._pool.expire_connections()  # the others have gone with it, or soon will have: open new ones
            raise
        finally:
            try:
                await self._pool.release(connection, timeout=RELEASE_LIMIT_S)
            except connections.DRIVER_ERRORS as error:
                log.warning("a connection broke while it went back to the pool", error=str(error))


def _may_have_begun(connection: PooledConnection, error: BaseException) -> bool:
    """Whether there may be something to undo. What the work itself refuses it refuses between statements."""
    if isinstance(error, MeshError) and error.data.reason != OUTCOME_UNKNOWN:
        with suppress(asyncpg.InterfaceError):  # it has gone
            return connection.is_in_transaction()
    return True


async def _keep_session(connection: asyncpg.Connection) -> None:
    """In place of the driver's reset, a round trip after every use: nothing here changes a session for good."""


def _begin(limits: dict[str, str] | None) -> str:
    """BEGIN, with its own time limits in the same round trip where they differ from the session's.

    Not READ WRITE: it would overrule an operator, or a disk's guard, who has made the database read-only.
    """
    begin = "begin isolation level read committed"
    if limits is None:
        return begin
    return ";".join([begin, *(f"set local {name} = '{value}'" for name, value in limits.items())])


def _rows(tag: str) -> int:
    """How many rows a statement touched, as its tag says: `INSERT 0 3`."""
    count = tag.rpartition(" ")[2]
    return int(count) if count.isdigit() else 0


async def _outcome_of(send: Callable[[], Awaitable[T]], connection: PooledConnection, deadline: asyncio.Timeout) -> T:
    """From the moment that a message is sent that commits, only the server's answer tells what became of the work."""
    try:
        answer = await send()
    except asyncio.CancelledError as error:
        # The driver has the server break the message off, and the connection waits for that: cut off it would be waited for by
        # nobody, and would keep its place among those who wait for the stream, and commit what was given up.
        if deadline.expired():
            raise faults.outcome_unknown(Kind.TIMEOUT) from error
        raise
    except Exception as error:
        if getattr(error, "severity_en", None) == "ERROR":  # the server refused and rolled back: that is an outcome
            raise
        _cut_off(connection)
        raise faults.outcome_unknown() from error
    if not deadline.expired():
        deadline.reschedule(None)  # done: nothing after this may turn it into a timeout
    return answer


async def _commit(connection: PooledConnection, message: str, deadline: asyncio.Timeout) -> None:
    tag = await _outcome_of(lambda: connection.execute(message), connection, deadline)
    if tag != "COMMIT":
        # PostgreSQL answers ROLLBACK, without an error, when a statement had failed and work went on regardless.
        raise RuntimeError("work hid the failure of a statement, so its transaction was rolled back")


async def _roll_back(connection: PooledConnection) -> bool:
    """Undoes the work, or drops the connection if that does not go at once: the server then undoes it.

    False when nobody answered, neither with yes nor with no: a frozen server, or a connection that leads nowhere any more.
    """
    try:
        async with asyncio.timeout(ROLLBACK_LIMIT_S):
            await connection.execute("rollback")
    except asyncio.CancelledError:
        _cut_off(connection)
        raise
    except TimeoutError:
        _cut_off(connection)
        return False
    except connections.DRIVER_ERRORS:
        _cut_off(connection)
    return True


def _cut_off(connection: PooledConnection) -> None:
    with suppress(asyncpg.InterfaceError):  # the pool has taken it back already
        connection.terminate()
