"""How messages look on the WebSocket: JSON in text frames, or MessagePack in binary frames, made from the same structs.

What operations take and give is JSON; the MessagePack codec translates it at the edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
from msgspec import Raw

from devmesh.core import errors
from devmesh.core.errors import WireError
from devmesh.core.events import Event
from devmesh.core.numbers import may_be_infinite, not_finite


class Request(msgspec.Struct):
    """A JSON-RPC request, or a notification when it has no id. Parts are Raw: what they may be is asked later."""

    jsonrpc: str
    method: str
    params: Raw = Raw(b"{}")
    id: str | int | float | msgspec.UnsetType | None = msgspec.UNSET


class Codec(Protocol):
    """One of the two ways to write a message."""

    name: str
    subprotocol: str
    is_text: bool

    def parts(self, message: bytes) -> list[bytes | Raw] | None:
        """The members of a batch, or None when the message is not one. Raises msgspec.DecodeError."""

    def request(self, message: bytes | Raw) -> Request:
        """Raises msgspec.ValidationError for what is no request, msgspec.DecodeError for what is not even well-formed."""

    def params(self, raw: Raw) -> bytes | Raw:
        """A request's parameters as JSON. Raises invalid_params for what JSON cannot hold."""

    def result(self, request_id: object, result: bytes | Raw) -> bytes: ...
    def error(self, request_id: object, error: WireError) -> bytes: ...
    def batch(self, replies: Sequence[bytes]) -> bytes: ...
    def event(self, event: Event, cursor: str) -> bytes: ...
    def frame(self, encoded: Sequence[bytes], cursor: str) -> bytes: ...


class _WireEvent(msgspec.Struct):
    type: str
    topic: str
    at: object
    data: object
    cursor: str


_json = msgspec.json.Encoder()
_msgpack = msgspec.msgpack.Encoder(uuid_format="canonical")
_json_request = msgspec.json.Decoder(Request)
_json_parts = msgspec.json.Decoder(list[Raw])
_msgpack_request = msgspec.msgpack.Decoder(Request)
_msgpack_parts = msgspec.msgpack.Decoder(list[Raw])
MSGPACK_ARRAYS = (*range(0x90, 0xA0), 0xDC, 0xDD)  # the first byte of an array


class JsonCodec:
    name, subprotocol, is_text = "json", "devmesh.v1.json", True

    def parts(self, message: bytes) -> list[bytes | Raw] | None:
        return [*_json_parts.decode(message)] if message.lstrip()[:1] == b"[" else None

    def request(self, message: bytes | Raw) -> Request:
        return _json_request.decode(message)

    def params(self, raw: Raw) -> bytes | Raw:
        return raw

    def result(self, request_id: object, result: bytes | Raw) -> bytes:
        return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (_json.encode(request_id), result)

    def error(self, request_id: object, error: WireError) -> bytes:
        return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (_json.encode(request_id), _json.encode(error))

    def batch(self, replies: Sequence[bytes]) -> bytes:
        return b"[" + b",".join(replies) + b"]"

    def event(self, event: Event, cursor: str) -> bytes:
        return _json.encode(_WireEvent(event.type, event.topics[0], event.at, Raw(event.data.encode()), cursor))

    def frame(self, encoded: Sequence[bytes], cursor: str) -> bytes:
        opening = b'{"jsonrpc":"2.0","method":"events","params":{"cursor":"%b","events":[' % cursor.encode()
        return opening + b",".join(encoded) + b"]}}"


class MsgpackCodec:
    name, subprotocol, is_text = "msgpack", "devmesh.v1.msgpack", False

    def parts(self, message: bytes) -> list[bytes | Raw] | None:
        return [*_msgpack_parts.decode(message)] if message[:1] and message[0] in MSGPACK_ARRAYS else None

    def request(self, message: bytes | Raw) -> Request:
        return _msgpack_request.decode(message)

    def params(self, raw: Raw) -> bytes | Raw:
        if bytes(raw) == b"{}":
            return raw
        value = msgspec.msgpack.decode(raw)
        if may_be_infinite(raw) and (number := not_finite(value)) is not None:
            raise errors.invalid(f"the parameters hold {number}, which is no number in JSON")
        return _json.encode(value)

    def result(self, request_id: object, result: bytes | Raw) -> bytes:
        return _msgpack.encode({"jsonrpc": "2.0", "id": request_id, "result": msgspec.json.decode(result)})

    def error(self, request_id: object, error: WireError) -> bytes:
        return _msgpack.encode({"jsonrpc": "2.0", "id": request_id, "error": error})

    def batch(self, replies: Sequence[bytes]) -> bytes:
        return _msgpack.encode([Raw(reply) for reply in replies])

    def event(self, event: Event, cursor: str) -> bytes:
        at = msgspec.json.decode(_json.encode(event.at))  # times are text on every wire
        return _msgpack.encode(_WireEvent(event.type, event.topics[0], at, msgspec.json.decode(event.data), cursor))

    def frame(self, encoded: Sequence[bytes], cursor: str) -> bytes:
        params = {"cursor": cursor, "events": [Raw(piece) for piece in encoded]}
        return _msgpack.encode({"jsonrpc": "2.0", "method": "events", "params": params})


CODECS: dict[str, Codec] = {codec.subprotocol: codec for codec in (JsonCodec(), MsgpackCodec())}
JSON = CODECS["devmesh.v1.json"]
