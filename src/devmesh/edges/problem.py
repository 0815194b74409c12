"""Errors as HTTP shows them: RFC 9457 problem details, made from the one error table."""

from __future__ import annotations

import math
from http import HTTPStatus

import msgspec
from starlette.responses import Response

from devmesh import telemetry
from devmesh.core.errors import Kind, MeshError

MEDIA_TYPE = "application/problem+json"
WRONG_METHOD = "http.method"
WRONG_MEDIA_TYPE = "http.media_type"
TOO_SLOW = "http.slow"
HEAD_TOO_LONG = "http.head"
# Where HTTP has a finer word than the table's: the status by the error's reason.
STATUSES = {WRONG_METHOD: 405, TOO_SLOW: 408, WRONG_MEDIA_TYPE: 415, HEAD_TOO_LONG: 431}


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What went wrong. `kind` and `reason` are for programs, `detail` is for people."""

    type: str
    title: str
    status: int
    detail: str
    kind: Kind
    retryable: bool
    retry_after_ms: int | None = None
    field: str | None = None
    reason: str | None = None
    error_id: str | None = None


def status_of(error: MeshError) -> int:
    return STATUSES.get(error.data.reason or "", error.http_status)


def problem_of(error: MeshError) -> Problem:
    status = status_of(error)
    return Problem(
        type=f"urn:devmesh:error:{error.kind}",
        title=HTTPStatus(status).phrase if status != 499 else "Client Closed Request",
        status=status,
        detail=error.message,
        **msgspec.structs.asdict(error.data),
    )


def problem_response(error: MeshError, headers: dict[str, str] | None = None) -> Response:
    """The answer to a request that failed. Counted."""
    telemetry.ERRORS.labels(error.kind).inc()
    headers = {**(headers or {}), "Cache-Control": "no-store"}
    if error.data.retry_after_ms is not None:
        headers["Retry-After"] = str(math.ceil(error.data.retry_after_ms / 1000))
    if error.kind is Kind.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = 'Bearer realm="devmesh"'
    return Response(msgspec.json.encode(problem_of(error)), status_of(error), headers, media_type=MEDIA_TYPE)
