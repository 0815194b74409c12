"""The log of answered calls, as administrators look it up: who asked for what, how it ended and how long it took.

The engine writes it (engine/api_log.py), after the answer and apart from it: a call is never slowed by its entry, and an
entry may be missing.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from devmesh.core import errors
from devmesh.core.access import Caller, Scope
from devmesh.core.ids import first_id_at
from devmesh.core.names import Moment, Name, PageCursor, PageLimit, decode_page_cursor, like
from devmesh.operations.registry import Call, Params, operation
from devmesh.operations.work import Work
from devmesh.store.statements import load

SQL = load("api_logs")
KEYS = load("keys")
LOOKED_AT_MAX = 10_000  # entries that one call looks at for those that it wants
ID_SLACK_S = 1.0  # an entry's id is made a moment before its time is taken
OK, UNKNOWN_OPERATION = "ok", "(unknown)"
OUTCOMES = (OK, *errors.Kind)
Outcome = Annotated[str, Meta(pattern=like(rf"^({'|'.join(OUTCOMES)})$(?!\n)", f"one of {', '.join(OUTCOMES)}"))]

# Told of every call that was answered: its operation, who called, the error if it was one, and the seconds it took.
Answered = Callable[[str, Caller, errors.MeshError | None, float], None]


class ApiLogEntry(msgspec.Struct):
    """`outcome` is ok or the kind of the error, `reason` its finer name. HTTP requests have a `request_id`."""

    # In the order of the columns, in which they are also written.

    id: uuid.UUID
    at: datetime.datetime
    operation: str
    wire: str
    outcome: str
    reason: str | None
    duration_ms: float
    key_id: uuid.UUID
    agent_id: uuid.UUID | None
    address: str
    request_id: str | None


class ListApiLog(Params, kw_only=True):
    """Without filters, everything that is kept. `since` is included, `until` is not."""

    operation: Name | None = None
    outcome: Outcome | None = None
    key_id: uuid.UUID | None = None
    since: Moment | None = None
    until: Moment | None = None
    limit: PageLimit = 50
    cursor: PageCursor | None = None


class ApiLogResult(msgspec.Struct):
    """A page may hold fewer than `limit` and still have a `next_cursor`: one call looks at 10,000 entries at the most."""

    entries: list[ApiLogEntry]
    next_cursor: str | None = None


@operation("api_log.list", scope=Scope.ADMIN, http="GET /api-log", single=True)
async def list_api_log(work: Work, call: Call[ListApiLog]) -> ApiLogResult:
    """List answered calls, newest first. Which are logged says the setting DEVMESH_API_LOG: errors, unless it is set."""
    asked = call.params
    if asked.key_id is not None and await work.tx.fetch_row(KEYS.get, work.tenant_id, asked.key_id) is None:
        raise errors.not_found("key", asked.key_id)
    ends = [bound for bound in (_id_at(asked.until, ID_SLACK_S), decode_page_cursor(asked.cursor)) if bound is not None]
    within = (work.tenant_id, min(ends, default=None), _id_at(asked.since, -ID_SLACK_S))
    rows = await work.tx.fetch(
        SQL.page, *within, LOOKED_AT_MAX, asked.operation, asked.outcome, asked.key_id, asked.since, asked.until, asked.limit
    )  # fmt: skip
    entries = [ApiLogEntry(*row) for row in rows]
    if len(entries) == asked.limit:
        return ApiLogResult(entries, entries[-1].id.hex)
    reached: uuid.UUID | None = await work.tx.fetch_value(SQL.reached, *within, LOOKED_AT_MAX - 1)
    return ApiLogResult(entries, reached.hex if reached is not None else None)


def _id_at(at: datetime.datetime | None, slack_s: float) -> uuid.UUID | None:
    """A bound for ids, which are in the order of time: what is looked at begins and ends near the times that are asked for."""
    return first_id_at(at.timestamp() + slack_s) if at is not None else None
