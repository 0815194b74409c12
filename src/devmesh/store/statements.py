"""Loads the named SQL statements of `sql/`, so that SQL is written and read as SQL and each block says what it does.

Must not know what any statement means, nor open a connection: it turns files into text. Whether a statement fits the
schema is found out by whoever prepares it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SQL_DIRECTORY = Path(__file__).parent / "sql"

SEPARATOR = "\x1e"  # between the members of a list that is one text: it is in no JSON text, and in no name or key

_HEADING = re.compile(r"^--\s*name:(?P<name>.*)$")
_PARAMETER = re.compile(r"\$(\d+)")
_NAME = re.compile(r"^[a-z][a-z0-9_]*$")


class StatementError(Exception):
    """A statement file is malformed. It is our mistake, found when the program starts."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One named piece of SQL."""

    name: str  # with its noun: `tasks.insert_many`
    text: str
    comment: str

    def spelled_out(self, *values: str) -> str:
        """The statement with values in the place of its parameters, for a message that holds several statements.

        Such a message has no parameters. The text changes with the values, so PostgreSQL parses and plans it each time:
        this is for statements that need little of both. Lists go as one text, joined by `SEPARATOR`.
        """
        return _PARAMETER.sub(lambda found: _quoted(values[int(found[1]) - 1]), self.text).rstrip(";")


def together(name: str, statements: Sequence[Statement]) -> Statement:
    """One statement of several whose rows are alike: each says which `statement` it is of. $1 the names of those asked.

    Those that it is made of have no parameters. Those that are not asked are not run.
    """
    parts = [
        f"select '{each.name}' as statement, f.* from ({each.text.rstrip(';')}) f where '{each.name}' = any($1::text[])"  # noqa: S608
        for each in statements
    ]
    return Statement(name, "\nunion all\n".join(parts), "Several statements in one round trip.")


class Statements:
    """The statements of one noun, as attributes: `tasks.insert_many`."""

    __slots__ = ("_by_name", "_noun")

    def __init__(self, noun: str, by_name: dict[str, Statement]) -> None:
        self._noun = noun
        self._by_name = by_name

    def __getattr__(self, name: str) -> Statement:
        if name.startswith("_"):
            raise AttributeError(name)  # copying and pickling ask for these before there is anything to look in
        try:
            return self._by_name[name]
        except KeyError:
            known = ", ".join(sorted(self._by_name)) or "none"
            raise AttributeError(f"sql/{self._noun}.sql has no statement {name!r}; it has: {known}") from None

    def __iter__(self) -> Iterator[Statement]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)


def load(noun: str, directory: Path = SQL_DIRECTORY) -> Statements:
    """The statements of `<noun>.sql`."""
    path = directory / f"{noun}.sql"
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StatementError(f"there is no statement file {path.name}") from None
    return Statements(noun, parse(noun, source))


def all_statements(directory: Path = SQL_DIRECTORY) -> list[Statement]:
    """Every statement there is, by file and then in the order written: what is prepared at start."""
    return [statement for path in sorted(directory.glob("*.sql")) for statement in load(path.stem, directory)]


def parse(noun: str, source: str) -> dict[str, Statement]:
    """Reads the blocks of one file. Raises `StatementError` that names the file, the line and the block."""
    found: dict[str, Statement] = {}
    block: list[str] = []
    heading: str | None = None
    for number, line in enumerate(source.splitlines(), start=1):
        match = _HEADING.match(line)
        if match is None:
            if heading is None and line.strip() and not line.startswith("--"):
                raise StatementError(f"{noun}.sql:{number}: SQL before the first `-- name:`")
            block.append(line)
            continue
        if heading is not None:
            found[heading] = _statement(noun, heading, block)
        heading, block = match["name"].strip(), []
        if not _NAME.match(heading):
            raise StatementError(f"{noun}.sql:{number}: {heading!r} is not a name: use a-z, 0-9 and _")
        if heading in found:
            raise StatementError(f"{noun}.sql:{number}: {heading!r} is there twice")
    if heading is not None:
        found[heading] = _statement(noun, heading, block)
    return found


def _statement(noun: str, name: str, block: list[str]) -> Statement:
    comment_lines = 0
    while comment_lines < len(block) and block[comment_lines].startswith("--"):
        comment_lines += 1
    comment = " ".join(line.removeprefix("--").strip() for line in block[:comment_lines]).strip()
    if not comment:
        raise StatementError(f"{noun}.sql: {name!r} has no comment: say what it does and what its parameters are")
    body = block[comment_lines:]
    if not any(line.strip().rstrip(";") and not line.lstrip().startswith("--") for line in body):
        raise StatementError(f"{noun}.sql: {name!r} has no SQL")
    return Statement(name=f"{noun}.{name}", text="\n".join(body).strip(), comment=comment)


def _quoted(value: str) -> str:
    """A value as a literal, with `standard_conforming_strings` on, which sessions set."""
    if "\0" in value:
        raise ValueError("PostgreSQL's text has no character of number 0")
    return "'" + value.replace("'", "''") + "'"
