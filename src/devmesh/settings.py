"""Every setting, read once: what it is called, what it means, in which unit, and where its value came from.

Values are handed down from the composition root; nothing else reads the environment. A value that cannot be understood
stops the start, because a server that quietly runs on a default is worse than one that does not run. Must not know
what the settings are used for, and imports nothing of ours.
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

POSTGRES_ADDRESS = (r"postgres(ql)?://\S+", "an address such as postgresql://user:password@host:5432/database")
SCHEMAS = (r"[a-z_][a-z0-9_]*(\s*,\s*[a-z_][a-z0-9_]*)*", "names of schemas with commas between them, as in mcp,public")
HOST = (r"\S+", "a host name or an address without spaces")
LOG_LEVEL = ("debug|info|warning|error", "debug, info, warning or error")
HTTP_ADDRESS = (r"https?://\S+", "an address such as http://127.0.0.1:8081")
WS_ADDRESS = (r"wss?://\S+", "an address such as ws://127.0.0.1:8080/ws")
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


class _Declared(NamedTuple):
    """What there is to know about a setting besides its type and its default."""

    meaning: str
    unit: str
    at_least: float
    at_most: float
    pattern: tuple[str, str]
    name: str
    is_secret: bool


def _setting(
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
    declared = _Declared(meaning, unit, at_least, at_most, pattern, name, is_secret)
    return dataclasses.field(default=default, repr=not is_secret, metadata={"declared": declared})


class _Read(NamedTuple):
    text: str
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Group:
    """Settings that are read together. `sources` holds what was not a default, by field."""

    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    warnings: Sequence[str] = dataclasses.field(default=(), repr=False, compare=False)

    @classmethod
    def _read(cls, layers: Sequence[tuple[str, Mapping[str, str]]]) -> Self:
        """Reads every field from the first layer that has it. A variable that is set to nothing counts as not set."""
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        types = typing.get_type_hints(cls)
        for field, name, declared in _declarations(cls):
            for source, variables in layers:
                if text := variables.get(name, "").strip():
                    values[field.name] = _parse(name, declared, types[field.name], _Read(text, source))
                    sources[field.name] = source
                    break
        return cls(**values, sources=sources, warnings=_unknown_names(layers))

    def describe(self) -> list[Shown]:
        """Every setting with its value (secrets masked), unit, source, default and meaning, in order of declaration."""
        return [
            Shown(
                name=name,
                value=_show(getattr(self, field.name), declared.is_secret),
                unit=declared.unit,
                source=self.sources.get(field.name, "default"),
                default=_show(field.default, declared.is_secret),
                meaning=declared.meaning,
            )
            for field, name, declared in _declarations(type(self))
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(_Group):
    """The settings of a service. Without arguments, the defaults: what tests start from."""

    database_dsn: str | None = _setting(
        None,
        "Where PostgreSQL is. Without it, `devmesh up` runs its own.",
        pattern=POSTGRES_ADDRESS,
        name="DATABASE_DSN",
        is_secret=True,
    )
    database_search_path: str = _setting(
        "mcp,public", "Schemas that names are looked up in.", pattern=SCHEMAS, name="DATABASE_SEARCH_PATH"
    )
    skip_migrations: bool = _setting(
        False, "Do not migrate at start, because somebody else does.", name="SKIP_MIGRATIONS"
    )
    migrations_fail_fast: bool = _setting(
        False, "End when a migration fails, instead of staying up and not ready.", name="MIGRATIONS_FAIL_FAST"
    )

    host: str = _setting("127.0.0.1", "Where every service listens.", pattern=HOST)
    ws_port: int = _setting(8080, "Port of the agents' WebSocket; 0 takes a free one.", at_least=0, at_most=65535)
    rest_port: int = _setting(8081, "Port of the REST service; 0 takes a free one.", at_least=0, at_most=65535)
    worker_port: int = _setting(8088, "Port of the worker's health; 0 takes a free one.", at_least=0, at_most=65535)
    log_level: str = _setting("info", "The least urgent lines that are logged.", pattern=LOG_LEVEL)

    database_pool_size_min: int = _setting(1, "Connections kept open by a process.", "connections", at_most=1000)
    database_pool_size_max: int = _setting(8, "Connections opened by a process.", "connections", at_most=1000)
    transaction_deadline_s: float = _setting(10.0, "Longest time for one transaction.", "s", at_least=0.1, at_most=600)

    message_bytes_max: int = _setting(1 << 20, "Longest message taken.", "bytes", at_least=1024, at_most=1 << 28)
    request_batch_max: int = _setting(100, "Requests in one JSON-RPC batch.", "requests", at_most=10_000)
    payload_depth_max: int = _setting(64, "Nesting of a payload.", "levels", at_most=500)
    subscriptions_per_connection_max: int = _setting(1000, "Topics of a connection.", "topics", at_most=100_000)
    outbox_bytes_max: int = _setting(
        1 << 20, "What may wait for a slow consumer before it is disconnected.", "bytes", at_least=1024
    )
    requests_in_flight_max: int = _setting(256, "Requests of a connection served at once.", "requests", at_most=100_000)
    initialize_timeout_s: float = _setting(10.0, "Time to send `initialize`.", "s", at_least=0.1, at_most=600)
    ping_interval_s: float = _setting(25.0, "Between pings; two missed end a connection.", "s", at_least=0.1)

    gather_batch_max: int = _setting(128, "Calls gathered into one transaction.", "calls", at_most=10_000)
    gather_in_flight_max: int = _setting(4, "Transactions of one operation at once.", "transactions", at_most=100)
    gather_queue_max: int = _setting(20_000, "Calls of one operation that may wait.", "calls")

    fanout_poll_interval_s: float = _setting(0.5, "Looking for events without a ring.", "s", at_least=0.01, at_most=60)
    fanout_ring_bytes_max: int = _setting(
        64 << 20, "Latest events a process keeps in memory, so that a wave of reconnects need not read them.", "bytes"
    )
    fanout_page_events_max: int = _setting(1000, "Events read in one statement.", "events", at_most=10_000)
    bell_coalesce_ms: float = _setting(5.0, "Rings within this time become one.", "ms", at_least=0, at_most=1000)

    assigner_interval_s: float = _setting(1.0, "Between rounds of assignment without a ring.", "s", at_least=0.01)
    reaper_interval_s: float = _setting(0.5, "Between looks for leases that ended.", "s", at_least=0.01)
    presence_interval_s: float = _setting(
        2.0, "Between renewals of connected agents, which last 30 s.", "s", at_least=0.01, at_most=10
    )

    key_check_interval_s: float = _setting(
        2.0, "Between looks for revoked keys of open connections.", "s", at_least=0.1, at_most=5
    )
    auth_failures_per_minute_max: int = _setting(5, "Failed attempts before an address is locked out.", "attempts")
    auth_lockout_s: float = _setting(900.0, "How long an address is locked out.", "s", at_least=0)

    shutdown_grace_s: float = _setting(10.0, "For what is in flight when stopping.", "s", at_least=0, at_most=600)
    idempotency_ttl_s: float = _setting(86_400.0, "How long an answer is kept for its key.", "s", at_least=60)

    @classmethod
    def load(cls, environment: Mapping[str, str], dotenv: Path | None = None, dev_env: Path | None = None) -> Self:
        """Reads the environment, then `.env`, then what `devmesh up` left for tools. Raises `SettingsError`."""
        settings = cls._read(_layers(environment, dotenv, dev_env))
        settings._require_order("database_pool_size_min", "database_pool_size_max")
        settings._require_order("gather_batch_max", "gather_queue_max")
        return settings

    def _require_order(self, lesser: str, greater: str) -> None:
        names = {field.name: name for field, name, _ in _declarations(type(self))}
        if getattr(self, lesser) > getattr(self, greater):
            raise SettingsError(
                f"{names[lesser]} ({_show(getattr(self, lesser))}) must not be greater than"
                f" {names[greater]} ({_show(getattr(self, greater))})"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientSettings(_Group):
    """How tools and clients find a server: set by people, or written to `<data-dir>/dev.env` by `devmesh up`."""

    url: str = _setting("http://127.0.0.1:8081", "Where REST is served.", pattern=HTTP_ADDRESS)
    ws_url: str = _setting("ws://127.0.0.1:8080/ws", "Where agents connect.", pattern=WS_ADDRESS)
    api_key: str | None = _setting(None, "The key to act with.", pattern=(r"\S+", "a key"), is_secret=True)
    tenant: str = _setting("default", "The tenant to act in.", pattern=(r"\S+", "a name without spaces"))
    data_dir: str = _setting(".devmesh", "Where `devmesh up` keeps its state.")

    @classmethod
    def load(cls, environment: Mapping[str, str], dotenv: Path | None = None, dev_env: Path | None = None) -> Self:
        """Reads the environment, then `.env`, then what `devmesh up` left. Raises `SettingsError`."""
        return cls._read(_layers(environment, dotenv, dev_env))


def _declarations(group: type[_Group]) -> list[tuple[dataclasses.Field[Any], str, _Declared]]:
    """Every setting of a group: its field, its name in the environment, what is declared of it."""
    return [
        (field, declared.name or PREFIX + field.name.upper(), declared)
        for field in dataclasses.fields(group)
        if (declared := field.metadata.get("declared"))
    ]


def _parse(name: str, declared: _Declared, kind: Any, read: _Read) -> Any:
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
        shown = _show(read.text, declared.is_secret)
        raise SettingsError(f"{name} is {shown!r} in {read.source}, which cannot be used: expected {expected}")
    return value


def _number(kind: type[int] | type[float], text: str, declared: _Declared) -> float | None:
    try:
        number = kind(text)
    except ValueError:
        return None
    return number if declared.at_least <= number <= declared.at_most and math.isfinite(number) else None


def _range(declared: _Declared, noun: str) -> str:
    unit = f" ({declared.unit})" if declared.unit else ""
    if math.isfinite(declared.at_most):
        return f"{noun} from {_show(declared.at_least)} to {_show(declared.at_most)}{unit}"
    return f"{noun}, at least {_show(declared.at_least)}{unit}"


def _show(value: Any, is_secret: bool = False) -> str:
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
    """A line for every DEVMESH_ name that means nothing: most often it is a misspelt one that had no effect."""
    known = [name for group in (Settings, ClientSettings) for _, name, _ in _declarations(group)]
    lines = []
    for source, variables in layers:
        for name in sorted(variables):
            if name.startswith(PREFIX) and name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                lines.append(f"{name} in {source} is not a setting and has no effect{hint}")
    return lines


def _layers(
    environment: Mapping[str, str], dotenv: Path | None, dev_env: Path | None
) -> list[tuple[str, Mapping[str, str]]]:
    """Where variables come from, the strongest first."""
    files = [path for path in (dotenv, dev_env) if path is not None]
    return [("environment", environment), *((path.name, read_variables(path)) for path in files)]


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
