"""Handlers of jobs that run in processes of their own, which import them from here."""

from __future__ import annotations

import asyncio
import sys
import time
import types
from pathlib import Path
from typing import Any

LIMIT_S = 30.0


def held_up(job: Any) -> int:
    """Notes in a directory that an attempt has begun, and goes on when there is a file `go`."""
    directory, ends_at = Path(job.payload), time.monotonic() + LIMIT_S
    (directory / f"{job.id}.{job.attempt}").touch()
    while not (directory / "go").exists():
        assert time.monotonic() < ends_at
        time.sleep(0.01)
    return int(job.attempt)


class Unopened:
    def __reduce__(self) -> tuple[Any, ...]:
        return (int, ("no number",))


class Unopenable(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return (int, ("no number",))


def _plugin() -> Any:
    """A module that only the process has which has loaded it."""
    found = types.ModuleType("plugged_in_here")
    exec("class Plugged(Exception): pass", vars(found))
    sys.modules[found.__name__] = found
    return found


def odd(job: Any) -> Any:
    """Gives or raises what cannot be told from one process to another, or is no JSON."""
    match job.payload:
        case "deep":
            deep: list[Any] = []
            for _ in range(100_000):
                deep = [deep]
            return deep
        case "lambda":
            return lambda: 1
        case "unopened":
            return Unopened()
        case "cancelled":
            return asyncio.CancelledError()
        case "object":
            return object()
        case "plugin":
            raise _plugin().Plugged("its own words")
    raise Unopenable("its own words")
