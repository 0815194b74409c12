"""The SQL that makes a piece of the schema what the migrations make of it. Operators run it; DevMesh never does by itself.

Each statement can be run twice. A piece that others are made of takes them along: a view does not let go of a column. Must
not know a database: pieces in, SQL out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from devmesh.store.catalogue import Piece

MONTHS_AHEAD = 12

# What has to be there before what: a generated column needs its function, a foreign key the key it points at.
_ORDER = ("sequence", "function", "table", "column", "constraint", "index", "view", "trigger")


def rank(piece: Piece) -> tuple[int, bool, str]:
    """Where a piece stands in the order in which pieces are mended."""
    return _ORDER.index(piece.kind), is_foreign_key(piece), piece.name


def is_foreign_key(piece: Piece) -> bool:
    return piece.kind == "constraint" and piece.text("definition").startswith("FOREIGN KEY")


class Mender:
    """Knows all pieces that the migrations make, because some of them stand on others."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces

    def create(self, piece: Piece) -> list[str]:
        """The statements that make a missing piece."""
        definition = piece.text("definition").strip().rstrip(";")
        match piece.kind:
            case "table":
                return self._create_table(piece)
            case "column":
                return [f"alter table {piece.owner} add column if not exists {_column(piece)};{_remark(piece)}"]
            case "constraint":
                return [
                    f"alter table {piece.owner} drop constraint if exists {piece.own_name};",
                    f"alter table {piece.owner} add constraint {piece.own_name} {definition};",
                ]
            case "index":
                return [definition.replace(" INDEX ", " INDEX IF NOT EXISTS ", 1) + ";"]
            case "trigger":
                return [f"drop trigger if exists {piece.own_name} on {piece.owner};", f"{definition};"]
            case "view":
                kind = "materialized view if not exists" if piece.facts["materialized"] else "or replace view"
                verb = f"create {kind}"
                return [f"{verb} {piece.name} as\n{definition};"]
            case "sequence":
                return [f"create sequence if not exists {piece.name} {_sequence(piece)};"]
            case _:
                return [f"{definition};"]

    def drop(self, piece: Piece) -> list[str]:
        """The statements that remove a piece of no migration. Nothing that depends on it is taken along."""
        if piece.kind in ("column", "constraint"):
            return [f"alter table {piece.owner} drop {piece.kind} if exists {piece.own_name};"]
        if piece.kind == "trigger":
            return [f"drop trigger if exists {piece.own_name} on {piece.owner};"]
        kind = {"function": "routine"}.get(piece.kind, piece.kind)
        if piece.facts.get("materialized"):
            kind = "materialized view"
        return [f"drop {kind} if exists {piece.name};"]

    def change(self, wanted: Piece, live: Piece) -> list[str]:
        """The statements that turn a piece into what it should be."""
        facts = wanted.facts.keys() | live.facts.keys()
        differing = {fact for fact in facts if wanted.facts.get(fact) != live.facts.get(fact)}
        match wanted.kind:
            case "table":
                return self._change_table(wanted, differing)
            case "column":
                return self._change_column(wanted, live, differing)
            case "constraint" if differing == {"valid"}:
                return [f"alter table {wanted.owner} validate constraint {wanted.own_name};"]
            case "trigger" if differing == {"enabled"}:
                verb = "enable" if wanted.facts["enabled"] else "disable"
                return [f"alter table {wanted.owner} {verb} trigger {wanted.own_name};"]
            case "view":
                return self._without_views({wanted.name}, [*self.drop(live), *self.create(wanted)])
            case "sequence":
                return [f"alter sequence {wanted.name} {_sequence(wanted)};"]
            case "function" if differing == {"definition"}:
                return self.create(wanted)
            case _:
                return [*self.drop(live), *self.create(wanted)]

    def _create_table(self, table: Piece) -> list[str]:
        """The table with its columns and all that hangs on it but foreign keys, which may point at what is not there yet."""
        hanging = [piece for piece in self._pieces if piece.owner == table.name and not is_foreign_key(piece)]
        inside = [_column(piece) for piece in hanging if piece.kind == "column"]
        inside += [
            f"constraint {piece.own_name} {piece.text('definition')}" for piece in hanging if piece.kind == "constraint"
        ]
        logged = "" if table.facts["logged"] else " unlogged"
        key = table.text("partition key")
        partitioned = f" partition by {key}" if key else ""
        columns = ",\n    ".join(inside)
        after = [
            statement for piece in hanging if piece.kind in ("index", "trigger") for statement in self.create(piece)
        ]
        if key:
            after.append(f"select mcp.ensure_partitions('{table.name.removeprefix('mcp.')}', {MONTHS_AHEAD});")
        return [f"create{logged} table if not exists {table.name} (\n    {columns}\n){partitioned};", *after]

    def _change_table(self, wanted: Piece, differing: set[str]) -> list[str]:
        if "partition key" in differing:
            return [
                "create schema if not exists mcp_aside;",
                f"alter table {wanted.name} set schema mcp_aside;  -- with its rows, which have to be copied back by hand",
                *self._create_table(wanted),
            ]
        return [f"alter table {wanted.name} set {'logged' if wanted.facts['logged'] else 'unlogged'};"]

    def _change_column(self, wanted: Piece, live: Piece, differing: set[str]) -> list[str]:
        if wanted.text("generated") and "generated" in differing:
            return self._with_dependents(wanted, [wanted], [])
        alter = f"alter table {wanted.owner} alter column {wanted.own_name}"
        statements = []
        if live.text("generated"):
            statements.append(f"{alter} drop expression if exists;")
        if differing & {"type", "collation"}:
            statements += [
                f"{alter} drop default;",
                f"{alter} type {_type(wanted)} using {wanted.own_name}::{wanted.text('type')};",
            ]
        if wanted.text("default") and (differing & {"type", "collation", "default"}):
            statements.append(f"{alter} set default {wanted.text('default')};")
        elif "default" in differing:
            statements.append(f"{alter} drop default;")
        if "not null" in differing:
            statements.append(f"{alter} {'set' if wanted.facts['not null'] else 'drop'} not null;")
        if "identity" in differing:
            statements.append(f"{alter} drop identity if exists;")
            if wanted.text("identity"):
                statements.append(f"{alter} add generated {wanted.text('identity')} as identity;")
        if differing & {"type", "collation"}:
            generated = [piece for piece in self._columns_of(wanted.owner) if _mentions(piece, "generated", wanted)]
            return self._with_dependents(wanted, generated, statements)
        return statements

    def _with_dependents(self, column: Piece, rebuilt: list[Piece], statements: list[str]) -> list[str]:
        """Makes a table's generated columns anew around a change, with the indexes and the views that stand on them."""
        assert column.owner is not None
        indexes = [
            piece
            for piece in self._pieces
            if piece.kind == "index"
            and piece.owner == column.owner
            and any(_mentions(piece, "definition", generated) for generated in rebuilt)
        ]
        return self._without_views(
            {column.owner},
            [
                *(statement for piece in rebuilt for statement in self.drop(piece)),
                *statements,
                *(statement for piece in [*rebuilt, *indexes] for statement in self.create(piece)),
            ],
        )

    def _without_views(self, names: set[str], statements: list[str]) -> list[str]:
        """The statements while no view stands on any of the names, and those views again."""
        views = self._views_upon(names)
        if not views:
            return statements
        dropped = [statement for view in reversed(views) for statement in self.drop(view)]
        return [*dropped, *statements, *(statement for view in views for statement in self.create(view))]

    def _views_upon(self, names: set[str]) -> list[Piece]:
        """The views that read one of the names, each before those that read it."""
        views = [piece for piece in self._pieces if piece.kind == "view"]
        found: list[Piece] = []
        reached = set(names)
        while more := [view for view in views if view not in found and _reads(view, reached)]:
            found += more
            reached |= {view.name for view in more}
        return found

    def _columns_of(self, owner: str | None) -> Iterable[Piece]:
        return (piece for piece in self._pieces if piece.kind == "column" and piece.owner == owner)


def _column(piece: Piece) -> str:
    """A column as in CREATE TABLE."""
    parts = [piece.own_name, _type(piece)]
    if piece.text("generated"):
        parts.append(f"generated always as ({piece.text('generated')}) stored")
    if piece.text("default"):
        parts.append(f"default {piece.text('default')}")
    if piece.text("identity"):
        parts.append(f"generated {piece.text('identity')} as identity")
    if piece.facts["not null"]:
        parts.append("not null")
    return " ".join(parts)


def _remark(column: Piece) -> str:
    """What nobody can know for an operator: the values that were lost."""
    has_value = any(column.text(fact) for fact in ("default", "generated", "identity"))
    if has_value or not column.facts["not null"]:
        return ""
    return '  -- in a table with rows: add it without "not null", fill it, then set "not null"'


def _type(column: Piece) -> str:
    collation = column.text("collation")
    return f"{column.text('type')} collate {collation}" if collation else column.text("type")


def _sequence(piece: Piece) -> str:
    return f"as {piece.text('type')} increment by {piece.text('increment')}"


def _mentions(piece: Piece, fact: str, column: Piece) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(column.own_name)}(?!\w)", piece.text(fact)) is not None


def _reads(view: Piece, names: set[str]) -> bool:
    return any(re.search(rf"{re.escape(name)}(?!\w)", view.text("definition")) for name in names if name != view.name)
