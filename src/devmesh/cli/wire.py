"""Operations over REST, as the command line uses them: an answer, or the one line that says why there is none.

Method and path come from the registry; what is right and wrong is said by the server.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import httpx

from devmesh.cli.console import Exit, Failure, visible
from devmesh.core.errors import Kind, MeshError
from devmesh.operations.registry import Operation
from devmesh.settings import ClientSettings

PREFIX = "/api/v1"
ANSWER_LIMIT_S = 90.0  # longer than an operation may wait
CONNECT_LIMIT_S = 5.0
MINUTES_FROM_S = 120.0  # of a pause that is told
ADDRESS_CHARACTERS_MAX = 60_000  # without that of the mesh; beyond about that none can be sent
IS_IT_REST = "is DEVMESH_URL the address of a mesh's REST service?"
HINTS = {
    Kind.UNAUTHENTICATED: "DEVMESH_API_KEY says which key is used; `devmesh up` leaves one in its directory",
    Kind.FORBIDDEN: "`devmesh keys new` makes a key with other scopes",
    Kind.UNKNOWN_METHOD: f"{IS_IT_REST} A service that is older than this command may not know it",
}


class Rest:
    """A mesh, reached over REST with one key."""

    def __init__(self, settings: ClientSettings) -> None:
        if settings.api_key is None:
            hint = "set DEVMESH_API_KEY, or run `devmesh up` in this directory: it leaves one in .devmesh/dev.env"
            raise Failure("no key to act with", Exit.USAGE, hint)
        if not re.fullmatch(r"[\x21-\x7e]+", settings.api_key):
            raise Failure("DEVMESH_API_KEY is not a key: one begins with dm_ and has 46 characters", Exit.USAGE)
        self.url = settings.url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {settings.api_key}", "User-Agent": "devmesh-cli"}

    @contextlib.contextmanager
    def reaching(self) -> Iterator[None]:
        """Turns whatever is in the way to the mesh into `Failure`."""
        try:
            yield
        except httpx.HTTPError as error:
            reason = "no answer in time" if isinstance(error, httpx.TimeoutException) else str(error)
            hint = "start one with `devmesh up`, or say where it is with DEVMESH_URL"
            message = f"the mesh at {self.url} cannot be reached: {reason or type(error).__name__}"
            raise Failure(message, Exit.UNREACHABLE, hint) from error
        except (httpx.InvalidURL, UnicodeError) as error:  # the latter of a host that no resolver could be asked for
            hint = "DEVMESH_URL is such as http://127.0.0.1:8081"
            raise Failure(f"there is no such address as {self.url!r}: {error}", Exit.USAGE, hint) from error

    def call(self, operation: Operation, params: Mapping[str, Any]) -> dict[str, Any]:
        """The answer. Raises `Failure` with the error's kind, message and hint."""
        require_sendable(params)
        remaining = dict(params)
        path = _path(operation, remaining)
        takes_body = operation.method not in ("GET", "DELETE")
        query = None if takes_body else _query(remaining)
        if len(path) + len(urlencode(query or {}, doseq=True)) > ADDRESS_CHARACTERS_MAX:
            raise _too_long(operation, params)
        with self.reaching():
            response = httpx.request(
                operation.method,
                self.url + PREFIX + path,
                content=json.dumps(remaining) if takes_body else None,
                params=query,
                headers={**self.headers, **({"Content-Type": "application/json"} if takes_body else {})},
                timeout=httpx.Timeout(ANSWER_LIMIT_S, connect=CONNECT_LIMIT_S),
                trust_env=False,
                verify=self.url.startswith("https:"),  # or it would read all authorities to trust none
            )
        if not response.is_success:
            raise refused(response, operation)
        try:
            answer = response.json()
        except ValueError:
            raise no_mesh(response) from None
        if not isinstance(answer, dict):
            raise no_mesh(response)
        return answer


def require_sendable(params: Mapping[str, Any]) -> None:
    """A shell passes on bytes that are no text, and so do files; where they came in is said here. Raises `Failure`.

    So it is of numbers that Python knows and JSON does not, and of more brackets than can be read.
    """
    for name, value in params.items():
        try:
            json.dumps({name: value}, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise Failure(f"{ascii(name)[1:-1]}: this is not UTF-8 text", Exit.USAGE) from None
        except ValueError:
            raise Failure(f"{visible(name)}: NaN and the infinities are no JSON", Exit.USAGE) from None
        except RecursionError:
            raise Failure(f"{visible(name)}: this is nested too deep", Exit.USAGE) from None


def refused(response: httpx.Response, operation: Operation | None = None) -> Failure:
    """What the server said, in one line."""
    try:
        problem = response.json()
        kind, message = Kind(problem["kind"]), str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        return no_mesh(response)
    reason = f" ({problem['reason']})" if "reason" in problem else ""
    hint = HINTS.get(kind, "")
    if (pause_s := retry_after_s(response)) is not None:
        told = f"{pause_s:g} s" if pause_s < MINUTES_FROM_S else f"{math.ceil(pause_s / 60)} min"
        hint = f"try again in {told}"
    elif kind is Kind.INVALID_PARAMS and operation is not None:
        hint = f"`devmesh call {operation.name} --describe` lists the parameters"
    code = Exit.UNREACHABLE if kind is Kind.UNAVAILABLE else Exit.FAILED
    return Failure(visible(f"{kind}{reason}: {message}"), code, hint, kind=kind)


def retry_after_s(response: httpx.Response) -> float | None:
    """When to try again, if the server has said so."""
    try:
        return float(response.json()["retry_after_ms"]) / 1000
    except (ValueError, KeyError, TypeError):
        return None


def no_mesh(response: httpx.Response) -> Failure:
    """Somebody answered, and it was no mesh."""
    message = f"{response.url} answered {response.status_code}, not as a mesh does"
    return Failure(message, Exit.UNREACHABLE, IS_IT_REST)


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
    return _complaint(
        operation, params, f"{name}: it is a part of the address, and cannot be {params.get(name)!r} there"
    )


def _too_long(operation: Operation, params: Mapping[str, Any]) -> Failure:
    """The same about parameters that no address has room for."""
    given = {name: value for name, value in params.items() if value is not None}
    longest = max(given, key=lambda name: len(str(given[name])))
    return _complaint(operation, given, f"{longest}: it is a part of the address, and too long for one")


def _complaint(operation: Operation, params: dict[str, Any], message: str) -> Failure:
    try:
        operation.decode(json.dumps(params).encode())
    except MeshError as error:
        message = error.message
    hint = f"`devmesh call {operation.name} --describe` lists the parameters"
    return Failure(f"{Kind.INVALID_PARAMS}: {message}", Exit.FAILED, hint, kind=Kind.INVALID_PARAMS)


def _query(params: Mapping[str, Any]) -> dict[str, list[str]]:
    """Lists by repetition; what is null is left out."""
    items = {name: value if isinstance(value, list) else [value] for name, value in params.items()}
    return {name: [_text(value) for value in values if value is not None] for name, values in items.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
