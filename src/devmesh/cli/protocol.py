"""docs/protocol.md, from what is declared: operations, methods of a session, events, errors, close codes, limits.

Pure: the same program writes the same page. What cannot be made from a declaration is prose, in protocol_page.md.
"""

from __future__ import annotations

import ast
import inspect
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from devmesh import core, operations
from devmesh.cli.markdown import table
from devmesh.cli.shapes import fields, structs_in
from devmesh.core import errors, events
from devmesh.core.errors import Kind
from devmesh.edges import session, websocket
from devmesh.operations.registry import REGISTRY, Operation
from devmesh.settings import Settings

TEMPLATE = Path(__file__).with_name("protocol_page.md")
FILLED_IN = "…"  # what stands for something in a message that is known only then
EVERY_OPERATION_MAY = (
    Kind.INVALID_PARAMS, Kind.UNAUTHENTICATED, Kind.FORBIDDEN, Kind.RATE_LIMITED, Kind.TOO_LARGE, Kind.UNAVAILABLE,
    Kind.TIMEOUT, Kind.INTERNAL,
)  # fmt: skip
COUNTED = ("issuer.create", "schedule.create", "snapshot.create")  # a tenant has so many of these at the most
CLOSE_CODES = {
    1007: "a text frame was no UTF-8",
    1009: "a message was so much too long that it was not read: more than four times the longest that is taken",
    websocket.CLOSE_GOING_AWAY: "the server is going away: connect to another, or again, and resume",
    websocket.CLOSE_CREDENTIAL: "the key was revoked, has expired, or its tenant was suspended",
    websocket.CLOSE_NOT_INITIALIZED: "no `initialize` came in time",
    websocket.CLOSE_SLOW_CONSUMER: "events came faster than they were read: reconnect and resume",
}
LIMITS = (
    "message_bytes_max", "request_batch_max", "payload_depth_max", "subscriptions_per_connection_max",
    "outbox_bytes_max", "requests_in_flight_max", "rate_per_key_per_s", "rate_per_tenant_per_s",
    "connections_per_tenant_max", "initialize_timeout_s", "ping_interval_s", "transaction_deadline_s",
    "auth_failures_per_minute_max", "auth_lockout_s",
)  # fmt: skip


def page() -> str:
    operations.load_all()
    declared = sorted(REGISTRY.values(), key=lambda operation: operation.name)
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        session_methods=_session_methods(),
        events=table(("event", "says that"), [(f"`{name}`", text) for name, text in events.TYPES.items()]),
        every_error=", ".join(f"`{kind}`" for kind in EVERY_OPERATION_MAY),
        errors=_errors(),
        error_data=_fields(errors.ErrorData),
        reasons=table(("reason", "message"), sorted(set(_reasons()))),
        close_codes=table(("code", "means"), [(str(code), text) for code, text in sorted(CLOSE_CODES.items())]),
        limits=_limits(),
        operations="\n\n".join(_operation(operation) for operation in declared),
        things=_things(
            [struct for operation in declared for struct in (operation.params, operation.result)]
            + [session.Initialize, session.Initialized]
        ),
    )


def _operation(operation: Operation) -> str:
    paragraphs = [f"### `{operation.name}`", operation.summary]
    if operation.description:
        paragraphs.append(operation.description)
    facts = [f"`{operation.method} /api/v1{operation.path}`", f"scope `{operation.scope}`"]
    if operation.audited:
        facts.append("recorded in the audit log")
    if operation.secret:
        facts.append(f"`{operation.secret}` is shown this once")
    paragraphs += [" · ".join(facts), _fields(operation.params), f"Answers {_answer(operation.result)}"]
    if own := _own_errors(operation):
        paragraphs.append("May also answer " + ", ".join(f"`{kind}`" for kind in own) + ".")
    return "\n\n".join(paragraphs)


def _own_errors(operation: Operation) -> list[Kind]:
    """By what an operation takes: a thing that it names may be missing, a change may be in conflict or be repeated."""
    taken = [operation.params, *structs_in(operation.params)]
    refers = any(
        name.endswith("_id") or name in ("agent", "to_agent", "assign", "depends_on")
        for struct in taken
        for name in struct.__struct_fields__
    )
    found = [Kind.NOT_FOUND] if operation.path_fields or (operation.mutates and refers) else []
    if operation.mutates:
        quota = [Kind.QUOTA_EXCEEDED] if operation.name in COUNTED else []
        return [*found, Kind.CONFLICT, *quota, Kind.IDEMPOTENCY_MISMATCH]
    # Of an inbox for whoever is no agent, and of a search by vectors that nobody makes.
    is_choosy = not {"topics", "by"}.isdisjoint(operation.params.__struct_fields__)
    return [*found, Kind.CONFLICT] if is_choosy else found


def _answer(result: type[msgspec.Struct]) -> str:
    text = "`{" + ", ".join(f"{field.name}: {field.shape}" for field in fields(result)) + "}`"
    return f"{text}. {_own_doc(result)}".rstrip(". ") + "."


def _session_methods() -> str:
    """The methods of the connection itself, which are no operations."""
    sections = [_session_method("initialize", session.Initialize, session.Initialized, "")]
    for name, method in session.METHODS.items():
        sections.append(_session_method(name, method.params, method.result, inspect.getdoc(method.handler) or ""))
    return "\n\n".join(sections)


def _session_method(name: str, params: type[msgspec.Struct], result: type[msgspec.Struct], text: str) -> str:
    paragraphs = (f"### `{name}`", text or _own_doc(params), _fields(params), f"Answers {_answer(result)}")
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _errors() -> str:
    rows = [
        (f"`{kind}`", str(row.code), str(row.http_status), "yes" if row.retryable else "no")
        for kind, row in errors.TABLE.items()
    ]
    return table(("kind", "JSON-RPC code", "HTTP status", "worth trying again as it is"), rows)


def _reasons() -> Iterator[tuple[str, str]]:
    """Every reason of a conflict with its message, read from the calls that raise it."""
    sources = [path for package in (core, operations) for path in Path(package.__path__[0]).glob("*.py")]
    trees = [ast.parse(source.read_text(encoding="utf-8")) for source in sorted(sources)]
    named = dict(_constants(trees))
    for tree in trees:
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="conflict") | ast.Name(id="conflict"), args=[reason, message, *_]
                ) if (known := _words(reason, named)) != FILLED_IN:
                    yield f"`{known}`", _words(message, named)


def _constants(trees: Iterable[ast.Module]) -> Iterator[tuple[str, str]]:
    """The texts that have a name at the top of a module."""
    for tree in trees:
        for node in tree.body:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))) if name.isupper():
                    yield name, text


def _words(message: ast.expr, named: Mapping[str, str]) -> str:
    """A message as it is written, `…` for what is filled in."""
    match message:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_words(part, named) for part in values)
        case ast.Name(id=name):
            return named.get(name, FILLED_IN)
    return FILLED_IN


def _limits() -> str:
    shown = {setting.name.removeprefix("DEVMESH_").lower(): setting for setting in Settings().describe()}
    rows = [
        (shown[name].meaning, f"{shown[name].default} {shown[name].unit}", f"`{shown[name].name}`") for name in LIMITS
    ]
    return table(("limit", "unless set otherwise", "setting"), rows)


def _things(roots: Sequence[type[msgspec.Struct]]) -> str:
    """The structs that parameters and answers are made of, each once."""
    structs: dict[str, type[msgspec.Struct]] = {}
    for struct in (struct for root in roots for struct in structs_in(root)):
        other = structs.setdefault(struct.__name__, struct)
        assert fields(other) == fields(struct), f"{other} and {struct} differ, and the page would have one of them"
    sections = []
    for name, struct in sorted(structs.items()):
        paragraphs = (f"### {name}", _own_doc(struct), _fields(struct))
        sections.append("\n\n".join(paragraph for paragraph in paragraphs if paragraph))
    return "\n\n".join(sections)


def _fields(struct: type[msgspec.Struct]) -> str:
    rows = [
        (f"`{field.name}`", field.shape, {None: "", "": "left out"}.get(field.default, f"`{field.default}`"))
        for field in fields(struct)
    ]
    return table(("name", "what it is", "default"), rows) if rows else ""


def _own_doc(struct: type[msgspec.Struct]) -> str:
    return inspect.cleandoc(struct.__doc__ or "")
