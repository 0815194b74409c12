"""How settings are declared, read from the environment and from files, checked, and shown.

A value that cannot be understood stops the start, because a server that quietly runs on a default is worse than one that does
not run. Must not know any single setting: those are in settings.py. Imports nothing of ours.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

PREFIX = "DEVMESH_"
MASK = "********"
TRUE_WORDS = frozenset({"1", "true", "yes", "on"})
FALSE_WORDS = frozenset({"0", "false", "no", "off"})
ANYTHING = (r"[\s\S]*", "text")


class SettingsError(Exception):
    """A setting cannot be understood. The message names it, shows the value and says what is expected."""


class Shown(NamedTuple):
    """A setting as people are shown it."""

    name: str
    value: str
    unit: str
    source: str
    default: str
    meaning: str


class Declared(NamedTuple):
    """What there is to know about a setting besides its type and its default."""

    meaning: str
    unit: str
    at_least: float
    at_most: float
    pattern: tuple[str, str]
    name: str
    is_secret: bool


def setting(
    default: Any,
    meaning: str,
    unit: str = "",
    *,
    at_least: float = 1,
    at_most: float = math.inf,
    pattern: tuple[str, str] = ANYTHING,
    name: str = "",
    is_secret: bool = False,
) -> Any:
    """Declares a setting. Its name in the environment is DEVMESH_ and the field in capitals unless `name` is given."""
    declared = Declared(meaning, unit, at_least, at_most, pattern, name, is_secret)
    return dataclasses.field(default=default, repr=not is_secret, metadata={"declared": declared})


class Read(NamedTuple):
    text: str
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Settings that are read together. `sources` holds what was not a default, by field."""

    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    warnings: Sequence[str] = dataclasses.field(default=(), repr=False, compare=False)
    problems: Sequence[str] = dataclasses.field(default=(), repr=False, compare=False)

    @classmethod
    def load(cls, environment: Mapping[str, str], *files: Path | None) -> Self:
        """Reads the environment, then files, the first that has a setting: `.env`, then what `devmesh up` left for tools.
        Raises `SettingsError`."""
        settings = cls.examine(environment, *files)
        if settings.problems:
            raise SettingsError("; ".join(settings.problems))
        return settings

    @classmethod
    def examine(cls, environment: Mapping[str, str], *files: Path | None) -> Self:
        """The same for who wants to see all that is wrong: what cannot be used has its default, and stands in `problems`."""
        layers, unreadable = _layers(environment, files)
        settings = cls._read(layers)
        problems = [*unreadable, *settings.problems, *settings.contradictions()]
        return dataclasses.replace(settings, problems=problems)

    @classmethod
    def _read(cls, layers: Sequence[tuple[str, Mapping[str, str]]]) -> Self:
        """Reads every field from the first layer that has it. A variable that is set to nothing counts as not set."""
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        problems: list[str] = []
        types = typing.get_type_hints(cls)
        for field, name, declared in declarations(cls):
            found = [(text, source) for source, variables in layers if (text := variables.get(name, "").strip())]
            if not found:
                continue
            text, source = found[0]
            try:
                values[field.name] = _parse(name, declared, types[field.name], Read(text, source))
                sources[field.name] = source
            except SettingsError as error:
                problems.append(str(error))
        return cls(**values, sources=sources, warnings=_unknown_names(layers), problems=problems)

    def contradictions(self) -> list[str]:
        """What is wrong with settings that are well-formed each alone."""
        return []

    def describe(self) -> list[Shown]:
        """Every setting with its value (secrets masked), unit, source, default and meaning, in order of declaration."""
        return [
            Shown(
                name=name,
                value=show(getattr(self, field.name), declared.is_secret),
                unit=declared.unit,
                source=self.sources.get(field.name, "default"),
                default=show(field.default, declared.is_secret),
                meaning=declared.meaning,
            )
            for field, name, declared in declarations(type(self))
        ]

    def secrets(self) -> list[str]:
        """The values that nothing may show."""
        return [
            str(value)
            for field, _, declared in declarations(type(self))
            if declared.is_secret and (value := getattr(self, field.name))
        ]


def declarations(group: type[Group]) -> list[tuple[dataclasses.Field[Any], str, Declared]]:
    """Every setting of a group: its field, its name in the environment, what is declared of it."""
    return [
        (field, declared.name or PREFIX + field.name.upper(), declared)
        for field in dataclasses.fields(group)
        if (declared := field.metadata.get("declared"))
    ]


def _parse(name: str, declared: Declared, kind: Any, read: Read) -> Any:
    """Makes a value of what was read. Raises `SettingsError`."""
    value: Any = None
    if kind is bool:
        expected = "true or false"
        word = read.text.lower()
        value = True if word in TRUE_WORDS else False if word in FALSE_WORDS else None
    elif kind in (int, float):
        expected = _range(declared, "a whole number" if kind is int else "a number")
        value = _number(kind, read.text, declared)
    else:
        pattern, expected = declared.pattern
        value = read.text if re.fullmatch(pattern, read.text) else None
    if value is None:
        shown = show(read.text, declared.is_secret)
        raise SettingsError(f"{name} is {shown!r} in {read.source}, which cannot be used: expected {expected}")
    return value


def _number(kind: type[int] | type[float], text: str, declared: Declared) -> float | None:
    try:
        number = kind(text)
    except ValueError:
        return None
    return number if declared.at_least <= number <= declared.at_most and math.isfinite(number) else None


def _range(declared: Declared, noun: str) -> str:
    unit = f" ({declared.unit})" if declared.unit else ""
    if math.isfinite(declared.at_most):
        return f"{noun} from {show(declared.at_least)} to {show(declared.at_most)}{unit}"
    return f"{noun}, at least {show(declared.at_least)}{unit}"


def show(value: Any, is_secret: bool = False) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.15g}"
    return _mask(value) if is_secret else str(value)


def _mask(text: str) -> str:
    """Hides a secret. Of an address, only the place is shown: its user, password and options may all be secret."""
    address = re.fullmatch(r"(\w+://)(?:.*@)?([^@/?#]*)(/[^?#@]*)?([?#].*)?", text)
    if not address:
        return MASK
    scheme, place, path, rest = address.groups(default="")
    return f"{scheme}{MASK}@{place}{path}{'?' + MASK if rest else ''}"


def _unknown_names(layers: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    """A line for every DEVMESH_ name that means nothing: most often it is a misspelt one that had no effect. A name that
    begins with ENCRYPTION_ may be somebody else's, unless it is nearly one of ours."""
    known = [name for group in Group.__subclasses__() for _, name, _ in declarations(group)]
    lines = []
    for source, variables in layers:
        for name in sorted(variables):
            if name in known or not name.startswith((PREFIX, "ENCRYPTION_")):
                continue
            is_ours = name.startswith(PREFIX)
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if near or is_ours:
                hint = f"; did you mean {near[0]}?" if near else ""
                lines.append(f"{name} in {source} is not a setting and has no effect{hint}")
    return lines


def _layers(
    environment: Mapping[str, str], files: Sequence[Path | None]
) -> tuple[list[tuple[str, Mapping[str, str]]], list[str]]:
    """Where variables come from, the strongest first, and what is wrong with the files that cannot be read."""
    layers, problems = [("environment", environment)], []
    for path in files:
        if path is None:
            continue
        try:
            layers.append((path.name, read_variables(path)))
        except SettingsError as error:
            problems.append(str(error))
    return layers, problems


def read_variables(path: Path) -> dict[str, str]:
    """Reads a file of NAME=value lines; one that does not exist holds nothing. Raises `SettingsError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    return dict(_variables(path, text))


def _variables(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """Shell-like: comments, `export`, quotes. A value is never expanded."""
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.strip().removeprefix("export ").strip()
        if not content or content.startswith("#"):
            continue
        match = re.fullmatch(
            r"""([A-Za-z_]\w*)\s*=\s*(?:'([^']*)'|"([^"]*)"|([^'"\s#](?:.*?))?)\s*(?:(?:^|\s)#.*)?""", content
        )
        if not match:
            raise SettingsError(f"{path}, line {number}: expected NAME=value")
        yield match[1], next((group for group in match.groups()[1:] if group is not None), "")
