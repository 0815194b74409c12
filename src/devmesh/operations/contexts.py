"""The verbs of execution contexts: what executions leave behind, and how it is found again by those who do something alike."""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.ids import new_ids
from devmesh.core.names import (
    EMPTY_OBJECT,
    PAGE_BYTES_MAX,
    WITHOUT_NUL,
    Label,
    Labels,
    PageCursor,
    PageLimit,
    decode_page_cursor,
)
from devmesh.core.tasks import JsonValue
from devmesh.operations.pages import fit
from devmesh.operations.recall import Embedded, Recall
from devmesh.operations.registry import Call, Mutation, Params, operation
from devmesh.operations.task_views import LAST_ID
from devmesh.operations.work import Work
from devmesh.store.database import Record
from devmesh.store.jobs import SQL as JOBS
from devmesh.store.statements import load

SQL = load("contexts")
TEXT_CHARACTERS_MAX = 65_536
DIMENSIONS_MAX = 4_096
SMALLEST = 1e-18  # its square is about the smallest number of single precision, in which vectors are compared
OWN_MODEL = "own"
NO_VECTORS = "the database compares no vectors: install the extension pgvector (`create extension vector`)"
NO_DIRECTION = f"vector: expected finite numbers that are not all 0, or less than {SMALLEST:g}"
ContextText = Annotated[str, Meta(min_length=1, max_length=TEXT_CHARACTERS_MAX, pattern=WITHOUT_NUL)]
Component = Annotated[float, Meta(ge=-1e15, le=1e15)]
Vector = Annotated[list[Component], Meta(min_length=1, max_length=DIMENSIONS_MAX)]
WITH_DIRECTION = {"anyOf": [{"type": "null"}, {"contains": {"not": {"const": 0}}}]}


class Context(msgspec.Struct, kw_only=True):
    """What an execution has left behind. `model` is what made its vector, `dimensions` how long that is; null without one."""

    id: uuid.UUID
    job_id: uuid.UUID | None
    attempt: int | None
    type: str
    text: str
    data: Raw
    tags: list[str]
    model: str | None
    dimensions: int | None
    created_at: datetime.datetime
    created_by_key_id: uuid.UUID


class ContextResult(msgspec.Struct):
    context: Context


class Store(Mutation, kw_only=True):
    """`vector` is the caller's own, of any model: name it in `model`, since only vectors of one model are compared. Without
    one, the text gets a vector where the server has an embedder."""

    together = (
        {
            "not": {
                "required": ["model"],
                "properties": {"model": {"not": {"type": "null"}}, "vector": {"type": "null"}},
            }
        },
        {
            "not": {
                "required": ["attempt"],
                "properties": {"attempt": {"not": {"type": "null"}}, "job_id": {"type": "null"}},
            }
        },
        {"properties": {"vector": WITH_DIRECTION}},
    )

    type: Label
    text: ContextText
    data: JsonValue = msgspec.field(default_factory=lambda: EMPTY_OBJECT)
    tags: Labels = msgspec.field(default_factory=list)
    job_id: uuid.UUID | None = None
    attempt: Annotated[int, Meta(ge=1, le=2_147_483_647)] | None = None
    vector: Vector | None = None
    model: Label | None = None


async def _embed(recall: Recall, call: Call[Store]) -> Call[Store]:
    asked = call.params
    if recall.embedder is None or asked.vector is not None or asked.model is not None:
        return call
    embedded = Embedded(await recall.embedder.embed(asked.text), recall.embedder.name)
    return msgspec.structs.replace(call, found=embedded)


def _vector(call: Call[Store]) -> Embedded | None:
    """What a context is kept with: the caller's own vector, or the embedder's."""
    if call.params.vector is not None:
        return Embedded(in_single_precision(call.params.vector), call.params.model or OWN_MODEL)
    return call.found  # type: ignore[no-any-return]  # it is ours: see _embed


@operation("context.store", scope=Scope.WORKER, http="POST /contexts", ahead=_embed)
async def store(work: Work, calls: Sequence[Call[Store]]) -> Sequence[ContextResult | errors.MeshError]:
    """Keep what an execution has learned, to be found by those that do something alike."""
    ids = new_ids(len(calls))
    known = await _known_jobs(work, calls)
    refused = {
        context_id: error
        for context_id, call in zip(ids, calls, strict=True)
        if (error := _unusable(call.params, known)) is not None
    }
    kept = [(context_id, call) for context_id, call in zip(ids, calls, strict=True) if context_id not in refused]
    rows = await _insert(work, kept) if kept else []
    times = {row["context_id"]: row["created_at"] for row in rows}
    answers: list[ContextResult | errors.MeshError] = []
    for context_id, call in zip(ids, calls, strict=True):
        if context_id in refused:
            answers.append(refused[context_id])
            continue
        context = _new(context_id, call, times[context_id])
        work.emit("context.stored", (f"context:{context_id}",), {"context": context})
        answers.append(ContextResult(context))
    return answers


async def _insert(work: Work, kept: Sequence[tuple[uuid.UUID, Call[Store]]]) -> list[Record]:
    asked, vectors = [call.params for _, call in kept], [_vector(call) for _, call in kept]
    return await work.tx.fetch(
        SQL.insert, work.tenant_id, [context_id for context_id, _ in kept], [call.caller.key_id for _, call in kept],
        [each.job_id for each in asked], [each.attempt for each in asked], [each.type for each in asked],
        [each.text for each in asked], [bytes(each.data).decode() for each in asked], [_json(each.tags) for each in asked],
        [each.model if each is not None else None for each in vectors],
        [_json(each.vector) if each is not None else None for each in vectors],
    )  # fmt: skip


async def _known_jobs(work: Work, calls: Sequence[Call[Store]]) -> set[uuid.UUID]:
    asked = list({call.params.job_id for call in calls if call.params.job_id is not None})
    return {row["job_id"] for row in await work.tx.fetch(JOBS.known, work.tenant_id, asked)} if asked else set()


def _unusable(asked: Store, known_jobs: set[uuid.UUID]) -> errors.MeshError | None:
    if asked.job_id is not None and asked.job_id not in known_jobs:
        return errors.not_found("job", asked.job_id)
    if asked.vector is not None and not is_usable(asked.vector):
        return errors.invalid(NO_DIRECTION, "vector")
    if asked.model is not None and asked.vector is None:
        return errors.invalid("model: it says what made the vector, and there is none", "model")
    if asked.attempt is not None and asked.job_id is None:
        return errors.invalid("attempt: it is an attempt of a job; name that too", "attempt")
    return None


def is_usable(vector: Sequence[float]) -> bool:
    """A vector without a direction is like no other."""
    return all(math.isfinite(number) for number in vector) and any(in_single_precision(vector))


def in_single_precision(vector: Sequence[float]) -> list[float]:
    """As it is stored, in single precision: what is too small to be compared in that is nothing."""
    return [number if abs(number) >= SMALLEST else 0.0 for number in vector]


class ById(Params, kw_only=True):
    context_id: uuid.UUID


class ShownContext(msgspec.Struct):
    context: Context
    vector: list[float] | None


@operation("context.get", scope=Scope.READ, http="GET /contexts/{context_id}", single=True)
async def get(work: Work, call: Call[ById]) -> ShownContext:
    """Show a context, with its vector, whose numbers are kept in single precision."""
    row = await work.tx.fetch_row(SQL.get, work.tenant_id, call.params.context_id)
    if row is None:
        raise errors.not_found("context", call.params.context_id)
    return ShownContext(from_row(row), row["shown"])


class Filters(Params, kw_only=True):
    job_id: uuid.UUID | None = None
    type: Label | None = None
    tag: Label | None = None


class ListContexts(Filters, kw_only=True):
    limit: PageLimit = 50
    cursor: PageCursor | None = None


class ContextsResult(msgspec.Struct):
    contexts: list[Context]
    next_cursor: str | None = None


@operation("context.list", scope=Scope.READ, http="GET /contexts", single=True)
async def list_contexts(work: Work, call: Call[ListContexts]) -> ContextsResult:
    """List contexts, the latest first, filtered by job, type and one tag.

    A page holds 1 MiB at most, unless its only context is larger.
    """
    asked = call.params
    below = decode_page_cursor(asked.cursor) or LAST_ID
    filters = (asked.job_id, asked.type, asked.tag)
    rows = await work.tx.fetch(SQL.page, work.tenant_id, below, *filters, asked.limit, PAGE_BYTES_MAX)
    if not rows:
        await require_job(work, asked.job_id)
    page = fit(rows, asked.limit)
    return ContextsResult([from_row(row) for row in page.rows], page.cursor("context_id"))


class OneContext(Mutation, kw_only=True):
    context_id: uuid.UUID


@operation("context.delete", scope=Scope.WRITE, http="DELETE /contexts/{context_id}", single=True)
async def delete(work: Work, call: Call[OneContext]) -> ContextResult:
    """Forget a context."""
    rows = await forget(work, [call.params.context_id])
    if not rows:
        raise errors.not_found("context", call.params.context_id)
    return ContextResult(from_row(rows[0]))


async def forget(work: Work, context_ids: Sequence[uuid.UUID]) -> list[Record]:
    """Those that were there."""
    rows = await work.tx.fetch(SQL.delete, work.tenant_id, context_ids)
    for row in rows:
        context_id = row["context_id"]
        work.emit("context.deleted", (f"context:{context_id}",), {"context": {"id": context_id}})
    return rows


async def require_job(work: Work, job_id: uuid.UUID | None) -> None:
    """Of a job that nothing was found of: contexts are kept for longer than jobs are."""
    if job_id is not None and not await work.tx.fetch(JOBS.known, work.tenant_id, [job_id]):
        raise errors.not_found("job", job_id)


def _new(context_id: uuid.UUID, call: Call[Store], created_at: datetime.datetime) -> Context:
    asked, made = call.params, _vector(call)
    return Context(
        id=context_id, job_id=asked.job_id, attempt=asked.attempt, type=asked.type, text=asked.text, data=Raw(asked.data),
        tags=asked.tags, model=made.model if made else None, dimensions=len(made.vector) if made else None,
        created_at=created_at, created_by_key_id=call.caller.key_id,
    )  # fmt: skip


def from_row(row: Record) -> Context:
    vector = row["vector"]
    return Context(
        id=row["context_id"], job_id=row["job_id"], attempt=row["attempt"], type=row["type"], text=row["text"],
        data=Raw(row["data"]), tags=row["tags"], model=row["model"], dimensions=len(vector) if vector is not None else None,
        created_at=row["created_at"], created_by_key_id=row["created_by_key_id"],
    )  # fmt: skip


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
