"""How types read: parameters and results in the words of a reference, from the structs that declare them.

Pure. Made from msgspec's own view of a type, so that a reference cannot say anything else than the decoder does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect as types

COLLECTIONS = (types.ListType, types.SetType, types.FrozenSetType, types.VarTupleType)
PLAIN: dict[type[types.Type], str] = {
    types.BoolType: "true or false",
    types.NoneType: "null",
    types.UUIDType: "UUID",
    types.DateTimeType: "time",
    types.RawType: "any JSON",
    types.AnyType: "any JSON",
}
# Text by what JSON makes of it: these arrive as JSON strings.
TEXTS = (types.StrType, types.UUIDType, types.DateTimeType, types.EnumType, types.LiteralType)


class Field(NamedTuple):
    name: str
    shape: str  # such as `integer, 1 to 5`
    default: str | None  # as JSON, empty when leaving it out means nothing else; None when it must be given


def fields(struct: type[msgspec.Struct]) -> list[Field]:
    """Every field of a struct, those that must be given first."""
    found = [Field(field.encode_name, shape(field.type), _default(field)) for field in _declared(struct)]
    return sorted(found, key=lambda field: field.default is not None)


def type_of(struct: type[msgspec.Struct], name: str) -> types.Type | None:
    """The type of one field, if there is one of this name."""
    return next((field.type for field in _declared(struct) if field.encode_name == name), None)


def structs_in(struct: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """Every struct that a struct is made of, itself excluded, each once."""
    found: dict[type[msgspec.Struct], None] = {}
    for field in _declared(struct):
        for part in parts(field.type):
            if isinstance(part, types.StructType) and part.cls not in found:
                found[part.cls] = None
                found |= dict.fromkeys(structs_in(part.cls))
    return list(found)


def parts(of: types.Type) -> Iterator[types.Type]:
    """A type, or the types that a union, an array or an annotation is made of."""
    match of:
        case types.Metadata():
            yield from parts(of.type)
        case types.UnionType():
            for part in of.types:
                yield from parts(part)
        case types.ListType() | types.SetType() | types.FrozenSetType() | types.VarTupleType():
            yield of
            yield from parts(of.item_type)
        case types.DictType():
            yield of
            yield from parts(of.value_type)
        case _:
            yield of


def takes_text(of: types.Type) -> bool:
    """Whether a JSON string fits, not counting what is inside of an array."""
    match of:
        case types.Metadata():
            return takes_text(of.type)
        case types.UnionType():
            return any(takes_text(part) for part in of.types)
    return isinstance(of, TEXTS)


def takes_texts(of: types.Type) -> bool:
    """Whether an array of JSON strings fits."""
    match of:
        case types.Metadata():
            return takes_texts(of.type)
        case types.UnionType():
            return any(takes_texts(part) for part in of.types)
    return isinstance(of, COLLECTIONS) and takes_text(of.item_type)


def shape(of: types.Type) -> str:
    """A type in words."""
    match of:
        case types.Metadata():
            title = str((of.extra_json_schema or {}).get("title"))
            return {"JsonObject": "JSON object", "JsonObjectOrNull": "JSON object or null"}.get(title) or shape(of.type)
        case types.UnionType():
            nulls_last = sorted(of.types, key=lambda part: isinstance(part, types.NoneType))
            return " or ".join(shape(part) for part in nulls_last)
        case types.StructType():
            return of.cls.__name__
        case types.EnumType() | types.LiteralType():
            return f"one of ({', '.join(str(value) for value in _choices(of))})"
        case types.ListType() | types.SetType() | types.FrozenSetType() | types.VarTupleType():
            return f"array{_bounds(_length(of.min_length, of.max_length, 'items'))} of {shape(of.item_type)}"
        case types.DictType():
            return f"object of {shape(of.value_type)}"
        case types.IntType() | types.FloatType():
            return ("integer" if isinstance(of, types.IntType) else "number") + _bounds(_range(of))
        case types.StrType():
            like = f"like `{of.pattern}`" if of.pattern else ""
            return f"text{_bounds(_length(of.min_length, of.max_length, 'characters'), like)}"
    return PLAIN[type(of)]


def _choices(of: types.EnumType | types.LiteralType) -> list[Any]:
    return [member.value for member in of.cls] if isinstance(of, types.EnumType) else list(of.values)


def _declared(struct: type[msgspec.Struct]) -> tuple[types.Field, ...]:
    described = types.type_info(struct)
    assert isinstance(described, types.StructType)
    return described.fields


def _default(field: types.Field) -> str | None:
    if field.required:
        return None
    value: Any = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if value in (msgspec.UNSET, msgspec.NODEFAULT):  # the latter is how a default of UNSET is described
        return ""
    return json.dumps(json.loads(msgspec.json.encode(value)), ensure_ascii=False)


def _bounds(*bounds: str) -> str:
    """What limits a type, in parentheses behind it."""
    said = ", ".join(bound for bound in bounds if bound)
    return f" ({said})" if said else ""


def _length(least: int | None, most: int | None, unit: str) -> str:
    if least and most is not None:
        return f"{least:,} to {most:,} {unit}"
    if most is not None:
        return f"at most {most:,} {unit}"
    return f"at least {least:,} {unit}" if least else ""


def _range(of: types.IntType | types.FloatType) -> str:
    if of.ge is not None and of.le is not None:
        return f"{of.ge:,} to {of.le:,}"
    bounds = (("above", of.gt), ("at least", of.ge), ("below", of.lt), ("at most", of.le))
    return ", ".join(f"{word} {bound:,}" for word, bound in bounds if bound is not None)
