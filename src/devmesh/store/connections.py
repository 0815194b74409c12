"""How a session with PostgreSQL is opened and what it is set to, for the pool, for listening and for migrating.

Must not know pools, transactions or migrations.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

import asyncpg

CONNECT_LIMIT_S = 10.0
CLOSE_LIMIT_S = 1.0
BACKOFF_S = (1, 2, 4, 8, 16, 30, 30, 30, 30)  # between ten tries: a bit over two minutes in all
DEFAULT_SEARCH_PATH = "mcp,public"
STATEMENTS_CACHED_MAX = 1000
PERMANENT_CLASSES = ("28", "3D")  # wrong credentials, no such database: waiting does not help

# Whatever the driver raises.
DRIVER_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
# What ends a session whatever was being done on it.
GONE = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
)


class DatabaseUnreachable(Exception):
    """No session could be opened. The message says why, for an operator, and holds no password."""

    def __init__(self, message: str, *, is_permanent: bool) -> None:
        super().__init__(message)
        self.is_permanent = is_permanent


class AddressUnusable(DatabaseUnreachable):
    """The address itself makes no sense: nobody but who wrote it can mend that, and not while the program runs."""

    def __init__(self) -> None:
        message = "the database's address cannot be understood; write special characters in a password as %40 and so on"
        super().__init__(message, is_permanent=True)


def time_limits(deadline_s: float) -> dict[str, str]:
    """The server's own limits for transactions of a length: they end what a vanished client has left behind."""
    return {
        "lock_timeout": _milliseconds(deadline_s * 0.8),  # before the deadline, so that the answer can say why
        "statement_timeout": _milliseconds(deadline_s + 1),  # after it: the client's own limit comes first
        "idle_in_transaction_session_timeout": _milliseconds(deadline_s + 5),
    }


def session_settings(service: str, deadline_s: float, search_path: str = DEFAULT_SEARCH_PATH) -> dict[str, str]:
    """What every session that serves requests is set to."""
    return {
        "application_name": service[:63],
        "search_path": search_path,
        "timezone": "UTC",
        "default_transaction_isolation": "read committed",  # of a statement that is a transaction of its own
        "standard_conforming_strings": "on",  # whatever the server's default: see Statement.spelled_out
        "jit": "off",
        # Every statement is written for an index. A generic plan that was cached while a table was small would
        # otherwise keep reading the whole table, or hash it, when it has grown: queues then slow down by 3 to 5 times.
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
        # The plans for any parameters are those that the tests look at; to plan some statements anew for each call's took
        # as long as running them.
        "plan_cache_mode": "force_generic_plan",
        **time_limits(deadline_s),
    }


async def open_connection(
    dsn: str, settings: dict[str, str], *, statements_cached_max: int = STATEMENTS_CACHED_MAX
) -> asyncpg.Connection:
    """Opens one session outside of any pool. Raises `DatabaseUnreachable`."""
    try:
        return await asyncpg.connect(
            dsn,
            timeout=CONNECT_LIMIT_S,
            server_settings=settings,
            statement_cache_size=statements_cached_max,
            max_cached_statement_lifetime=0,
        )
    except ssl.SSLError as error:  # which may be a ValueError too
        if isinstance(error, ssl.SSLCertVerificationError):
            message = f"cannot reach the database: its TLS certificate is not accepted: {error.verify_message}"
        else:
            message = f"cannot reach the database by TLS: {error}"
        raise DatabaseUnreachable(message, is_permanent=False) from error
    except asyncpg.ClientConfigurationError as error:
        if "certificate" not in str(error):
            raise AddressUnusable from error
        raise DatabaseUnreachable(f"cannot reach the database: {error}", is_permanent=True) from error
    except (ValueError, OverflowError) as error:  # of an address that the driver cannot read; it quotes a part of it
        raise AddressUnusable from error
    except DRIVER_ERRORS as error:
        state = getattr(error, "sqlstate", None) or ""
        reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        is_permanent = state.startswith(PERMANENT_CLASSES)
        raise DatabaseUnreachable(f"cannot reach the database: {reason}", is_permanent=is_permanent) from error


async def close_connection(connection: asyncpg.Connection) -> None:
    """Closes a session in good order if that is quick, and cuts it off otherwise."""
    try:
        async with asyncio.timeout(CLOSE_LIMIT_S):
            await connection.close()
    except DRIVER_ERRORS:
        connection.terminate()
    except asyncio.CancelledError:
        connection.terminate()
        raise


async def connect_with_backoff(
    dsn: str, on_wait: Callable[[str], None], *, service: str = "devmesh", backoff_s: tuple[float, ...] = BACKOFF_S
) -> asyncpg.Connection:
    """Opens a session, waiting for a database that is not there yet. The caller closes it.

    Raises `DatabaseUnreachable` after the last try, or at once if trying again cannot help.
    """
    settings = {"application_name": service[:63], "timezone": "UTC"}
    tries_max = len(backoff_s) + 1
    for number, pause_s in enumerate(backoff_s, start=1):
        try:
            return await open_connection(dsn, settings)
        except DatabaseUnreachable as error:
            if error.is_permanent:
                raise
            on_wait(f"{error}; try {number} of {tries_max}, the next in {pause_s} s")
        await asyncio.sleep(pause_s)
    return await open_connection(dsn, settings)


def _milliseconds(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"
