"""What a check says: how it stands, what was found, and what to do."""

from __future__ import annotations

import enum
from typing import NamedTuple


class State(enum.StrEnum):
    OK = "ok"
    NOTE = "note"  # worth knowing, nothing to mend
    WARNING = "warning"  # it works, and may not for long or not as wished
    PROBLEM = "problem"
    SKIPPED = "skipped"  # not looked at, because something before it is not well


class Finding(NamedTuple):
    state: State
    found: str
    advice: tuple[str, ...] = ()  # commands or SQL, each of them a way to mend it or a step of one


def ok(found: str) -> Finding:
    return Finding(State.OK, found)


def note(found: str, *advice: str) -> Finding:
    return Finding(State.NOTE, found, advice)


def warning(found: str, *advice: str) -> Finding:
    return Finding(State.WARNING, found, advice)


def problem(found: str, *advice: str) -> Finding:
    return Finding(State.PROBLEM, found, advice)
