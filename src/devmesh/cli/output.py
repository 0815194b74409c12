"""Standard output whose own failures can be told from all others: a disk that is full behind it is nobody else's fault."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class OutputLost(OSError):
    """What a command has to say cannot be written where standard output goes."""


class _Written(io.FileIO):
    """Writes for standard output."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except BrokenPipeError:  # whoever read it has had enough, which is no failure
            raise
        except OSError as error:
            raise OutputLost(error.errno, error.strerror) from error


def open_what_is_closed() -> None:
    """Puts nothing where standard input, output or error is closed, as in `>&-`, which Python leaves without a stream.

    It also keeps a socket or a file that is opened later from getting that number, and what a child writes there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def tell_of_losses() -> None:
    """Has standard output raise `OutputLost` when it cannot be written."""
    given = sys.stdout
    if not isinstance(given, io.TextIOWrapper):  # it is closed, or somebody's own
        return
    written = _Written(given.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        written if given.write_through else io.BufferedWriter(written),
        encoding=given.encoding, errors=given.errors, line_buffering=given.line_buffering,
        write_through=given.write_through,
    )  # fmt: skip


def give_up() -> None:
    """Lets what could not be written go: the interpreter would try again when it ends, and complain in its own words."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
