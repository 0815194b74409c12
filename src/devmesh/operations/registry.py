"""One registry of operations. What is declared here appears on every wire: WebSocket, REST, OpenAPI, CLI, reference.

An operation's body gets the calls of one tenant as a list and gives each its own outcome; `single` lifts a body that
thinks of one call. A body knows no wire, opens no transaction and never sleeps.
"""

from __future__ import annotations

import datetime
import functools
import inspect
import re
import uuid
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import msgspec

from devmesh.core import errors
from devmesh.core.access import Caller, Scope
from devmesh.core.events import Concern
from devmesh.core.names import IN_WORDS, IdempotencyKey, Version
from devmesh.operations.recall import Recall
from devmesh.operations.work import Work

ENTRY_MAX = 100  # characters of a name that are told
ParamsT = TypeVar("ParamsT", bound=msgspec.Struct)


class Params(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The parameters of an operation that only reads."""

    together: ClassVar[tuple[dict[str, Any], ...]] = ()
    """JSON Schemas that hold for several fields together, for the document; the body sees to them."""


def one_given(*alternatives: dict[str, Any]) -> dict[str, Any]:
    """The rule that exactly one of these holds: each names the field that is given (`...`), and what others are then."""
    exclusive = [name for each in alternatives for name, value in each.items() if value is ...]
    wanted = [
        {name: {"type": "null"} for name in exclusive}
        | {name: {"not": {"type": "null"}} if value is ... else {"const": value} for name, value in each.items()}
        for each in alternatives
    ]
    required = [list(each) for each in alternatives]
    return {
        "oneOf": [{"required": names, "properties": fields} for names, fields in zip(required, wanted, strict=True)]
    }


def only_with(key: str, **alone: dict[str, Any]) -> dict[str, Any]:
    """The rule that some fields mean something beside another one only: `alone` says what each of them is without it."""
    return {"anyOf": [{"properties": alone}, {"required": [key], "properties": {key: {"not": {"type": "null"}}}}]}


class Mutation(Params, kw_only=True):
    """The parameters of an operation that changes something."""

    idempotency_key: IdempotencyKey | None = None
    """For 24 h the same key and parameters give the same stored answer."""


class Change(Mutation, kw_only=True):
    """The parameters of an operation that changes one thing which has a version."""

    if_version: Version | None = None
    """Change it only while it has this version. Over HTTP also `If-Match`."""


class Call(msgspec.Struct, Generic[ParamsT], frozen=True):
    """One caller's wish, as a body sees it."""

    caller: Caller
    params: ParamsT
    found: Any = None
    """What the operation's `ahead` has found out, outside of any transaction."""


class NotYet(msgspec.Struct, frozen=True):
    """An outcome that may still change if the caller is willing to wait; `result` is its answer when it is not.

    `again_s`: when to look again though nothing rang; None: after the usual interval.
    """

    result: msgspec.Struct
    wait_ms: int
    again_s: float | None = None


Outcome = msgspec.Struct | errors.MeshError | NotYet
Body = Callable[[Work, Sequence[Call[Any]]], Awaitable[Sequence[Outcome]]]
Ahead = Callable[[Recall, Call[Any]], Awaitable[Call[Any]]]


class Key(NamedTuple):
    """An idempotency key of a batch: the ordinal of its call, and the hash of what that asks for."""

    ordinal: int
    hash: bytes


# The answers to a batch; None: nothing was done, and the body is to do it.
AtOnce = Callable[[Work, Sequence[Call[Any]], Mapping[str, Key]], Awaitable[Sequence[msgspec.Raw] | None]]


class Operation(msgspec.Struct, frozen=True):
    name: str
    params: type[Params]
    result: type[msgspec.Struct]
    scope: Scope
    method: str  # HTTP
    path: str  # below /api/v1; {fields} in it are parameters
    slashed: frozenset[str]  # those of them that may hold slashes
    summary: str
    description: str
    body: Body
    batch_max: int | None  # None: the setting; 1: not batched
    subject: Callable[[Call[Any]], Hashable] | None
    audited: bool
    waits_for: Concern  # what lets a call look again that was answered NotYet
    hurries: bool  # its calls go beside each other: in one batch they would save nothing, or one is as much as a batch
    in_hand: bool  # goes on with work that was begun: under overload it is let in before what is new
    secret: str | None  # the field of the result that is shown once and never stored
    reads_clock: bool  # whether its body looks at work.now; one that seldom does awaits work.clock() where it does
    ahead: Ahead | None  # asks what is outside of PostgreSQL, before the transaction
    at_once: AtOnce | None  # does a batch in one round trip, keys and all
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
            params = self._read(raw)
            text = bytes(raw)
            if _may_hold_huge_number(text):
                _require_numbers_that_fit(raw)
            if any(year in text for year in _EDGES_OF_TIME):
                _require_times_within(params)
            return params
        except msgspec.ValidationError as problem:
            raise refusal(problem, functools.partial(self._entry_of, raw)) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise errors.invalid("the parameters are not well-formed JSON") from None
        except RecursionError:
            raise errors.invalid("the parameters are nested too deeply") from None

    def _entry_of(self, raw: bytes | msgspec.Raw, field: str, problem: msgspec.ValidationError) -> str | None:
        """The first name in an object of names and values which, alone there, meets with the same refusal."""
        try:
            entries = _members.decode(_members.decode(raw)[field])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # behind what is refused
            return None
        for name, value in entries.items():
            try:
                self.decoder.decode(msgspec.json.encode({field: {name: value}}))
            except msgspec.ValidationError as again:
                if str(again) == str(problem):
                    return name
        return None

    def _read(self, raw: bytes | msgspec.Raw) -> Any:
        try:
            return self.decoder.decode(raw)
        except msgspec.ValidationError as problem:
            if "got `float`" not in str(problem):
                raise
            return _with_whole_numbers(self.params, raw, problem)


def _require_numbers_that_fit(raw: bytes | msgspec.Raw) -> None:
    """A caller's own JSON is passed on as it came, so it must be such that every codec can carry it."""
    for name, value in _members.decode(raw).items():
        try:
            msgspec.msgpack.encode(msgspec.json.decode(value))
        except OverflowError:
            raise errors.invalid(f"{name}: an integer does not fit into 64 bits", name) from None
        except msgspec.ValidationError:
            raise errors.invalid(f"{name}: a number is larger than any that is kept", name) from None


def _require_times_within(params: msgspec.Struct, place: str = "") -> None:
    for field in params.__struct_fields__:
        value = getattr(params, field)
        if isinstance(value, datetime.datetime) and value.year in (datetime.MINYEAR, datetime.MAXYEAR):
            raise errors.invalid(f"{place}{field}: give a time between the years 2 and 9998", f"{place}{field}")
        for ordinal, inner in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(inner, msgspec.Struct):
                _require_times_within(
                    inner, f"{place}{field}[{ordinal}]." if inner is not value else f"{place}{field}."
                )


def _with_whole_numbers(
    shape: type[Params], raw: bytes | msgspec.Raw, problem: msgspec.ValidationError
) -> msgspec.Struct:
    """A whole number may be written as 2.0: in JSON it is the same one. Nothing else is read into what was given."""
    try:
        params = msgspec.json.decode(raw, type=shape, strict=False)
    except msgspec.ValidationError:
        raise problem from None
    if not _is_same(msgspec.json.decode(raw), msgspec.json.decode(msgspec.json.encode(params))):
        raise problem
    return params


def _is_same(given: Any, taken: Any) -> bool:
    """Whether everything that was given was taken as what it is: a number as a number, a text as a text."""
    if isinstance(given, dict):
        return isinstance(taken, dict) and all(name in taken and _is_same(given[name], taken[name]) for name in given)
    if isinstance(given, list):
        return isinstance(taken, list) and len(given) == len(taken) and all(map(_is_same, given, taken))
    if isinstance(given, str):
        return isinstance(taken, str)
    if given is None or isinstance(given, bool):
        return given is taken
    return not isinstance(taken, str | bool) and bool(given == taken)


def _may_hold_huge_number(text: bytes) -> bool:
    """Whether there is what may not fit into 64 bits, or be mistaken for such. Most texts are not searched digit by digit."""
    plain = text.translate(_DIGITS)
    if _HUGE_INTEGER in plain:
        return True
    return any(sign in plain for sign in _SIGNS_OF_HUGE_EXPONENTS) and _HUGE_EXPONENT.search(text) is not None


_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_HUGE_INTEGER = b"0" * 19
_SIGNS_OF_HUGE_EXPONENTS = (b"e000", b"E000", b"e+000", b"E+000")  # in every other UUID, too, where no number begins
_HUGE_EXPONENT = re.compile(rb"[:\[,\s]-?[0-9]+(?:\.[0-9]+)?[eE]\+?[0-9]{3}")
_EDGES_OF_TIME = (b'"0000-', b'"0001-', b'"9999-')  # in another zone these years would be out of the calendar
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
REGISTRY: dict[str, Operation] = {}


def refusal(
    problem: msgspec.ValidationError, entry_of: Callable[[str, msgspec.ValidationError], str | None] | None = None
) -> errors.MeshError:
    """msgspec's complaint in the caller's terms: `... - at `$.priority`` becomes the field `priority`.

    `entry_of` finds the name of the entry that it is about, of a field whose value is an object of any names.
    """
    message, _, place = str(problem).partition(" - at `")
    is_name = place.startswith("key` in `")
    field = place.removeprefix("key` in `").rstrip("`").removeprefix("$").lstrip(".")
    for pattern, in_words in IN_WORDS.items():
        if message.endswith(f"matching regex {pattern!r}"):
            message = f"expected {in_words}"
    unknown = re.search(r"unknown field `(\w+)`|missing required field `(\w+)`", message)
    outer = field.removesuffix("[...]")
    is_entry = (is_name or outer != field) and outer.isidentifier()
    if is_entry and entry_of is not None and (entry := entry_of(outer, problem)) is not None:
        field = f"{outer}.{entry[:ENTRY_MAX]}"
    if is_name:
        message = f"as a name, {message[:1].lower()}{message[1:]}"
    if not field:
        return errors.invalid(message, next(filter(None, unknown.groups())) if unknown else None)
    return errors.invalid(f"{field}: {message}", field)


def operation(
    name: str,
    *,
    scope: Scope,
    http: str,
    single: bool = False,
    subject: Callable[[Call[Any]], Hashable] | None = None,
    audited: bool = False,
    waits_for: Concern = Concern.TASKS,
    hurries: bool = False,
    in_hand: bool = False,
    secret: str | None = None,
    reads_clock: bool = True,
    ahead: Ahead | None = None,
    at_once: AtOnce | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declares an operation. The body's annotations give its types: `calls: Sequence[Call[P]]` or `call: Call[P]`, and a
    return of `Sequence[R | MeshError]` or `R`. Its docstring is the reference's text. `http` is a method and a path; a
    `{field:path}` in it may hold slashes: what follows it tells such paths apart."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        params, result = _types_of(function)
        method, route = http.split(" ")
        summary, _, description = inspect.cleandoc(function.__doc__ or "").partition("\n")
        assert summary, f"operation {name} has no docstring"
        assert name not in REGISTRY, f"operation {name} is declared twice"
        assert at_once is None or not (audited or secret), (
            f"operation {name} would leave no audit row, or store a secret"
        )
        REGISTRY[name] = Operation(
            name=name,
            params=params,
            result=result,
            scope=scope,
            method=method,
            path=route.replace(":path}", "}"),
            slashed=frozenset(re.findall(r"{(\w+):path}", route)),
            summary=summary,
            description=description.strip(),
            body=_each(function) if single else function,
            batch_max=1 if single else None,
            subject=subject,
            audited=audited,
            waits_for=waits_for,
            hurries=hurries,
            in_hand=in_hand,
            secret=secret,
            reads_clock=reads_clock,
            ahead=ahead,
            at_once=at_once,
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
