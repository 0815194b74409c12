"""Errors as HTTP shows them: RFC 9457 problem details, made from the one error table."""

from __future__ import annotations

import math
from http import HTTPStatus

import msgspec
from starlette.responses import Response

from devmesh import telemetry
from devmesh.core.errors import Kind, MeshError


def problem_response(error: MeshError, headers: dict[str, str] | None = None) -> Response:
    telemetry.ERRORS.labels(error.kind).inc()
    body = {
        "type": f"urn:devmesh:error:{error.kind}",
        "title": _title(error.http_status),
        "status": error.http_status,
        "detail": error.message,
        **msgspec.to_builtins(error.data),
    }
    headers = dict(headers or {})
    if error.data.retry_after_ms is not None:
        headers["Retry-After"] = str(math.ceil(error.data.retry_after_ms / 1000))
    if error.kind is Kind.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = 'Bearer realm="devmesh"'
    content = msgspec.json.encode(body)
    return Response(content, error.http_status, headers, media_type="application/problem+json")


def _title(status: int) -> str:
    return HTTPStatus(status).phrase if status != 499 else "Client Closed Request"
