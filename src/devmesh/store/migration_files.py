"""Reads the migration pairs of a folder and refuses what could be applied by half or twice.

Must not know a database: files in, `Migration` values out. What has been applied is `migration_states`' noun.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

MIGRATIONS_DIRECTORY = Path(__file__).parent / "migrations"

_FILE_NAME = re.compile(r"^(?P<version>\d{6})_(?P<name>[a-z0-9_]+)\.(?P<direction>up|down)\.sql$")
_HEADER = re.compile(r"^--\s*(?P<name>transaction|works with):\s*(?P<value>.*?)\s*$")
_TOKEN = re.compile(
    r"""
      --[^\n]*                             # a comment to the end of the line
    | /\*.*?\*/                            # a comment
    | \b[eE]'(?:[^'\\]|\\.|'')*'           # a string with escapes
    | '(?:[^']|'')*'                       # a string
    | "(?:[^"]|"")*"                       # a quoted name
    | \$(?P<tag>[A-Za-z_]*)\$.*?\$(?P=tag)\$   # a dollar-quoted string
    | ;
    """,
    re.VERBOSE | re.DOTALL,
)
_TRANSACTION_WORD = re.compile(r"^(begin|start|commit|end|rollback|abort|savepoint)\b", re.IGNORECASE)


class MigrationError(Exception):
    """Migrations cannot go on, or must not. The message names each that is concerned and says what to do."""


@dataclass(frozen=True, slots=True)
class Script:
    """One file of SQL."""

    file_name: str
    text: str
    in_transaction: bool
    works_with: int | None = None  # the oldest version whose programs keep working when this has been applied

    def statements(self) -> list[str]:
        """The statements one by one, for a script without a transaction: sent together they would be in one."""
        return split_statements(self.text)


@dataclass(frozen=True, slots=True)
class Migration:
    """A step of the schema and the way back."""

    version: int
    name: str
    up: Script
    down: Script

    @property
    def label(self) -> str:
        return f"{self.version:06d}_{self.name}"

    @property
    def checksum(self) -> str:
        """Of the way up alone: a way back may be mended after it was written."""
        return hashlib.sha256(self.up.text.encode()).hexdigest()

    @property
    def works_with(self) -> int | None:
        """Programs whose newest migration has this version or a later one keep working on the schema with this step.

        None: only those that have the step itself do. So a step that only adds is taken before the programs are
        replaced, and one that removes after the last of the older ones is gone.
        """
        return self.up.works_with


def read_migrations(directory: Path = MIGRATIONS_DIRECTORY) -> tuple[Migration, ...]:
    """Every migration of a folder, in order. Raises `MigrationError` for a file that does not belong or is missing."""
    scripts: dict[tuple[int, str, str], Script] = {}
    for path in sorted(directory.glob("*.sql")):
        match = _FILE_NAME.match(path.name)
        if match is None:
            raise MigrationError(f"{path.name} is not a migration: name it 00000N_name.up.sql or 00000N_name.down.sql")
        key = (int(match["version"]), match["name"], match["direction"])
        scripts[key] = _read_script(path)
    steps = sorted({(version, name) for version, name, _ in scripts})
    for expected, (version, name) in enumerate(steps, start=1):
        if version != expected:
            raise MigrationError(f"{version:06d}_{name} should be number {expected}: numbers go up by one from 1")
        for direction in ("up", "down"):
            if (version, name, direction) not in scripts:
                raise MigrationError(f"{version:06d}_{name}.{direction}.sql is missing: migrations come in pairs")
        works_with = scripts[version, name, "up"].works_with
        if works_with is not None and not 1 <= works_with < version:
            raise MigrationError(f"{version:06d}_{name} works with {works_with:06d}: it can only with an earlier one")
    return tuple(
        Migration(version, name, scripts[version, name, "up"], scripts[version, name, "down"])
        for version, name in steps
    )


def split_statements(text: str) -> list[str]:
    """Cuts a script at the semicolons outside of strings and comments. Knows no `begin atomic` function bodies."""
    statements: list[str] = []
    bare: list[str] = []  # the current statement without its comments, to tell whether it is one
    start = position = 0
    for token in _TOKEN.finditer(text):
        bare.append(text[position : token.start()])
        position = token.end()
        if token[0] == ";":
            if "".join(bare).strip():
                statements.append(text[start : token.start()].strip())
            bare, start = [], position
        elif not token[0].startswith(("--", "/*")):
            bare.append(token[0])
    bare.append(text[position:])
    if "".join(bare).strip():
        statements.append(text[start:].strip())
    return statements


def _read_script(path: Path) -> Script:
    text = path.read_text(encoding="utf-8").replace("\r\n", "\n")  # a checkout may have changed them
    headers = _headers(text)
    mode, works_with = headers.get("transaction"), headers.get("works with")
    if mode not in (None, "none"):
        raise MigrationError(f"{path.name}: `-- transaction: {mode}` is unknown; only `none` is")
    if works_with is not None and re.fullmatch(r"\d{6}", works_with) is None:
        raise MigrationError(f"{path.name}: `-- works with: {works_with}` is no version: write its six digits")
    statements = split_statements(text)
    if not statements:
        raise MigrationError(f"{path.name} has no SQL")
    for statement in statements:
        first_line = next(line for line in statement.splitlines() if line.strip() and not line.startswith("--"))
        if _TRANSACTION_WORD.match(first_line.strip()):
            raise MigrationError(f"{path.name} has `{first_line.strip()}`: the migrator begins and ends transactions")
    return Script(path.name, text, mode is None, None if works_with is None else int(works_with))


def _headers(text: str) -> dict[str, str]:
    """What the comments above the first SQL declare."""
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("--"):
            break
        if header := _HEADER.match(line):
            found[header["name"]] = header["value"]
    return found
