"""What the schema is made of, piece by piece: as a database has it, and as the migrations make it.

The expected catalogue is a file that is written from a freshly migrated database and lies beside the migrations, so that a
service need not make a database to know what one should look like. Must not judge: `drift` compares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from devmesh.store.database import Transaction
from devmesh.store.migration_files import Migration
from devmesh.store.statements import load

CATALOGUE_FILE = Path(__file__).parent / "catalogue.json"
SQL = load("catalogue")

Fact = str | bool


class Piece(msgspec.Struct, frozen=True):
    """A table, column, constraint, index, trigger, view, sequence or function."""

    kind: str
    name: str  # in full: mcp.tasks.lane
    owner: str | None  # the table it hangs on
    facts: dict[str, Fact]  # those that it has: a column without a default has none

    @property
    def own_name(self) -> str:
        """Of a column, a constraint or a trigger: its name within its table."""
        return self.name.removeprefix(f"{self.owner}.")

    def text(self, fact: str) -> str:
        """A fact that is a text; empty, if the piece does not have it."""
        value = self.facts.get(fact, "")
        assert isinstance(value, str)
        return value


class Catalogue(msgspec.Struct, frozen=True):
    """The pieces that some migrations make. Columns are in their tables' order."""

    made_of: str  # see `fingerprint`
    pieces: list[Piece]

    def is_of(self, migrations: Iterable[Migration]) -> bool:
        """Whether it tells what these migrations make: one of them may have been changed since."""
        return self.made_of == fingerprint(migrations)


def fingerprint(migrations: Iterable[Migration]) -> str:
    """Of the migrations that a catalogue is made of."""
    return hashlib.sha256("".join(migration.checksum for migration in migrations).encode()).hexdigest()


async def read_pieces(tx: Transaction) -> list[Piece]:
    """Every piece of the schema as the database has it."""
    await tx.fetch(SQL.look_from_nowhere)
    rows = await tx.fetch(SQL.pieces)
    decoder = msgspec.json.Decoder(dict[str, Fact])
    return [Piece(row["kind"], row["name"], row["owner"], decoder.decode(row["facts"])) for row in rows]


def expected(file: Path = CATALOGUE_FILE) -> Catalogue:
    """What the migrations of this program make."""
    return msgspec.json.decode(file.read_bytes(), type=Catalogue)


def encode(catalogue: Catalogue) -> bytes:
    """The file's content: a line a piece, so that a change of the schema reads as one."""
    lines = b",\n".join(msgspec.json.encode(piece, order="sorted") for piece in catalogue.pieces)
    return b'{"made_of":"%b","pieces":[\n%b\n]}\n' % (catalogue.made_of.encode(), lines)
