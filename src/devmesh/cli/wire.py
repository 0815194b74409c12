"""Operations over REST, as the command line uses them: an answer, or the one line that says why there is none.

Method and path come from the registry; what is right and wrong is said by the server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx

from devmesh.cli.console import Exit, Failure
from devmesh.core.errors import Kind, MeshError
from devmesh.operations.registry import Operation
from devmesh.settings import ClientSettings

PREFIX = "/api/v1"
ANSWER_LIMIT_S = 90.0  # longer than an operation may wait
CONNECT_LIMIT_S = 5.0
HINTS = {
    Kind.UNAUTHENTICATED: "DEVMESH_API_KEY says which key is used; `devmesh up` leaves one in its directory",
    Kind.FORBIDDEN: "`devmesh keys new` makes a key with other scopes",
}


class Rest:
    """A mesh, reached over REST with one key."""

    def __init__(self, settings: ClientSettings) -> None:
        if settings.api_key is None:
            hint = "set DEVMESH_API_KEY, or run `devmesh up` in this directory: it leaves one in .devmesh/dev.env"
            raise Failure("no key to act with", Exit.USAGE, hint)
        self.url = settings.url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {settings.api_key}", "User-Agent": "devmesh-cli"}

    def call(self, operation: Operation, params: Mapping[str, Any]) -> dict[str, Any]:
        """The answer. Raises `Failure` with the error's kind, message and hint."""
        remaining = dict(params)
        path = _path(operation, remaining)
        takes_body = operation.method not in ("GET", "DELETE")
        try:
            response = httpx.request(
                operation.method,
                self.url + PREFIX + path,
                content=json.dumps(remaining) if takes_body else None,
                params=None if takes_body else _query(remaining),
                headers={**self.headers, **({"Content-Type": "application/json"} if takes_body else {})},
                timeout=httpx.Timeout(ANSWER_LIMIT_S, connect=CONNECT_LIMIT_S),
                trust_env=False,
                verify=self.url.startswith("https:"),  # or it would read all authorities to trust none
            )
        except httpx.HTTPError as error:
            raise unreachable(self.url, error) from error
        if response.is_success:
            answer: dict[str, Any] = response.json()
            return answer
        raise refused(response, operation)


def refused(response: httpx.Response, operation: Operation | None = None) -> Failure:
    """What the server said, in one line."""
    try:
        problem = response.json()
        kind, message = Kind(problem["kind"]), str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        hint = "is DEVMESH_URL the address of a mesh's REST service?"
        return Failure(f"{response.url} answered {response.status_code}, not as a mesh does", Exit.UNREACHABLE, hint)
    reason = f" ({problem['reason']})" if "reason" in problem else ""
    hint = HINTS.get(kind, "")
    if "retry_after_ms" in problem:
        hint = f"try again in {problem['retry_after_ms'] / 1000:g} s"
    elif kind is Kind.INVALID_PARAMS and operation is not None:
        hint = f"`devmesh call {operation.name} --describe` lists the parameters"
    code = Exit.UNREACHABLE if kind is Kind.UNAVAILABLE else Exit.FAILED
    return Failure(f"{kind}{reason}: {message}", code, hint)


def unreachable(url: str, error: httpx.HTTPError) -> Failure:
    reason = "no answer in time" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
    hint = "start one with `devmesh up`, or say where it is with DEVMESH_URL"
    return Failure(f"the mesh at {url} cannot be reached: {reason}", Exit.UNREACHABLE, hint)


def _path(operation: Operation, remaining: dict[str, Any]) -> str:
    """The operation's path with its parameters in it, which are then taken out of those that remain."""
    path = operation.path
    for name in operation.path_fields:
        value = remaining.pop(name, None)
        if not isinstance(value, str | int) or not _can_stand(str(value), is_slashed=name in operation.slashed):
            remaining[name] = value
            raise _cannot_address(operation, name, {key: item for key, item in remaining.items() if item is not None})
        path = path.replace(f"{{{name}}}", quote(str(value), safe=""))
    return path


def _can_stand(text: str, *, is_slashed: bool) -> bool:
    """Whether a text is one part of an address, and the part that it was meant to be."""
    return text not in ("", ".", "..") and (is_slashed or "/" not in text)


def _cannot_address(operation: Operation, name: str, params: dict[str, Any]) -> Failure:
    """The complaint that the server would have about a parameter without which it cannot be asked."""
    message = f"{name}: it is a part of the address, and cannot be {params.get(name)!r} there"
    try:
        operation.decode(json.dumps(params).encode())
    except MeshError as error:
        message = error.message
    hint = f"`devmesh call {operation.name} --describe` lists the parameters"
    return Failure(f"{Kind.INVALID_PARAMS}: {message}", Exit.FAILED, hint)


def _query(params: Mapping[str, Any]) -> dict[str, list[str]]:
    """Lists by repetition; what is null is left out."""
    items = {name: value if isinstance(value, list) else [value] for name, value in params.items()}
    return {name: [_text(value) for value in values if value is not None] for name, values in items.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
