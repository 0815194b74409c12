"""REST: every operation at the method and path that it declares, under /api/v1. Translation, nothing else.

Path, query and body become the operation's parameters as JSON and go down the corridor; what comes back is the body.
"""

from __future__ import annotations

import asyncio
import functools
import zlib
from collections.abc import Coroutine
from importlib.resources import files
from typing import Any

import msgspec
from msgspec import Raw
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from devmesh.core.access import Caller
from devmesh.core.errors import MeshError, conflict
from devmesh.edges import openapi, preconditions
from devmesh.edges.boundary import Handler, Resource
from devmesh.edges.credentials import peer_address, presented_secret
from devmesh.edges.parameters import from_body, from_url, refuse_body
from devmesh.edges.sse import EventStreams
from devmesh.operations.authentication import Authenticator
from devmesh.operations.corridor import Corridor
from devmesh.operations.registry import REGISTRY, Operation
from devmesh.settings import Settings

# The page holds its own script and style, and may talk to this server only.
DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class _Versioned(msgspec.Struct):
    version: int


_things = msgspec.json.Decoder(dict[str, _Versioned])


def _version_of(body: bytes | Raw, noun: str) -> int:
    return _things.decode(body)[noun].version


def routes(
    corridor: Corridor, authenticator: Authenticator, streams: EventStreams, settings: Settings
) -> list[BaseRoute]:
    """A route for each path. Fixed paths come before those with parameters, so that neither hides the other, and those
    whose parameter may hold slashes last: the greedy parameter takes all but the path's own end."""
    handlers: dict[str, dict[str, Handler]] = {}
    for operation in REGISTRY.values():
        endpoint = Endpoint(operation, corridor, authenticator, settings)
        handlers.setdefault(openapi.PREFIX + _route(operation), {})[operation.method] = endpoint.answer

    async def events(request: Request) -> ASGIApp:
        caller = await authenticated(request, authenticator)
        await corridor.rates.admit(caller)
        async with corridor.denials_noted(caller, "events.follow"):
            return await streams.open(request, caller)

    handlers[openapi.EVENTS_PATH] = {"GET": events}
    page = (files("devmesh.edges") / "static" / "docs.html").read_bytes()
    handlers["/openapi.json"] = {"GET": _described}
    handlers["/docs"] = {"GET": _fixed(page, "text/html; charset=utf-8", {"Content-Security-Policy": DOCS_POLICY})}
    handlers["/"] = {"GET": _to_docs}
    in_order = sorted(handlers, key=lambda path: (":path}" in path, "{" in path, path))
    return [Route(path, Resource(handlers[path])) for path in in_order]


def _route(operation: Operation) -> str:
    """Its path as the router is told it. (A client's %2F is a slash again before anybody sees it.)"""
    path = operation.path
    for field in operation.slashed:
        path = path.replace(f"{{{field}}}", f"{{{field}:path}}")
    return path


async def authenticated(request: Request, authenticator: Authenticator) -> Caller:
    """Who is calling. Raises unauthenticated or rate_limited."""
    return await authenticator.authenticate(presented_secret(request.headers.raw), peer_address(request.scope))


class Endpoint:
    """One operation as HTTP serves it."""

    def __init__(
        self, operation: Operation, corridor: Corridor, authenticator: Authenticator, settings: Settings
    ) -> None:
        self._operation, self._corridor = operation, corridor
        self._authenticator, self._settings = authenticator, settings
        self._versioned_field = openapi.versioned_field(operation)
        self._is_versioned = openapi.takes_if_match(operation)
        self._changes_version = "if_version" in operation.params.__struct_fields__
        self._status = openapi.success_status(operation)

    async def answer(self, request: Request) -> Response:
        self._corridor.admission.enter(self._operation.name)
        try:
            return await self._serve(request)
        finally:
            self._corridor.admission.leave(self._operation.name)

    async def _serve(self, request: Request) -> Response:
        operation = self._operation
        if preconditions.HEADER in request.headers and not self._is_versioned:
            raise preconditions.refuse()
        rates, credential = self._corridor.rates, presented_secret(request.headers.raw)
        rates.refuse_again(credential)
        caller = await authenticated(request, self._authenticator)
        wanted = await self._wanted(request, caller)
        beside = {"if_version": min(wanted)} if wanted and self._changes_version else {}
        if operation.method in openapi.METHODS_WITH_BODY:
            raw = await from_body(request, operation, self._settings, beside)
        else:
            await refuse_body(request)
            raw = msgspec.json.encode(from_url(request, operation.params, beside))
        try:
            result = await while_connected(request, self._corridor.serve(operation.name, caller, raw))
        except MeshError as error:
            if credential is not None and error.data.reason in rates.REASONS:
                rates.note_refused(credential, caller)
            if wanted is not None and error.data.reason in preconditions.VERSION_REASONS:
                raise preconditions.PreconditionFailed(error, wanted) from None
            raise
        return self._response(request, bytes(result), wanted)

    async def _wanted(self, request: Request, caller: Caller) -> frozenset[int] | None:
        """The one version that the thing must have, of however many `If-Match` names; None for any."""
        wanted = preconditions.wanted_versions(request)
        if wanted is None or len(wanted) == 1:
            return wanted
        noun = self._operation.name.partition(".")[0]
        asked = msgspec.json.encode({f"{noun}_id": request.path_params[f"{noun}_id"]})
        present = _version_of(await self._corridor.serve(f"{noun}.get", caller, asked), noun)
        return frozenset({present if present in wanted else min(wanted)})

    def _response(self, request: Request, body: bytes, wanted: frozenset[int] | None) -> Response:
        headers = {"Cache-Control": "no-store"}
        if self._versioned_field is not None:
            version = _version_of(body, self._versioned_field)
            if wanted is not None and version not in wanted and not self._changes_version:
                message = f"the {self._versioned_field} has version {version} by now; look at it again"
                raise preconditions.PreconditionFailed(conflict(f"{self._versioned_field}.version", message), wanted)
            # Some of what is shown, such as an agent's status, changes without a version: the checksum says when.
            tag = f'"{version}-{zlib.crc32(body):08x}"'
            headers = {"Cache-Control": "private, no-cache", "ETag": tag}
            if request.method in ("GET", "HEAD") and _is_among(tag, request.headers.get("if-none-match", "")):
                return Response(status_code=304, headers=headers)
        return Response(body, self._status, headers, media_type="application/json")


async def while_connected(request: Request, serving: Coroutine[Any, Any, Raw]) -> Raw:
    """The answer, unless the client leaves before: then nothing is waited for, or claimed, in its name any more."""
    loop = asyncio.get_running_loop()
    answer, departure = loop.create_task(serving), loop.create_task(_departed(request))
    try:
        await asyncio.wait([answer, departure], return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        departure.cancel()


async def _departed(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _is_among(tag: str, given: str) -> bool:
    tags = [part.strip().removeprefix("W/") for part in given.split(",")]
    return "*" in tags or tag in tags


def _fixed(content: bytes, media_type: str, headers: dict[str, str] | None = None) -> Handler:
    async def answer(_: Request) -> Response:
        return Response(content, headers={"Cache-Control": "no-cache", **(headers or {})}, media_type=media_type)

    return answer


@functools.cache
def _document() -> bytes:
    """Made when somebody asks for it: that takes longer than the rest of a service's start."""
    return msgspec.json.encode(openapi.document())


async def _described(_: Request) -> Response:
    document = await asyncio.to_thread(_document)
    return Response(document, headers={"Cache-Control": "no-cache"}, media_type="application/json")


async def _to_docs(_: Request) -> Response:
    return RedirectResponse("/docs")
