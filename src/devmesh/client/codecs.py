"""The two ways to write a message, JSON in text frames or MessagePack in binary ones: the same structs either way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import Raw
from websockets import Subprotocol

from devmesh.client import jsons
from devmesh.client.errors import MeshError
from devmesh.core.errors import Kind

T = TypeVar("T")
CodecName = Literal["json", "msgpack"]
NOTHING = Raw(b"")


class Message(msgspec.Struct):
    """What the server sends: a reply, which has an id, or the notification `events`. The rest is decoded when it is known."""

    id: int | None = None
    method: str | None = None
    params: Raw = NOTHING
    result: Raw = NOTHING
    error: Raw = NOTHING


class _Request(msgspec.Struct):
    id: int
    method: str
    params: Mapping[str, Any]
    jsonrpc: str = "2.0"


class _Module(Protocol):
    """msgspec.json or msgspec.msgpack."""

    def encode(self, obj: Any, /) -> bytes: ...
    def decode(self, buf: Any, /, *, type: type[T]) -> T: ...  # noqa: A002  this is what msgspec calls it


class Codec(NamedTuple):
    subprotocol: Subprotocol
    is_text: bool
    module: _Module

    def request(self, request_id: int, method: str, params: Mapping[str, Any]) -> bytes:
        """Raises MeshError when the parameters hold something that no message can carry."""
        encode = jsons.encode if self.is_text else self.module.encode
        try:
            return encode(_Request(request_id, method, params))
        except jsons.NO_JSON as problem:
            raise unsendable(method, problem) from None

    def decode(self, data: bytes | Raw, shape: type[T]) -> T:
        """Raises msgspec.MsgspecError."""
        return self.module.decode(data, type=shape)


def unsendable(method: str, problem: Exception) -> MeshError:
    if isinstance(problem, jsons.NotFinite):  # which the server would say itself
        return MeshError(Kind.INVALID_PARAMS, f"the parameters hold {problem.number}, which is no number in JSON")
    return MeshError(Kind.INVALID_PARAMS, f"the parameters of {method} cannot be encoded: {problem}")


CODECS: dict[CodecName, Codec] = {
    "json": Codec(Subprotocol("devmesh.v1.json"), True, msgspec.json),
    "msgpack": Codec(Subprotocol("devmesh.v1.msgpack"), False, msgspec.msgpack),
}


def check_codec(name: str) -> None:
    """Raises ValueError for what is no codec's name."""
    if name not in CODECS:
        raise ValueError(f"codec: expected one of {', '.join(CODECS)}, and not {name!r}")
