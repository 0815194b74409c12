"""What contexts are found by besides the database: an embedder that makes vectors of texts, and an index that compares vectors.

Both are asked ahead of the transaction and never in it. Must not know how they work, nor that either is there: without an
embedder texts are searched by their words, and without an index PostgreSQL compares the vectors.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Embedder(Protocol):
    """Makes vectors of texts, of which those that mean the same are alike."""

    @property
    def name(self) -> str:
        """Of its model. Only vectors of one model are compared."""

    async def embed(self, text: str) -> list[float]:
        """Raises MeshError: `unavailable` when too many are asking."""


class Wanted(NamedTuple):
    """What vectors are to be found: of one tenant, one model and one length, and alike one."""

    tenant_id: uuid.UUID
    vector: Sequence[float]
    model: str
    job_id: uuid.UUID | None
    type: str | None
    tag: str | None
    min_score: float
    limit: int


class Match(NamedTuple):
    context_id: uuid.UUID
    score: float


class VectorIndex(Protocol):
    """Compares vectors outside of PostgreSQL, which stays the truth: what it finds is looked up there."""

    async def search(self, wanted: Wanted) -> list[Match]:
        """Those that are most alike, the most alike first. Raises MeshError: `unavailable` when it is away."""


@dataclass(frozen=True, slots=True)
class Recall:
    """What this process was given. `ahead` functions of operations get it."""

    embedder: Embedder | None = None
    index: VectorIndex | None = None


class Embedded(NamedTuple):
    """A vector that an embedder has made of a context's text."""

    vector: list[float]
    model: str


class Sought(NamedTuple):
    """What a search compares, and what an index has found for it; None when PostgreSQL is to compare."""

    vector: Sequence[float]
    model: str
    matches: list[Match] | None
