"""Turns what PostgreSQL, its driver and the operating system raise into answers for callers: one table, one place.

Must not know any noun or statement. A caller learns what to do next and nothing of the inside; the log learns where it
happened. Neither ever gets the statement or the values of a failed call: they may hold secrets.
"""

from __future__ import annotations

import asyncio
import traceback
import uuid
from typing import NamedTuple

import asyncpg
import structlog

from devmesh.core.errors import OUTCOME_UNKNOWN, Kind, MeshError

log = structlog.get_logger(__name__)

RETRY_AFTER_MS = 500


class Fault(NamedTuple):
    """What one kind of failure means."""

    kind: Kind
    message: str
    is_member: bool  # caused by the data of one call, so that the others of its batch would pass without it


AWAY = Fault(Kind.UNAVAILABLE, "the database is away for the moment; try again", False)
STARTING = Fault(Kind.UNAVAILABLE, "the database is starting or stopping; try again", False)
BUSY = Fault(Kind.UNAVAILABLE, "the database has no connection or memory to spare; try again", False)
DISK_FULL = Fault(Kind.UNAVAILABLE, "the database's disk is full; nothing can be written until there is room", False)
READ_ONLY = Fault(Kind.UNAVAILABLE, "the database takes no writes for the moment; try again", False)
UNUSABLE = Fault(Kind.UNAVAILABLE, "the database refuses this server; an operator has to mend it", False)
MISFIT = Fault(
    Kind.UNAVAILABLE,
    "the database's schema is not what this server needs; an operator has to mend it, see /health",
    False,
)
CONTENTION = Fault(Kind.UNAVAILABLE, "too many requests change the same things at once; try again", False)
TOO_SLOW = Fault(Kind.TIMEOUT, "the request took too long and was stopped; try again", False)
LOCKED = Fault(Kind.TIMEOUT, "another change to the same thing took too long; try again", False)
CHARACTER = Fault(
    Kind.INVALID_PARAMS, "a text holds a character that cannot be stored, such as NUL (\\u0000): remove it", True
)
MALFORMED = Fault(Kind.INVALID_PARAMS, "a value does not have the form that its field needs", True)
OUT_OF_RANGE = Fault(Kind.INVALID_PARAMS, "a number is too large or too small to be stored", True)
BAD_TIME = Fault(Kind.INVALID_PARAMS, "a time is malformed or out of range", True)
TOO_LONG = Fault(Kind.INVALID_PARAMS, "a text is too long", True)
TOO_BIG = Fault(Kind.INVALID_PARAMS, "a value is too large, or nested too deeply, to be stored", True)
BAD_PATTERN = Fault(Kind.INVALID_PARAMS, "a pattern is malformed", True)
NOT_PERMITTED_VALUE = Fault(Kind.INVALID_PARAMS, "a value is outside what its field permits", True)
DUPLICATE = Fault(Kind.CONFLICT, "this exists already, or was made by another request at the same moment", True)
DANGLING = Fault(Kind.CONFLICT, "this refers to something that does not exist, or is still referred to", True)
OUR_DATA_MISTAKE = Fault(Kind.INTERNAL, "an internal error happened; quote the error id when asking for help", True)
OUR_MISTAKE = OUR_DATA_MISTAKE._replace(is_member=False)

# SQLSTATE, or its first two characters for a whole class. The longer one wins.
FAULTS: dict[str, Fault] = {
    "08": AWAY,
    "0A": OUR_MISTAKE,
    "21": OUR_DATA_MISTAKE,
    "22": MALFORMED,
    "22001": TOO_LONG,
    "22003": OUT_OF_RANGE,
    "22004": OUR_DATA_MISTAKE,  # null where none may be: decoding should have refused it
    "22007": BAD_TIME,
    "22008": BAD_TIME,
    "22009": BAD_TIME,
    "22012": OUR_DATA_MISTAKE,  # a division by zero is never the caller's
    "22021": CHARACTER,
    "22P05": CHARACTER,
    "2201B": BAD_PATTERN,
    "22025": BAD_PATTERN,
    "23": OUR_DATA_MISTAKE,
    "23503": DANGLING,
    "23505": DUPLICATE,
    "23514": NOT_PERMITTED_VALUE,
    "23P01": DUPLICATE,
    "25": OUR_MISTAKE,
    "25006": READ_ONLY,
    "25P03": TOO_SLOW,
    "25P04": TOO_SLOW,
    "28": UNUSABLE,
    "3D": UNUSABLE,
    "40": CONTENTION,
    "3F": MISFIT,  # every statement fitted when the service started: somebody has changed the schema since
    "42": OUR_MISTAKE,
    "42703": MISFIT,  # no such column
    "42704": MISFIT,  # no such object
    "42804": MISFIT,  # a column of another type
    "42883": MISFIT,  # no such function, or none for these types
    "42P01": MISFIT,  # no such table
    "53": BUSY,
    "53100": DISK_FULL,
    "54": TOO_BIG,
    "55000": UNUSABLE,  # it takes no connections, as it was told
    "55P03": LOCKED,
    "57014": TOO_SLOW,
    "57P01": STARTING,
    "57P02": STARTING,
    "57P03": STARTING,
    "57P04": UNUSABLE,
    "57P05": AWAY,
    "58": AWAY,
    "P0": OUR_DATA_MISTAKE,  # raised by a function of ours for data that nobody foresaw
    "XX": OUR_MISTAKE,
}

# These classes quote values in their primary message, so that it must not be logged.
CLASSES_QUOTING_VALUES = ("22", "23", "P0")
RETRYABLE_STATES = frozenset({"40001", "40P01"})
MEMBER_BLIND_KINDS = frozenset({Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.CANCELLED, Kind.RATE_LIMITED})


def translate(error: BaseException) -> MeshError:
    """The answer for a failure. What nobody foresaw is logged, with an id that the answer quotes."""
    if isinstance(error, MeshError):
        return error
    fault = classify(error)
    if fault.kind is Kind.INTERNAL:
        error_id = str(uuid.uuid4())
        log.error("unforeseen failure in the store", error_id=error_id, **_circumstances(error))
        return MeshError(fault.kind, fault.message, error_id=error_id)
    if fault in (UNUSABLE, DISK_FULL, MISFIT):
        log.error("the database needs an operator", **_circumstances(error))
    elif fault in (DUPLICATE, DANGLING, NOT_PERMITTED_VALUE):
        log.warning("a constraint caught what an operation should have", **_circumstances(error))
    retry_after_ms = RETRY_AFTER_MS if fault.kind is Kind.UNAVAILABLE else None
    return MeshError(fault.kind, fault.message, retry_after_ms=retry_after_ms)


def is_member_fault(error: BaseException) -> bool:
    """Whether one call's data may have failed a batch, so that running its members apart can save the others."""
    if isinstance(error, MeshError):
        if error.data.reason == OUTCOME_UNKNOWN or error.kind in MEMBER_BLIND_KINDS:
            return False
        return error.__cause__ is None or is_member_fault(error.__cause__)
    return classify(error).is_member


def is_misfit(error: BaseException) -> bool:
    """Whether the schema has lost what a statement needs."""
    return classify(error) is MISFIT


def is_retryable(error: BaseException) -> bool:
    """Whether the same transaction, run again from its start, may well pass: nothing of it has been kept."""
    if isinstance(error, asyncpg.InvalidCachedStatementError | asyncpg.OutdatedSchemaCacheError):
        return True  # the schema was migrated under a prepared statement; the driver has forgotten it by now
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in RETRYABLE_STATES


def is_connection_lost(error: BaseException) -> bool:
    """Whether a session ended under what was being done, not for want of time."""
    return not isinstance(error, TimeoutError) and classify(error) in (AWAY, STARTING)


def outcome_unknown(kind: Kind = Kind.UNAVAILABLE) -> MeshError:
    """The connection ended after COMMIT was sent: only a retry under the same idempotency key tells what came of it."""
    message = (
        "the database went away while the request was being committed, so its outcome is unknown; "
        "try again with the same idempotency_key: it is then done once, whichever it was"
    )
    retry_after_ms = RETRY_AFTER_MS if kind is Kind.UNAVAILABLE else None
    return MeshError(kind, message, retry_after_ms=retry_after_ms, reason=OUTCOME_UNKNOWN)


def classify(error: BaseException) -> Fault:
    """What a failure means. Has no effect, unlike `translate`."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        if state == "22000":
            return _unencodable(error)
        return FAULTS.get(state) or FAULTS.get(state[:2]) or OUR_MISTAKE
    if isinstance(error, TimeoutError):
        return TOO_SLOW
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return READ_ONLY
    if isinstance(error, asyncpg.InterfaceError):
        # The driver has one class for "the connection is closed" and for misuse; only its words tell them apart.
        return AWAY if "clos" in str(error) or "released back" in str(error) else OUR_MISTAKE
    if isinstance(error, asyncpg.InternalClientError):
        # The driver lost track of the protocol: of a session that was ended while the driver was about to begin something.
        return AWAY if "state" in str(error) or "not connected" in str(error) else OUR_MISTAKE
    if isinstance(error, OSError | EOFError | asyncio.CancelledError):
        return AWAY
    if isinstance(error, UnicodeError):
        return CHARACTER
    return OUR_DATA_MISTAKE


def _unencodable(error: asyncpg.PostgresError) -> Fault:
    """The driver could not encode an argument, or the server says no more than "data exception"."""
    if isinstance(error.__cause__, UnicodeError):
        return CHARACTER
    if isinstance(error.__cause__, OverflowError):
        return OUT_OF_RANGE
    return OUR_DATA_MISTAKE if isinstance(error.__cause__, TypeError) else MALFORMED


def _circumstances(error: BaseException) -> dict[str, object]:
    """What may be logged of a failure: where and of what sort, but no statement and no value."""
    found: dict[str, object] = {"error_type": type(error).__name__, "where": traceback.format_tb(error.__traceback__)}
    if isinstance(error, asyncpg.PostgresError):
        for name in ("sqlstate", "schema_name", "table_name", "column_name", "data_type_name", "constraint_name"):
            if value := getattr(error, name, None):
                found[name] = value
        if (error.sqlstate or "").startswith(CLASSES_QUOTING_VALUES):
            return found
        found["error"] = getattr(error, "message", None)
    else:
        found["error"] = str(error)
    return found
