"""How contexts are found that are alike: by a vector, or by the words of a text."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.contexts import By
from devmesh.core.names import PAGE_BYTES_MAX, Label, PageLimit
from devmesh.operations.contexts import (
    NO_DIRECTION,
    NO_VECTORS,
    OWN_MODEL,
    SQL,
    WITH_DIRECTION,
    Context,
    ContextText,
    Filters,
    Vector,
    from_row,
    in_single_precision,
    is_usable,
    require_job,
)
from devmesh.operations.pages import fit
from devmesh.operations.recall import Recall, Sought, Wanted
from devmesh.operations.registry import Call, operation
from devmesh.operations.work import Work
from devmesh.store.database import Record

LOOKED_AT_MAX = 1_000
GONE_MAX = 500  # contexts that are forgotten, and that an index may still have and find before others
NO_EMBEDDER = (
    "this server makes no vectors of texts (setting DEVMESH_EMBEDDER): give a vector of your own, or search by text"
)
MEANWHILE = "try again later, or search by the words of a text (by: text)"
Score = Annotated[float, Meta(ge=0, le=1)]


class Search(Filters, kw_only=True):
    """Either `text`, or a `vector` with the `model` that made it.

    Where the server has an embedder, a text is searched by the vector that it makes of it, among those that it made; otherwise
    by its words. `by` asks for one of the two.
    """

    together = ({"oneOf": [
        {"required": ["text"], "properties": {"text": {"not": {"type": "null"}}, "vector": {"type": "null"}}},
        {"required": ["vector"], "properties": {
            "text": {"type": "null"}, "vector": {"not": {"type": "null"}}, "by": {"not": {"const": "text"}}}},
    ]}, {"properties": {"vector": WITH_DIRECTION}})  # fmt: skip

    text: ContextText | None = None
    vector: Vector | None = None
    model: Label = OWN_MODEL
    by: By | None = None
    min_score: Score = 0.0
    limit: PageLimit = 10


class Found(msgspec.Struct):
    """`score` is between 0 and 1: by vector, the cosine of the angle; by text, the share of its words that are there."""

    score: float
    context: Context


class SearchResult(msgspec.Struct):
    """`by` says how it was searched: `vector`, with its model and how long it is, or `text`. `left_out` is how many more were
    found, which are less alike, and for which there was no room."""

    by: By
    model: str | None
    dimensions: int | None
    results: list[Found]
    left_out: int


async def _seek(recall: Recall, call: Call[Search]) -> Call[Search]:
    """Makes a vector of the text where that can be, and asks the index where there is one."""
    asked = call.params
    if (asked.text is None) == (asked.vector is None):
        raise errors.invalid("give either text or vector", "text")
    if asked.vector is not None:
        if asked.by is By.TEXT:
            raise errors.invalid("by: a vector has no words; give a text", "by")
        if not is_usable(asked.vector):
            raise errors.invalid(NO_DIRECTION, "vector")
        vector, model = in_single_precision(asked.vector), asked.model
    elif asked.by is By.TEXT or (recall.embedder is None and asked.by is None):
        return call
    elif recall.embedder is None:
        raise errors.conflict("context.no_embedder", NO_EMBEDDER, "by")
    else:
        assert asked.text is not None
        vector, model = await recall.embedder.embed(asked.text), recall.embedder.name
    matches = None
    if recall.index is not None:
        filters = (asked.job_id, asked.type, asked.tag, asked.min_score, asked.limit + GONE_MAX)
        try:
            matches = await recall.index.search(Wanted(call.caller.tenant_id, vector, model, *filters))
        except errors.MeshError as error:
            raise _told_what_to_do(error) from error
    return msgspec.structs.replace(call, found=Sought(vector, model, matches))


def _told_what_to_do(error: errors.MeshError) -> errors.MeshError:
    if error.kind is not errors.Kind.UNAVAILABLE:
        return error
    return errors.unavailable(f"{error.message}; {MEANWHILE}", error.data.retry_after_ms or 500)


@operation("context.search", scope=Scope.READ, http="POST /contexts/search", single=True, ahead=_seek)
async def search(work: Work, call: Call[Search]) -> SearchResult:
    """Find contexts that are alike, the most alike first: by a vector, or by the words of a text.

    An answer holds 1 MiB at most, unless its only context is larger.
    """
    found = await _search(work, call)
    if not found.results:
        await require_job(work, call.params.job_id)
    return found


async def _search(work: Work, call: Call[Search]) -> SearchResult:
    asked, sought = call.params, call.found
    filters = (asked.job_id, asked.type, asked.tag, asked.min_score, asked.limit)
    if isinstance(sought, Sought):
        if sought.matches is not None:
            found = [(match.context_id, match.score) for match in sought.matches]
            return await _by_vector(work, sought, found, asked.limit)
        if await work.tx.fetch_value(SQL.has_vectors):
            rows = await work.tx.fetch(SQL.by_vector, work.tenant_id, sought.vector, sought.model, *filters)
            return await _by_vector(work, sought, [(row["context_id"], row["score"]) for row in rows], asked.limit)
        if asked.text is None or asked.by is By.VECTOR:
            raise errors.unavailable(f"{NO_VECTORS}, or search by text")
    rows = await work.tx.fetch(SQL.by_words, work.tenant_id, asked.text, *filters, LOOKED_AT_MAX)
    found = [(row["context_id"], row["score"]) for row in rows]
    return SearchResult(By.TEXT, None, None, *await _shown(work, found, asked.limit))


async def _by_vector(
    work: Work, sought: Sought, found: Sequence[tuple[uuid.UUID, float]], count_max: int
) -> SearchResult:
    return SearchResult(By.VECTOR, sought.model, len(sought.vector), *await _shown(work, found, count_max))


async def _shown(work: Work, found: Sequence[tuple[uuid.UUID, float]], count_max: int) -> tuple[list[Found], int]:
    """Contexts that were found, each by its id and its score, and that are there: as many as there is room for of the first so
    many, and how many others there are of these."""
    if not found:
        return [], 0
    ids, scores = zip(*found, strict=True)
    rows = await work.tx.fetch(SQL.scored, work.tenant_id, ids, scores, count_max, PAGE_BYTES_MAX)
    shown = fit(rows, count_max).rows
    return [_found(row) for row in shown], (rows[0]["found"] if rows else 0) - len(shown)


def _found(row: Record) -> Found:
    return Found(min(max(round(row["score"], 6), 0.0), 1.0), from_row(row))
