"""From `key=value` on a command line to JSON parameters. Pure but for the files that a value may name."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from devmesh.cli.console import Exit, Failure, visible
from devmesh.cli.shapes import takes_text, takes_texts, type_of

_NUMBER = re.compile(r"[-+.0-9eE]+")


def parameters(struct: type[msgspec.Struct], arguments: Sequence[str], whole: str | None) -> dict[str, Any]:
    """The parameters that were given: as one JSON object, and over it as `key=value`. Raises `Failure`."""
    given: dict[str, Any] = _object(whole) if whole is not None else {}
    named: set[str] = set()
    for argument in arguments:
        if argument == "-":
            given |= _object(_standard_input())
            continue
        name, equals, text = argument.partition("=")
        if not equals or not name:
            raise Failure(f"{argument!r} is not key=value", Exit.USAGE, "as in: title='my first task' priority=5")
        if name in named:  # one of the two would be lost
            raise Failure(f"{visible(name)} is given twice", Exit.USAGE, "a list is one value, as in: tags=red,green")
        named.add(name)
        given[name] = _value(struct, name, text)
    return given


def number_or_off(text: str) -> float | None:
    """A number that is taken away by a word, and not by its being forgotten."""
    if text == "off":
        return None
    try:
        # Python would read 1_0, and the digits of all alphabets.
        number = float(text) if _NUMBER.fullmatch(text) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Failure(f"{text!r} is neither a number nor off", Exit.USAGE)
    return number


def _value(struct: type[msgspec.Struct], name: str, text: str) -> Any:
    """JSON if it is JSON, else a text; a parameter that is a text is never anything else."""
    if text.startswith("@@"):
        text = text[1:]
    elif text.startswith("@"):
        text = _read(name, text[1:])
    declared = type_of(struct, name)
    is_text = declared is not None and takes_text(declared)
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as problem:
        if text.lstrip().startswith(("{", "[")) and not is_text:  # it was to be JSON, and would go as a text unseen
            raise Failure(f"{name} is not JSON: {problem}", Exit.USAGE) from None
        value = text
    if declared is None:
        return value
    if takes_text(declared) and value is not None and not isinstance(value, str):
        return text
    if takes_texts(declared) and value is not None and not isinstance(value, list):
        return [part.strip() for part in text.split(",") if part.strip()]
    return value


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Failure(f"the parameters are not JSON: {error}", Exit.USAGE) from error
    if not isinstance(value, dict):
        raise Failure("the parameters are not a JSON object", Exit.USAGE, 'as in: --params \'{"title": "a task"}\'')
    return value


def _standard_input() -> str:
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Failure(f"standard input is not UTF-8 text: {error}", Exit.USAGE) from error
    if not text.strip():
        raise Failure("standard input is empty; parameters are a JSON object", Exit.USAGE)
    return text


def _read(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # some editors mark UTF-8, and the mark is no JSON
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        hint = f"a value that begins with @ names a file; write {name}=@@{path} for the text itself"
        raise Failure(f"{name}: {path} cannot be read: {why}", Exit.USAGE, hint) from error


def _refuse_constant(word: str) -> Callable[[str], Any]:
    raise ValueError(f"{word} is no JSON")
