"""How commands speak: results to standard output, everything else to standard error, and an exit code that means something.

JSON is for programs and tables are for people: the same rows make both. Must not know what the rows are about.
"""

from __future__ import annotations

import enum
import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer

PIPE_WIDTH = 1_000_000_000
CELL_CHARACTERS_MAX = 200  # on a terminal
COLUMN_WIDTH_MIN = 6  # with the space around it
PAIR = 2  # columns
CELL_SPACE = 3  # around each cell
WORD_CHARACTERS_MAX = 36  # of an id, which somebody is to copy; what is longer may be broken
# What would steer a terminal or begin another line, and what no terminal can be sent.
_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


class Exit(enum.IntEnum):
    """What an exit code of any command means."""

    OK = 0
    FAILED = 1  # the mesh refused, or the work failed
    USAGE = 2  # the command or a setting cannot be understood
    UNREACHABLE = 3  # the mesh, or its database, does not answer
    BROKEN = 4  # what was checked is not as it must be


class Failure(Exception):
    """Ends a command: one line that says what is wrong, perhaps one that says what to do, and an exit code.

    `kind` is that of the error with which a mesh has answered; none: it comes from elsewhere.
    """

    def __init__(self, message: str, code: Exit = Exit.FAILED, hint: str = "", *, kind: str | None = None) -> None:
        super().__init__(message)
        self.message, self.code, self.hint, self.kind = message, code, hint, kind


def complain(message: str, hint: str = "") -> None:
    """Says on standard error what is wrong and, where known, what to do."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text("error: ", style="bold red") + Text(message, style="not bold default"))
    if hint:
        console.print(Text("hint:  ", style="bold cyan") + Text(hint, style="not bold default"))


def say(text: str = "") -> None:
    """A line on standard output, where rich markup may be used."""
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(text)


def note(text: str) -> None:
    """A line on standard error: not part of the result."""
    typer.echo(text, err=True)


def visible(text: str) -> str:
    """Others' text on one line, with its control characters written out as JSON does, in which that changes nothing."""
    return _HIDDEN.sub(lambda found: _SHORT.get(found[0]) or f"\\u{ord(found[0]):04x}", text)


def shorten(text: str) -> str:
    """A text that is long is cut on a terminal; in a pipe nothing is."""
    is_whole = len(text) <= CELL_CHARACTERS_MAX or not sys.stdout.isatty()
    return text if is_whole else text[: CELL_CHARACTERS_MAX - 1] + "…"


def print_json(value: Any) -> None:
    """Indented and coloured on a terminal, one line in a pipe."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.highlighter import JSONHighlighter

        lines = json.dumps(value, ensure_ascii=False, indent=2).split("\n")
        Console(soft_wrap=True).print(JSONHighlighter()("\n".join(map(visible, lines))))
    else:
        typer.echo(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", *, is_short: bool = False
) -> None:
    """A table as wide as its content: in a pipe nothing is cut, and on a terminal only what is long if it `is_short`.

    Where a terminal has no room for so many columns without breaking their words, each row is some lines instead.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=PIPE_WIDTH)
    shown = [[shorten(cell) if is_short else cell for cell in row] for row in rows]
    words = [_longest_word(column, (row[place] for row in shown)) for place, column in enumerate(columns)]
    if not _has_room(console.width, words):
        if title:
            console.print(Text(title), "", sep="\n")
        for row in shown:
            told = "\n".join(f"{column}: {cell}" for column, cell in zip(columns, row, strict=True) if cell)
            console.print(Text(told), "", sep="\n", soft_wrap=True)
        return
    table = Table(box=box.SIMPLE_HEAD, title=Text(title) if title else None, title_justify="left", pad_edge=False)
    for place, column in enumerate(columns):
        is_a_word = max((len(cell) for cell in (column, *(row[place] for row in shown))), default=0) <= words[place]
        table.add_column(Text(column), overflow="fold", no_wrap=is_a_word and len(columns) > PAIR)
    for row in shown:
        table.add_row(*map(Text, row))
    console.print(table)


def _longest_word(column: str, cells: Iterable[str]) -> int:
    """How wide a column must be so that no word in it is broken, in characters."""
    return min(WORD_CHARACTERS_MAX, max((len(word) for text in (column, *cells) for word in text.split()), default=0))


def _has_room(width: int, words: Sequence[int]) -> bool:
    """Whether a table can be read on a terminal. Names beside their values are read in a narrow one, too."""
    if len(words) <= PAIR:
        return width >= len(words) * COLUMN_WIDTH_MIN
    return width >= sum(word + CELL_SPACE for word in words)
