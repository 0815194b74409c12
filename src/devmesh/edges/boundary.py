"""Where HTTP ends and the program begins: every request gets an id, one answer, and never a stack trace.

Must not know any operation: it carries handlers that take a request and answer with a response or raise.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from devmesh.core.errors import Kind, MeshError
from devmesh.edges.problem import WRONG_METHOD, problem_response
from devmesh.store.faults import translate

Handler = Callable[[Request], Awaitable[ASGIApp]]

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def application(routes: Sequence[BaseRoute]) -> ASGIApp:
    """Routes inside the boundary. A path that none of them has is a problem like any other."""
    return Boundary(Router(routes, redirect_slashes=False, default=_nothing_here))


class Boundary:
    def __init__(self, inside: ASGIApp) -> None:
        self._inside = inside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inside(scope, receive, send)
            return
        request_id = _request_id(Request(scope))
        is_begun = False

        async def send_marked(message: Message) -> None:
            nonlocal is_begun
            if message["type"] == "http.response.start":
                is_begun = True
                marks = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message["headers"], *marks]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._inside(scope, receive, send_marked)
            except ClientDisconnect:
                return  # nobody is there to hear an answer
            except Exception as problem:
                error = translate(problem)
                if is_begun:
                    raise  # too late for another answer: the server cuts the connection, which is one as well
                await problem_response(error)(scope, receive, send_marked)


class Resource:
    """One path: which methods it has, and who answers them. HEAD is GET without its body, which the server leaves out."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._allowed = ", ".join(sorted({*handlers, "OPTIONS", *(["HEAD"] if "GET" in handlers else [])}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        handler = self._handlers.get(method)
        response: ASGIApp
        if handler is not None:
            response = await handler(Request(scope, receive))
        elif method == "OPTIONS":
            response = Response(status_code=204, headers={"Allow": self._allowed})
        else:
            message = f"{method[:20]} is not served here; use one of {self._allowed}"
            error = MeshError(Kind.UNKNOWN_METHOD, message, reason=WRONG_METHOD)
            response = problem_response(error, {"Allow": self._allowed})
        await response(scope, receive, send)


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await WebSocketClose()(scope, receive, send)
        return
    error = MeshError(Kind.UNKNOWN_METHOD, f"there is nothing at {scope['path'][:200]}")
    await problem_response(error)(scope, receive, send)


def _request_id(request: Request) -> str:
    """The caller's own id for the request, if it is one that can stand in a header and a log."""
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
