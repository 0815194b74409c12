"""The event log as it is read by asking. Whoever wants to be told follows it, over the WebSocket or server-sent events."""

from __future__ import annotations

import datetime
from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from devmesh.core.access import Scope
from devmesh.core.events import Cursor, CursorText, Topic, check_topic, decode_cursor
from devmesh.core.names import PAGE_BYTES_MAX
from devmesh.operations.pages import fit
from devmesh.operations.registry import Call, Params, operation
from devmesh.operations.work import SQL, Work

EVERYTHING = "tenant"  # the topic of every event
EVENTS_PER_PAGE_MAX = 1_000


class ListEvents(Params, kw_only=True):
    """`since` is a cursor from any wire; without one, the page begins with the oldest event that is held."""

    topics: Annotated[list[Topic], Meta(min_length=1, max_length=100)] = msgspec.field(
        default_factory=lambda: [EVERYTHING]
    )
    since: CursorText | None = None
    limit: Annotated[int, Meta(ge=1, le=EVENTS_PER_PAGE_MAX)] = 100


class ShownEvent(msgspec.Struct):
    """An event as every wire shows it. `topic` is the thing that changed."""

    type: str
    topic: str
    at: datetime.datetime
    data: Raw
    cursor: str


class EventsResult(msgspec.Struct):
    """Ask again with `cursor` as `since`. `recovered` is false when events between `since` and these are lost."""

    events: list[ShownEvent]
    cursor: str
    recovered: bool


@operation("event.list", scope=Scope.READ, http="GET /events/list", single=True)
async def list_events(work: Work, call: Call[ListEvents]) -> EventsResult:
    """List events, oldest first, after a cursor. An empty page means that there are no more yet.

    A page holds 1 MiB at most, unless its only event is larger.
    """
    asked = call.params
    topics = [check_topic(topic, call.caller.agent_id) for topic in asked.topics]
    since = decode_cursor(asked.since) if asked.since is not None else None
    stream = await work.tx.fetch_row(SQL.position, work.tenant_id)
    assert stream is not None
    epoch, floor, last = stream["epoch"], stream["floor_sequence"], stream["last_sequence"]
    if since is None:
        start, recovered = floor, True
    elif since.epoch != epoch or since.sequence > last:
        start, recovered = last, False  # a cursor of another history says nothing about this one
    else:
        start, recovered = max(since.sequence, floor), since.sequence >= floor
    wanted = None if EVERYTHING in topics else topics
    rows = await work.tx.fetch(SQL.page_of_topics, work.tenant_id, start, last, wanted, asked.limit, PAGE_BYTES_MAX)
    [floor] = await work.tx.fetch(SQL.floors, [work.tenant_id])
    recovered = recovered and (since is None or start >= floor["floor_sequence"])  # or retention came in between
    page = fit(rows, asked.limit)
    events = [
        ShownEvent(row["type"], row["topics"][0], row["at"], Raw(row["data"]), Cursor(epoch, row["sequence"]).encode())
        for row in page.rows
    ]
    reached = page.rows[-1]["sequence"] if page.is_more else last
    return EventsResult(events, Cursor(epoch, reached).encode(), recovered)
