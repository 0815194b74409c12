"""The OpenAPI document, made from the registry: what is declared there is described here, and nothing else is.

Every bound in it is one that is enforced, and every status one that can be answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from devmesh import __version__
from devmesh.core.events import CursorText
from devmesh.core.names import IdempotencyKey
from devmesh.edges import preconditions, problem, sse
from devmesh.operations.registry import REGISTRY, Operation, Params

PREFIX = "/api/v1"
EVENTS_PATH = f"{PREFIX}/events"
METHODS_WITH_BODY = ("POST", "PUT", "PATCH")

Json = dict[str, Any]

DESCRIPTION = """\
Every operation of DevMesh over HTTP. The WebSocket serves the same ones, with the same parameters, answers and errors.

* Times are RFC 3339 in UTC with microseconds, left out when zero; durations are numbers with their unit in the name; ids are
  UUIDs.
* Lists are paged: give `next_cursor` back as `cursor`. A parameter that is a list is repeated, or has commas.
* An error is a problem document (RFC 9457): `kind` and `reason` are for programs, `detail` is for people.
* A request with an `Idempotency-Key` may be repeated for 24 hours: it is done once and always gets the same answer.
* `X-Request-Id` comes back with every answer: the request's own, or one that was made for it.
"""

NOT_MODIFIED = "It is still as `If-None-Match` says"
FAILURES: dict[int, str] = {
    400: "Something in the request is malformed or out of bounds; `field` says what",
    401: "No credential, or one that is not valid",
    403: "The key may not do this",
    404: "There is no such thing in this tenant",
    408: "The request took too long to come",
    409: "The state of things forbids it; `reason` says why",
    412: "The thing has another version than `If-Match` names by now",
    413: "The body, or what would be made of it, is too long",
    415: "The body is not JSON in UTF-8",
    422: "The idempotency key was used with other parameters",
    429: "Too many requests, or a quota is used up",
    431: "The head of the request is too long",
    500: "A mistake of ours; quote `error_id` when asking for help",
    503: "The service cannot answer for the moment; try again",
    504: "It took too long",
}
IN_HEADERS = ("idempotency_key", "if_version")  # over HTTP, where custom has headers for them
ALWAYS = (400, 401, 403, 404, 408, 429, 431, 500, 503, 504)
EVENT: Json = {
    "type": "object",
    "properties": {
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "id": msgspec.json.schema(CursorText),
        "retry": {"type": "integer"},
    },
    "required": ["event", "data"],
}

HEADERS: Json = {
    "RequestId": {"description": "The request's id, for logs", "schema": {"type": "string"}},
    "ETag": {"description": "Changes whenever the answer does", "schema": {"type": "string"}},
    "RetryAfter": {"description": "Seconds to wait before trying again", "schema": {"type": "integer", "minimum": 0}},
    "Challenge": {"description": "How to present a credential", "schema": {"type": "string"}},
}
HEADERS_OF_FAILURES: dict[int, Json] = {
    401: {"WWW-Authenticate": {"$ref": "#/components/headers/Challenge"}},
    429: {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}},
    503: {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}},
}
# A caller's own JSON. PostgreSQL stores any but a text with NUL, at whatever depth.
OWN_JSON: Json = {
    "JsonText": {"type": "string", "pattern": "^[^\\x00]*$"},
    "JsonObject": {
        "type": "object",
        "propertyNames": {"$ref": "#/components/schemas/JsonText"},
        "additionalProperties": {"$ref": "#/components/schemas/JsonValue"},
    },
    "JsonObjectOrNull": {"anyOf": [{"$ref": "#/components/schemas/JsonObject"}, {"type": "null"}]},
    "JsonValue": {
        "anyOf": [
            {"type": ["null", "boolean", "number"]},
            {"$ref": "#/components/schemas/JsonText"},
            {"type": "array", "items": {"$ref": "#/components/schemas/JsonValue"}},
            {"$ref": "#/components/schemas/JsonObject"},
        ]
    },
}
PARAMETERS: Json = {
    "IdempotencyKey": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "For 24 hours the same key and parameters give the same stored answer",
        "schema": msgspec.json.schema(IdempotencyKey),
    },
    "IfMatch": {
        "name": preconditions.HEADER,
        "in": "header",
        "description": (
            "ETags of what the caller has seen, or `*`. When the thing has another version by now, the answer is 412 and "
            "nothing is changed. What changes without a version, such as an agent's status, does not count."
        ),
        "schema": {"type": "string", "examples": ['"3-0badcafe"', "*"]},
    },
    "IfNoneMatch": {
        "name": "If-None-Match",
        "in": "header",
        "description": "ETags of what the caller has: when it is still the same, the answer is 304 and empty",
        "schema": {"type": "string"},
    },
    "LastEventId": {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "The id of the last message that came; counts before `since`",
        "schema": msgspec.json.schema(CursorText),
    },
}
SECURITY_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, as `Authorization: Bearer dm_...`"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key"},
}


def document() -> Json:
    """The whole document, ready to be encoded."""
    operations = list(REGISTRY.values())
    shapes: set[type] = {sse.Follow, *(op.params for op in operations)}
    # Parts of others, which no operation has for its own.
    ruled = [shape for shape in _kinds_of(Params) if shape.together and shape not in shapes]
    names, schemas = _schemas([*shapes, *ruled, *(op.result for op in operations), problem.Problem])
    for part in ruled:
        schemas[names[part]]["allOf"] = list(part.together)
    paths: dict[str, Json] = {}
    for op in operations:
        described = _operation(op, schemas[names[op.params]], names[op.result])
        paths.setdefault(PREFIX + op.path, {})[op.method.lower()] = described
    paths[EVENTS_PATH] = {"get": _event_stream(schemas[names[sse.Follow]])}
    for shape in shapes:  # what is a parameter or a body where it is used
        del schemas[names[shape]]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "DevMesh",
            "version": __version__,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": noun} for noun in sorted({_noun(op) for op in operations})],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": schemas,
            "headers": HEADERS,
            "parameters": PARAMETERS,
            "responses": {str(status): _failure(status, text) for status, text in FAILURES.items()},
            "securitySchemes": SECURITY_SCHEMES,
        },
    }


def success_status(operation: Operation) -> int:
    """201 for what creates something in any case; registering an agent may also update it."""
    creates = operation.method == "POST" and operation.name.partition(".")[2].startswith("create")
    return 201 if creates else 200


def versioned_field(operation: Operation) -> str | None:
    """The one thing that an operation answers with, when that has a version."""
    [first, *others] = msgspec.structs.fields(operation.result)
    is_versioned = "version" in getattr(first.type, "__struct_fields__", ())
    return first.name if is_versioned and not others else None


def takes_if_match(operation: Operation) -> bool:
    """Whether it changes or shows one thing that has a version."""
    is_shown = operation.method == "GET" and versioned_field(operation) is not None
    return is_shown or "if_version" in operation.params.__struct_fields__


def _kinds_of(shape: type[Params]) -> Iterator[type[Params]]:
    for kind in shape.__subclasses__():
        yield kind
        yield from _kinds_of(kind)


def _schemas(types: Iterable[type]) -> tuple[dict[type, str], Json]:
    """The name of each type and the schemas by name. Names that two modules have are told apart by the module's last part."""
    listed = list(types)
    generated = msgspec.json.schema_components(listed, ref_template="#/components/schemas/{name}")
    text = msgspec.json.encode(generated)
    for package in (b"devmesh.core.", b"devmesh.operations."):
        text = text.replace(package, b"")
    references, schemas = msgspec.json.decode(text)
    for schema in schemas.values():
        _refer_to_own_json(schema)
    schemas |= OWN_JSON
    return {kind: ref["$ref"].rpartition("/")[2] for kind, ref in zip(listed, references, strict=True)}, schemas


def _refer_to_own_json(schema: Any) -> None:
    """Replaces what stands for a caller's own JSON, wherever it is, by a reference to what that may be."""
    if isinstance(schema, dict) and str(schema.get("title")) in OWN_JSON:
        reference = {"$ref": f"#/components/schemas/{schema['title']}"}
        schema.clear()
        schema.update(reference)
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _refer_to_own_json(inner)


def _operation(operation: Operation, params: Json, result: str) -> Json:
    """What is said of one operation. Its parameters are taken apart: some stand in the path, the others beside it."""
    fields = {name: schema for name, schema in params["properties"].items() if name not in IN_HEADERS}
    required = [name for name in params.get("required", []) if name not in operation.path_fields]
    in_path = {name: fields.pop(name) for name in operation.path_fields}
    parameters = [_parameter("path", name, schema, True) for name, schema in in_path.items()]
    failures = list(ALWAYS)
    described: Json = {}
    if operation.method in METHODS_WITH_BODY:
        described["requestBody"] = _body(params, fields, required, operation.params.together)
        failures += [409, 413, 415]
    else:
        parameters += [_parameter("query", name, schema, name in required) for name, schema in fields.items()]
    if operation.mutates:
        parameters.append({"$ref": "#/components/parameters/IdempotencyKey"})
        failures += [409, 422]
    if "topics" in fields:
        failures.append(409)  # `inbox`, for a key that is not bound to an agent
    if takes_if_match(operation):
        parameters.append({"$ref": "#/components/parameters/IfMatch"})
        failures.append(412)
    answers = {str(success_status(operation)): _success(operation, result)}
    if operation.method == "GET" and versioned_field(operation):
        parameters.append({"$ref": "#/components/parameters/IfNoneMatch"})
        answers["304"] = {"description": NOT_MODIFIED, "headers": _headers("ETag")}
    return {
        "operationId": operation.name,
        "tags": [_noun(operation)],
        "summary": operation.summary,
        "description": "\n\n".join(filter(None, [operation.description, params.get("description")])),
        "parameters": parameters,
        **described,
        "responses": {**answers, **_failures(failures)},
        "security": _security(operation.scope),
    }


def _event_stream(params: Json) -> Json:
    fields, required = params["properties"], params.get("required", [])
    content = {"text/event-stream": {"schema": EVENT}}  # of each message, as it is before OpenAPI 3.2
    return {
        "operationId": "events.follow",
        "tags": ["event"],
        "summary": "Follow events as they happen, as server-sent events, until the connection is closed.",
        "description": (
            "The first message, `subscribed`, holds `cursor` and `recovered`. Then each message has the event's cursor as "
            "its id, its type as its event and the event of `event.list` as its data. A stream that the server has to end "
            "says why in a last message, `error`, whose data is a problem."
        ),
        "parameters": [
            *(_parameter("query", name, schema, name in required) for name, schema in fields.items()),
            {"$ref": "#/components/parameters/LastEventId"},
        ],
        "responses": {
            "200": {"description": "A stream without end", "headers": _headers(), "content": content},
            **_failures((*ALWAYS, 409)),
        },
        "security": _security("read"),
    }


def _parameter(place: str, name: str, schema: Json, is_required: bool) -> Json:
    """A parameter in a URL has no null: it is left out instead."""
    return {"name": name, "in": place, "required": is_required, "schema": _without_null(schema)}


def _without_null(schema: Json) -> Json:
    kept = {
        name: value for name, value in schema.items() if name != "anyOf" and not (name == "default" and value is None)
    }
    members = [member for member in schema.get("anyOf", []) if member != {"type": "null"}]
    return {**members[0], **kept} if len(members) == 1 else {**kept, "anyOf": members} if members else kept


def _body(params: Json, fields: Json, required: list[str], together: Sequence[Json]) -> Json:
    schema: Json = {"type": "object", "properties": fields, "required": required, "additionalProperties": False}
    if together:
        schema["allOf"] = list(together)
    return {
        "required": bool(required or together),
        "content": {"application/json": {"schema": {"title": params["title"], **schema}}},
    }


def _success(operation: Operation, result: str) -> Json:
    headers = _headers("ETag") if versioned_field(operation) else _headers()
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{result}"}}}
    return {"description": "Done" if operation.mutates else "Found", "headers": headers, "content": content}


def _failure(status: int, description: str) -> Json:
    content = {problem.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    headers = {**_headers(), **HEADERS_OF_FAILURES.get(status, {})}
    return {"description": description, "headers": headers, "content": content}


def _failures(statuses: Iterable[int]) -> Json:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(set(statuses))}


def _headers(*names: str) -> Json:
    return {
        "X-Request-Id": {"$ref": "#/components/headers/RequestId"},
        **{name: {"$ref": f"#/components/headers/{name}"} for name in names},
    }


def _security(scope: str) -> list[Json]:
    return [{scheme: [str(scope)]} for scheme in SECURITY_SCHEMES]


def _noun(operation: Operation) -> str:
    return operation.name.partition(".")[0]
