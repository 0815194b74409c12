"""One registry of operations. What is declared here appears on every wire: WebSocket, REST, OpenAPI, CLI, reference.

An operation's body gets the calls of one tenant as a list and gives each its own outcome; `single` lifts a body that
thinks of one call. A body knows no wire, opens no transaction and never sleeps.
"""

from __future__ import annotations

import inspect
import re
import uuid
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from devmesh.core import errors
from devmesh.core.access import Caller, Scope
from devmesh.core.names import IdempotencyKey
from devmesh.operations.work import Work

ParamsT = TypeVar("ParamsT", bound=msgspec.Struct)


class Params(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The parameters of an operation that only reads."""


class Mutation(Params, kw_only=True):
    """The parameters of an operation that changes something."""

    idempotency_key: IdempotencyKey | None = None
    """For 24 h the same key and parameters give the same stored answer."""


class Call(msgspec.Struct, Generic[ParamsT], frozen=True):
    """One caller's wish, as a body sees it."""

    caller: Caller
    params: ParamsT


class NotYet(msgspec.Struct, frozen=True):
    """An outcome that may still change if the caller is willing to wait; `result` is its answer when it is not."""

    result: msgspec.Struct
    wait_ms: int


Outcome = msgspec.Struct | errors.MeshError | NotYet
Body = Callable[[Work, Sequence[Call[Any]]], Awaitable[Sequence[Outcome]]]


class Operation(msgspec.Struct, frozen=True):
    name: str
    params: type[Params]
    result: type[msgspec.Struct]
    scope: Scope
    method: str  # HTTP
    path: str  # below /api/v1; {fields} in it are parameters
    summary: str
    description: str
    body: Body
    batch_max: int | None  # None: the setting; 1: not batched
    subject: Callable[[Call[Any]], Hashable] | None
    audited: bool
    secret: str | None  # the field of the result that is shown once and never stored
    decoder: msgspec.json.Decoder[Any]

    @property
    def mutates(self) -> bool:
        return "idempotency_key" in self.params.__struct_fields__

    @property
    def path_fields(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.path)

    def decode(self, raw: bytes | msgspec.Raw) -> Any:
        """The parameters, or invalid_params that names the field."""
        try:
            params = self.decoder.decode(raw)
            if _HUGE_NUMBER.search(raw):
                # A caller's own JSON is passed on as it came, so it must be such that every codec can carry it.
                msgspec.msgpack.encode(msgspec.json.decode(raw))
            return params
        except msgspec.ValidationError as problem:
            raise refusal(problem) from None
        except OverflowError:
            raise errors.invalid("an integer does not fit into 64 bits") from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise errors.invalid("the parameters are not well-formed JSON") from None
        except RecursionError:
            raise errors.invalid("the parameters are nested too deeply") from None


_HUGE_NUMBER = re.compile(rb"[0-9]{19}|[0-9.][eE]\+?[0-9]{3}")  # what may not fit into 64 bits, or be mistaken for such
REGISTRY: dict[str, Operation] = {}


def refusal(problem: msgspec.ValidationError) -> errors.MeshError:
    """msgspec's complaint in the caller's terms: `... - at `$.priority`` becomes the field `priority`."""
    message, _, place = str(problem).partition(" - at `$")
    unknown = re.search(r"unknown field `(\w+)`|missing required field `(\w+)`", message)
    field = place.rstrip("`").lstrip(".") or (next(filter(None, unknown.groups())) if unknown else None)
    return errors.invalid(f"{field}: {message}" if place and field else message, field)


def operation(
    name: str,
    *,
    scope: Scope,
    http: str,
    single: bool = False,
    subject: Callable[[Call[Any]], Hashable] | None = None,
    audited: bool = False,
    secret: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declares an operation. The body's annotations give its types: `calls: Sequence[Call[P]]` or `call: Call[P]`, and a
    return of `Sequence[R | MeshError]` or `R`. Its docstring is the reference's text."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        params, result = _types_of(function)
        method, path = http.split(" ")
        summary, _, description = inspect.cleandoc(function.__doc__ or "").partition("\n")
        assert summary, f"operation {name} has no docstring"
        assert name not in REGISTRY, f"operation {name} is declared twice"
        REGISTRY[name] = Operation(
            name=name,
            params=params,
            result=result,
            scope=scope,
            method=method,
            path=path,
            summary=summary,
            description=description.strip(),
            body=_each(function) if single else function,
            batch_max=1 if single else None,
            subject=subject,
            audited=audited,
            secret=secret,
            decoder=msgspec.json.Decoder(params),
        )
        return function

    return declare


def _each(function: Callable[[Work, Call[Any]], Awaitable[Outcome]]) -> Body:
    async def body(work: Work, calls: Sequence[Call[Any]]) -> Sequence[Outcome]:
        return [await function(work, call) for call in calls]

    return body


def _types_of(function: Callable[..., Any]) -> tuple[type[Params], type[msgspec.Struct]]:
    """The parameter and result structs that a body's annotations name."""
    import typing

    hints = typing.get_type_hints(function)
    returned = _structs_in(hints.pop("return"))
    params = [found for hint in hints.values() for found in _structs_in(hint) if issubclass(found, Params)]
    results = [found for found in returned if found is not NotYet]
    assert len(params) == 1, f"{function.__name__} must take calls of one parameter type, not {params}"
    assert len(results) == 1, f"{function.__name__} must return one result type, not {results}"
    return params[0], results[0]


def _structs_in(hint: Any) -> list[type[msgspec.Struct]]:
    import typing

    if isinstance(hint, type) and issubclass(hint, msgspec.Struct) and hint is not Call:
        return [hint]
    return [found for inner in typing.get_args(hint) for found in _structs_in(inner)]


def subject_of(field: str) -> Callable[[Call[Any]], Hashable]:
    """The row that a call changes is the one that this parameter names."""

    def subject(call: Call[Any]) -> uuid.UUID:
        found: uuid.UUID = getattr(call.params, field)
        return found

    return subject
