"""The one error table. Every wire renders a failure from here; nothing else invents codes, statuses or kinds.

A `MeshError` is an answer to a caller. It must never carry a secret, a statement or another tenant's data.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import msgspec

OUTCOME_UNKNOWN = "commit.outcome_unknown"  # a reason: whether the request was done is not known


class Row(NamedTuple):
    """How one kind of error looks on each wire."""

    code: int  # JSON-RPC
    http_status: int
    retryable: bool


class Kind(enum.StrEnum):
    PARSE_ERROR = "parse_error"
    INVALID_REQUEST = "invalid_request"
    UNKNOWN_METHOD = "unknown_method"
    INVALID_PARAMS = "invalid_params"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXCEEDED = "quota_exceeded"
    UNAVAILABLE = "unavailable"
    TOO_LARGE = "too_large"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


TABLE: dict[Kind, Row] = {
    Kind.PARSE_ERROR: Row(-32700, 400, False),
    Kind.INVALID_REQUEST: Row(-32600, 400, False),
    Kind.UNKNOWN_METHOD: Row(-32601, 404, False),
    Kind.INVALID_PARAMS: Row(-32602, 400, False),
    Kind.UNAUTHENTICATED: Row(-32001, 401, False),
    Kind.FORBIDDEN: Row(-32002, 403, False),
    Kind.NOT_FOUND: Row(-32003, 404, False),
    Kind.CONFLICT: Row(-32004, 409, False),
    Kind.RATE_LIMITED: Row(-32005, 429, True),
    Kind.QUOTA_EXCEEDED: Row(-32006, 429, False),
    Kind.UNAVAILABLE: Row(-32007, 503, True),
    Kind.TOO_LARGE: Row(-32008, 413, False),
    Kind.IDEMPOTENCY_MISMATCH: Row(-32009, 422, False),
    Kind.TIMEOUT: Row(-32010, 504, True),
    Kind.CANCELLED: Row(-32011, 499, False),
    Kind.INTERNAL: Row(-32603, 500, False),
}


class ErrorData(msgspec.Struct, omit_defaults=True):
    """The `data` member of an error: what a program needs to decide what to do next."""

    kind: Kind
    retryable: bool = msgspec.UNSET  # type: ignore[assignment]  # always written, so that clients need no default
    retry_after_ms: int | None = None
    field: str | None = None
    reason: str | None = None  # a finer name within the kind, such as `task.stale_attempt`
    error_id: str | None = None  # to quote when the kind is `internal`


class WireError(msgspec.Struct):
    """An error as JSON-RPC carries it."""

    code: int
    message: str
    data: ErrorData


class MeshError(Exception):
    """An answer that is an error. `message` tells the caller what to do and an attacker nothing."""

    def __init__(self, kind: Kind, message: str, **data: Any) -> None:
        """`data` may hold retry_after_ms, field, reason and error_id (see ErrorData)."""
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.data = ErrorData(kind=kind, retryable=TABLE[kind].retryable, **data)

    @property
    def http_status(self) -> int:
        return TABLE[self.kind].http_status

    def wire(self) -> WireError:
        return WireError(code=TABLE[self.kind].code, message=self.message, data=self.data)


def invalid(message: str, field: str | None = None) -> MeshError:
    return MeshError(Kind.INVALID_PARAMS, message, field=field)


def not_found(noun: str, identifier: object, field: str | None = None) -> MeshError:
    """Also the answer for another tenant's thing: whether it exists is none of the caller's business."""
    return MeshError(Kind.NOT_FOUND, f"there is no {noun} {identifier}", field=field)


def conflict(reason: str, message: str, field: str | None = None) -> MeshError:
    return MeshError(Kind.CONFLICT, message, reason=reason, field=field)


def unauthenticated(cause: str, message: str) -> MeshError:
    """A credential that is refused. Each cause has a `reason` of its own."""
    return MeshError(Kind.UNAUTHENTICATED, message, reason=f"credential.{cause}")


def past(field: str) -> MeshError:
    """A time that has to be to come, and is over. It may have been right when it was written: so nothing is malformed."""
    return conflict("time.past", f"{field}: give a time to come", field)


def forbidden(message: str) -> MeshError:
    return MeshError(Kind.FORBIDDEN, message)


def unavailable(message: str, retry_after_ms: int = 500) -> MeshError:
    return MeshError(Kind.UNAVAILABLE, message, retry_after_ms=retry_after_ms)


def explain(error: MeshError) -> str:
    """For an operator, who can find the id in the log."""
    return f"{error.message} (error id {error.data.error_id})" if error.data.error_id else error.message
