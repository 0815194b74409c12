"""The services' logs on one terminal: a name before each line, and lines that were written for programs made readable."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

COLOURS = {
    "devmesh": typer.colors.YELLOW,
    "rest-api": typer.colors.GREEN,
    "mcp-server": typer.colors.CYAN,
    "worker": typer.colors.MAGENTA,
}
NAME_WIDTH = max(len(name) for name in COLOURS)
SAID_ALREADY = frozenset({"event", "level", "service", "timestamp", "logger", "exception"})


class MergedLog:
    """Writes to standard error. `on_closed` is called once, when nobody reads it any more."""

    def __init__(self, on_closed: Callable[[], None]) -> None:
        self._on_closed = on_closed
        self._is_coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        self._is_closed = False

    def __call__(self, name: str, line: str) -> None:
        label = name.ljust(NAME_WIDTH)
        label = typer.style(label, fg=COLOURS[name]) if self._is_coloured else label
        for part in readable(line).splitlines() or [""]:
            self._write(f"{label} | {part}")

    def _write(self, text: str) -> None:
        if self._is_closed:
            return
        try:
            typer.echo(text, err=True)
        except OSError:
            self._is_closed = True
            self._on_closed()


def readable(line: str) -> str:
    """A line of structured logging as text; any other line as it is."""
    if not line.startswith("{"):
        return line
    try:
        entry = json.loads(line)
        time, level, event = entry["timestamp"][11:23], entry["level"], entry["event"]
    except (ValueError, KeyError, TypeError):
        return line
    facts = [f"{name}={_short(value)}" for name, value in entry.items() if name not in SAID_ALREADY]
    text = "  ".join([time, f"{level:<7}", str(event), *facts])
    return f"{text}\n{entry['exception']}" if "exception" in entry else text


def _short(value: Any) -> str:
    return value if isinstance(value, str) and " " not in value else json.dumps(value, ensure_ascii=False)
