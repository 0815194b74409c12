"""From the parts of an HTTP request to an operation's parameters as JSON: path, query, headers and body.

Nothing is guessed: what stands in two places must say the same, and what the operation does not know is refused by name.
Whether the values are right is for the operation's own decoder to say.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Raw
from starlette.requests import Request

from devmesh.core.depth import require_depth
from devmesh.core.errors import Kind, MeshError, invalid
from devmesh.core.surrogates import half_of_a_character
from devmesh.edges.problem import WRONG_MEDIA_TYPE
from devmesh.operations.registry import Operation, Params, refusal
from devmesh.settings import Settings

ParamsT = TypeVar("ParamsT", bound=Params)

_members = msgspec.json.Decoder(dict[str, Raw])


def from_url(request: Request, shape: type[ParamsT], beside: Mapping[str, Any] | None = None) -> ParamsT:
    """The parameters of a request without a body. A list is given by repetition or with commas. `beside` stands in headers."""
    given = {**_beside_the_body(request, shape), **(beside or {})}
    kinds = _kinds(shape)
    for name, text in request.query_params.multi_items():
        kind = kinds.get(name)
        if kind is list:
            given.setdefault(name, []).extend(text.split(","))
        elif given.setdefault(name, value := _value(text, kind)) != value:
            raise invalid(f"{name[:80]}: given twice, with different values", name[:80])
    try:
        return msgspec.convert(given, shape)
    except msgspec.ValidationError as problem:
        raise refusal(problem) from None


async def refuse_body(request: Request) -> None:
    """Raises when a request has a body whose parameters stand in its URL. Of a body no more is read than its first piece."""
    async for piece in request.stream():
        if piece:
            raise invalid(f"parameters of {request.method} belong into the query; send no body")


async def from_body(request: Request, operation: Operation, settings: Settings, beside: Mapping[str, Any]) -> bytes:
    """The parameters of a request with a body, which is a JSON object; an empty one is `{}`. `beside` stands in headers."""
    body = await _read(request, settings.message_bytes_max)
    if request.query_params:
        name = next(iter(request.query_params))[:80]
        raise invalid(f"{name}: parameters of {request.method} belong into the body", name)
    if not body:
        members = {}
    else:
        _require_json(request)
        members = _decode(body, settings.payload_depth_max)
    for name, said in {**_beside_the_body(request, operation.params), **beside}.items():
        value = Raw(msgspec.json.encode(said))
        if name in members and bytes(members[name]) != bytes(value):
            raise invalid(f"{name}: the body says otherwise than the path or the header", name)
        members[name] = value
    return msgspec.json.encode(members)


def _beside_the_body(request: Request, shape: type[Params]) -> dict[str, Any]:
    """What stands in the path, and the idempotency key, which is a header by custom."""
    found: dict[str, Any] = dict(request.path_params)
    key = request.headers.get("idempotency-key")
    if key is not None and "idempotency_key" in shape.__struct_fields__:
        found["idempotency_key"] = key
    return found


async def _read(request: Request, bytes_max: int) -> bytes:
    """The body. What it really has is counted: its announced length may be missing or a lie."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > bytes_max:
            raise MeshError(Kind.TOO_LARGE, f"a body has {bytes_max} bytes at the most")
    return bytes(body)


def _require_json(request: Request) -> None:
    media_type, _, rest = request.headers.get("content-type", "application/json").lower().partition(";")
    charset = rest.partition("charset=")[2].partition(";")[0].strip().strip('"')
    is_json = media_type.strip() == "application/json" or media_type.strip().endswith("+json")
    if not is_json or charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise _wrong_media_type("send the parameters as JSON in UTF-8, with `Content-Type: application/json`")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise _wrong_media_type("send the body as it is, without a Content-Encoding")


def _wrong_media_type(message: str) -> MeshError:
    return MeshError(Kind.INVALID_REQUEST, message, reason=WRONG_MEDIA_TYPE)


def _decode(body: bytes, depth_max: int) -> dict[str, Raw]:
    """The members of an object, each still the JSON that it came as. Of a member that comes twice the last counts."""
    require_depth(body, depth_max)
    try:
        body.decode()  # members that stay Raw are not looked into, so that nobody else would notice
        return _members.decode(body)
    except msgspec.ValidationError:
        raise invalid("the body must be a JSON object") from None
    except UnicodeDecodeError:
        raise MeshError(Kind.PARSE_ERROR, "the body is not UTF-8") from None
    except RecursionError:  # what is well-formed and so deep has been refused above
        raise MeshError(Kind.PARSE_ERROR, "the body is not well-formed: its brackets do not match") from None
    except msgspec.DecodeError as problem:
        why = half_of_a_character(body) or problem
        raise MeshError(Kind.PARSE_ERROR, f"the body is not well-formed: {why}") from None


def _value(text: str, kind: type | None) -> Any:
    """The number or truth value that a text stands for. One that is none, as in JSON, is left for the operation to refuse."""
    if kind is None:
        return text
    try:
        value: Any = msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError:
        return text
    return value if not isinstance(value, float) or math.isfinite(value) else text


@functools.cache
def _kinds(shape: type[Params]) -> dict[str, type]:
    """The fields that are more than texts in a URL: lists, numbers and truth values."""
    described = msgspec.inspect.type_info(shape)
    assert isinstance(described, msgspec.inspect.StructType)
    found = {field.name: _kind(field.type) for field in described.fields}
    return {name: kind for name, kind in found.items() if kind is not None}


def _kind(described: msgspec.inspect.Type) -> type | None:
    match described:
        case msgspec.inspect.UnionType():
            return next(filter(None, map(_kind, described.types)), None)
        case msgspec.inspect.ListType():
            return list
        case msgspec.inspect.BoolType():
            return bool
        case msgspec.inspect.IntType():
            return int
        case msgspec.inspect.FloatType():
            return float
        case _:
            return None
