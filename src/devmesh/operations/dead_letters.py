"""The verbs of dead letters: jobs that have failed for good, until they are replayed or discarded."""

from __future__ import annotations

import datetime
import uuid
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Raw

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.errors import Kind
from devmesh.core.ids import FIRST_ID
from devmesh.core.jobs import QueueName, Status
from devmesh.core.names import PAGE_BYTES_MAX, Label, PageCursor, PageLimit, decode_page_cursor
from devmesh.operations.job_dependencies import End, settle
from devmesh.operations.job_events import tell
from devmesh.operations.job_locking import lock_dead, take_in_hand
from devmesh.operations.job_replaying import KEY_TAKEN, SQL, Rest
from devmesh.operations.job_replaying import replay as put_back
from devmesh.operations.job_verbs import Refused
from devmesh.operations.pages import fit
from devmesh.operations.registry import Call, Mutation, Params, operation
from devmesh.operations.task_views import LAST_ID
from devmesh.operations.work import Work
from devmesh.store.database import Record
from devmesh.store.jobs import raw

REPLAYED_MAX = 10_000


class DeadLetter(msgspec.Struct):
    """`error` is the last one; `job.executions` has those before."""

    job_id: uuid.UUID
    queue: str
    type: str
    priority: int
    attempt: int
    retry_count: int
    error: Raw | None
    failed_at: datetime.datetime
    created_at: datetime.datetime


class DeadLetterResult(msgspec.Struct):
    dead_letter: DeadLetter


class ById(Params, kw_only=True):
    job_id: uuid.UUID


@operation("dead_letter.get", scope=Scope.READ, http="GET /dead-letters/{job_id}", single=True)
async def get(work: Work, call: Call[ById]) -> DeadLetterResult:
    """Show the dead letter of a job."""
    row = await work.tx.fetch_row(SQL.get, work.tenant_id, call.params.job_id)
    if row is None:
        raise errors.not_found("dead letter", call.params.job_id)
    return DeadLetterResult(_from_row(row))


class ListDeadLetters(Params, kw_only=True):
    queue: QueueName | None = None
    type: Label | None = None
    limit: PageLimit = 50
    cursor: PageCursor | None = None


class DeadLettersResult(msgspec.Struct):
    dead_letters: list[DeadLetter]
    next_cursor: str | None = None


@operation("dead_letter.list", scope=Scope.READ, http="GET /dead-letters", single=True)
async def list_dead_letters(work: Work, call: Call[ListDeadLetters]) -> DeadLettersResult:
    """List dead letters, the latest failure first, filtered by queue and type.

    A page holds 1 MiB at most, unless its only dead letter is larger.
    """
    asked = call.params
    below = decode_page_cursor(asked.cursor) or LAST_ID
    rows = await work.tx.fetch(SQL.page, work.tenant_id, below, asked.queue, asked.type, asked.limit, PAGE_BYTES_MAX)
    page = fit(rows, asked.limit)
    return DeadLettersResult([_from_row(row) for row in page.rows], page.cursor("dead_letter_id"))


class Chosen(Mutation, kw_only=True):
    """Either `job_ids` alone, or with `all` those of a queue, a type, or everything, up to `limit`, the oldest first.

    With `up_to` nothing that has failed later, and with `after` nothing that was looked at already: who works through many in
    steps gives back both as the step before answered with, and comes to an end also while jobs go on failing, or are refused.
    """

    together = ({"oneOf": [
        {"required": ["job_ids"], "properties": {
            "job_ids": {"type": "array"}, "all": {"const": False}, "limit": {"const": REPLAYED_MAX},
            **{name: {"type": "null"} for name in ("queue", "type", "up_to", "after")}}},
        {"required": ["all"], "properties": {"job_ids": {"type": "null"}, "all": {"const": True}}},
    ]},)  # fmt: skip

    job_ids: Annotated[list[uuid.UUID], Meta(min_length=1, max_length=REPLAYED_MAX)] | None = None
    all: bool = False
    queue: QueueName | None = None
    type: Label | None = None
    up_to: PageCursor | None = None
    after: PageCursor | None = None
    limit: Annotated[int, Meta(ge=1, le=REPLAYED_MAX)] = REPLAYED_MAX


class ChosenResult(msgspec.Struct):
    """The jobs that were dead letters and are not any more. `up_to` stands for the latest dead letter there was, and is null
    when `job_ids` named them or there was none; `after` for the last that was looked at, and is null when there are no others.
    """

    job_ids: list[uuid.UUID]
    up_to: str | None = None
    after: str | None = None


class ReplayedResult(ChosenResult):
    """The same; `refused` stay dead letters."""

    refused: list[Refused] = []


@operation("dead_letter.replay", scope=Scope.WRITE, http="POST /dead-letters/replay", single=True)
async def replay(work: Work, call: Call[Chosen]) -> ReplayedResult:
    """Put dead letters back into their queues, to run at once with all their retries. Their history goes on.

    One that failed because another did waits for that one again, unless that is over. In steps it waits also for one to which a
    later step comes.
    """
    chosen = await _chosen(work, call.params)
    replayed = await put_back(work, chosen.job_ids, chosen.rest)
    refused = [
        Refused(job_id, Kind.CONFLICT, KEY_TAKEN, f"job {other} of its unique key is under way")
        for job_id, other in replayed.refused.items()
    ]
    return ReplayedResult(replayed.job_ids, chosen.up_to, chosen.after, refused)


@operation("dead_letter.discard", scope=Scope.WRITE, http="POST /dead-letters/discard", single=True)
async def discard(work: Work, call: Call[Chosen]) -> ChosenResult:
    """Forget dead letters. Their jobs stay FAILED, with their history; what waited for their replay fails as well."""
    chosen = await _chosen(work, call.params)
    await lock_dead(work, chosen.job_ids)
    rows = await work.tx.fetch(SQL.discard, work.tenant_id, chosen.job_ids)
    tell(work, "job.discarded", [(row["queue"], {"id": row["job_id"]}) for row in rows], Status.FAILED)
    if parents := [row["job_id"] for row in rows if row["is_parent"]]:
        await take_in_hand(work, parents)
        await settle(work, parents, End.GONE)
    return ChosenResult([row["job_id"] for row in rows], chosen.up_to, chosen.after)


class _Choice(NamedTuple):
    """Jobs, and the others that are chosen as well, but for which there was no room."""

    job_ids: list[uuid.UUID]
    up_to: str | None = None
    rest: Rest | None = None

    @property
    def after(self) -> str | None:
        return self.rest.after.hex if self.rest is not None else None


async def _chosen(work: Work, asked: Chosen) -> _Choice:
    if (asked.job_ids is not None) == asked.all:
        raise errors.invalid("give job_ids, or all with perhaps a queue and a type", "job_ids")
    if asked.job_ids is not None:
        _require_whole(asked)
        return _Choice(asked.job_ids)
    last = decode_page_cursor(asked.up_to, "up_to")
    if last is None:
        newest = await work.tx.fetch_row(SQL.newest, work.tenant_id)
        if newest is None:
            return _Choice([])
        last = newest["dead_letter_id"]
    after = decode_page_cursor(asked.after, "after") or FIRST_ID
    rows = await work.tx.fetch(SQL.select_ids, work.tenant_id, asked.queue, asked.type, asked.limit, last, after)
    is_more = len(rows) == asked.limit
    rest = Rest(asked.queue, asked.type, last, rows[-1]["dead_letter_id"]) if is_more else None
    return _Choice([row["job_id"] for row in rows], last.hex, rest)


def _require_whole(asked: Chosen) -> None:
    """Jobs that are named are all meant: nobody is to believe that a filter spares some of them."""
    narrower = {
        "queue": asked.queue, "type": asked.type, "up_to": asked.up_to, "after": asked.after,
        "limit": asked.limit if asked.limit != REPLAYED_MAX else None,
    }  # fmt: skip
    for name, value in narrower.items():
        if value is not None:
            raise errors.invalid(
                f"{name}: it narrows what `all` chooses; beside job_ids there is nothing to narrow", name
            )


def _from_row(row: Record) -> DeadLetter:
    return DeadLetter(
        row["job_id"], row["queue"], row["type"], row["priority"], row["attempt"], row["retries"], raw(row["error"]),
        row["failed_at"], row["created_at"],
    )  # fmt: skip
