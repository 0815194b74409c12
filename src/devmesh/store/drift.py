"""Holds the live catalogue against the expected one, piece by piece, and says what would mend each difference.

Must not know a database: pure, so that services, `devmesh doctor` and tests all say the same.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from devmesh.store.catalogue import Fact, Piece
from devmesh.store.mending import Mender, is_foreign_key, rank

NAMED_BY_STATEMENTS = ("table", "column", "view", "function", "sequence")


class Difference(enum.StrEnum):
    MISSING = "missing"
    DIFFERENT = "different"
    EXTRA = "extra"


@dataclass(frozen=True, slots=True)
class Finding:
    """One piece that is not as the migrations make it."""

    kind: str
    name: str  # in full: mcp.tasks.lane
    difference: Difference
    detail: str  # what is different about it; empty for the others
    sql: str  # what would mend it

    @property
    def is_problem(self) -> bool:
        """What is missing or different keeps a service from being ready. What is there besides harms nobody."""
        return self.difference is not Difference.EXTRA

    @property
    def sentence(self) -> str:
        match self.difference:
            case Difference.MISSING:
                return f"{self.kind} {self.name} is missing"
            case Difference.DIFFERENT:
                return f"{self.kind} {self.name} is different: {self.detail}"
            case Difference.EXTRA:
                return f"{self.kind} {self.name} is of no migration"


@dataclass(frozen=True, slots=True)
class Drift:
    """All that was found, in the order in which it is to be mended. Nothing, when the schema is as it should be."""

    findings: tuple[Finding, ...] = ()

    @property
    def problems(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.is_problem]

    @property
    def extras(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.is_problem]


def compare(expected: Sequence[Piece], live: Sequence[Piece], *, is_later: bool = False) -> Drift:
    """The drift of a live schema from the expected one.

    `is_later`: migrations have been applied that the expected catalogue does not know. They say that they only add to what
    its programs need, so whatever statements name must be there still, and nothing else can be judged.
    """
    mender, there = Mender(expected), {(piece.kind, piece.name): piece for piece in live}
    found = []
    for piece in sorted(expected, key=rank):
        found_there = there.pop((piece.kind, piece.name), None)
        if found_there is None:
            if not is_later or piece.kind in NAMED_BY_STATEMENTS:
                found.append(_finding(piece, Difference.MISSING, mender.create(piece)))
        elif found_there.facts != piece.facts and not is_later:
            detail = _detail(piece.facts, found_there.facts)
            found.append(_finding(piece, Difference.DIFFERENT, mender.change(piece, found_there), detail))
    if not is_later:
        is_keepers = _keepers(expected)
        found += [
            _finding(piece, Difference.EXTRA, mender.drop(piece)) for piece in there.values() if not is_keepers(piece)
        ]
    return Drift(tuple(_without_what_hangs_on_them(found, [*expected, *live])))


def _finding(piece: Piece, difference: Difference, statements: Iterable[str], detail: str = "") -> Finding:
    return Finding(piece.kind, piece.name, difference, detail, "\n".join(statements))


def _detail(wanted: dict[str, Fact], there: dict[str, Fact]) -> str:
    """What is and what should be, fact by fact."""
    facts = [(fact, there.get(fact), wanted.get(fact)) for fact in sorted(wanted.keys() | there.keys())]
    return ", ".join(
        f"another {fact}" if "\n" in f"{is_now}{should}" else f"{fact} is {_word(is_now)}, not {_word(should)}"
        for fact, is_now, should in facts
        if is_now != should
    )


def _word(fact: Fact | None) -> str:
    if isinstance(fact, str):
        return f"`{fact}`"
    return {None: "none", True: "yes", False: "no"}[fact]


def _keepers(expected: Iterable[Piece]) -> Callable[[Piece], bool]:
    """Tells what is, or hangs on, a table that the keeper of partitions is at work with: a month that was detached because it
    is kept no longer, or the stand-in of a default partition that is being drained."""
    partitioned = [piece.name for piece in expected if piece.kind == "table" and piece.text("partition key")]
    name = re.compile(rf"({'|'.join(map(re.escape, partitioned))})_(\d{{4}}_\d{{2}}|default|drain)(_default|_gone)?")
    return lambda piece: bool(partitioned) and name.fullmatch(piece.owner or piece.name) is not None


def _without_what_hangs_on_them(found: list[Finding], pieces: Iterable[Piece]) -> list[Finding]:
    """A missing or extra table stands for its columns and all else on it, but for foreign keys, which are made later."""
    tables = {(finding.name, finding.difference) for finding in found if finding.kind == "table"}
    hanging = {(piece.kind, piece.name): piece.owner for piece in pieces if piece.owner and not is_foreign_key(piece)}
    return [
        finding for finding in found if (hanging.get((finding.kind, finding.name)), finding.difference) not in tables
    ]
