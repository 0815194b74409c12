"""Whether what happened to jobs adds up: rules over the whole history of a tenant, all judged in one snapshot.

A rule is a block of sql/history.sql, which finds what breaks it, and a line here, which says it in words. To add one, add
both. It must not matter how large the history is: a rule gives a bounded number of examples, and whatever it sorts or hashes
beyond `WORK_MEM` the database puts on its disk.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg

from devmesh.store import connections
from devmesh.store.faults import translate
from devmesh.store.statements import Statement, load

SQL = load("history")
EXAMPLES_MAX = 1_000
WORK_MEM = "64MB"
BEGINNING = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
REPORT_IT = "if nobody has changed rows by hand or restored single tables, this is a fault of DevMesh: please report it"


class Rule(NamedTuple):
    """`name` is its block. `advice` is what to do about what breaks it, besides reporting it."""

    name: str
    sentence: str
    advice: str
    is_about_events: bool = False  # it holds for as long as events are kept, and not for as long as jobs are

    @property
    def statement(self) -> Statement:
        found: Statement = getattr(SQL, self.name)
        return found


RULES = (
    Rule(
        "one_place", "every job is in exactly one place: it waits, is held, waits for others, or has ended",
        "a job that is nowhere is enqueued again by hand; of two places, cancel it and enqueue it again",
    ),
    Rule(
        "can_be_found", "every job that waits can be found where its history says",
        "it runs, but cannot be cancelled or shown as waiting until it has",
    ),
    Rule(
        "completed_once", "no job was completed twice",
        "look at both with `devmesh jobs show ID`: what its handler writes to has been written twice",
    ),
    Rule("ended_once", "no attempt ended twice", "look at the job with `devmesh jobs show ID`"),
    Rule(
        "attempts_follow", "attempts are numbered without a gap, and each is accounted for",
        "look at the job with `devmesh jobs show ID`: what a missing attempt did is not known",
    ),
    Rule(
        "nothing_after_the_end", "nothing follows the attempt with which a job ended, unless it was replayed",
        "look at the job with `devmesh jobs show ID`: it may have been done again",
    ),
    Rule("retries_limited", "no job was retried more often than its max_retries", "cancel those that still run"),
    Rule(
        "never_early", "no attempt began before its time: its run_at, a back-off, a snooze, the end of what it waited for",
        "look at the database's clock: `devmesh doctor`",
    ),
    Rule(
        "dead_letters_failed", "every dead letter is of a job that there is, and that failed for good",
        "`devmesh dead-letters discard ID`",
    ),
    Rule(
        "failures_kept", "every job that failed for good is a dead letter, until it is replayed or discarded",
        "it cannot be replayed any more: enqueue it again", is_about_events=True,
    ),
    Rule("parents_first", "no job is given out while it is to wait for others", "look at what it has done too early"),
    Rule(
        "nobody_stranded", "every job that waits, for others or for a place, waits for what will let it go on",
        "`devmesh jobs cancel ID`, and enqueue it again",
    ),
    Rule("pauses_kept", "nothing is given out of a paused queue", "`devmesh queues pause` it again"),
    Rule(
        "limits_kept", "no more jobs of a concurrency key are under way than its limit has said, each with a place",
        "look at the jobs with `devmesh jobs list --queue NAME`",
    ),
    Rule(
        "stream_whole", "the stream of events has no gap and no repetition",
        "have readers take a fresh snapshot: what they hold may be out of date", is_about_events=True,
    ),
    Rule(
        "events_agree", "what was told of jobs is what happened to them",
        "have readers take a fresh snapshot: what they hold may be out of date", is_about_events=True,
    ),
)  # fmt: skip


class Example(NamedTuple):
    """One thing that breaks a rule, and how."""

    thing: str
    found: str


class Verdict(NamedTuple):
    """How a rule stands: how many things break it, and some of them."""

    rule: Rule
    total: int
    examples: Sequence[Example]


class Tenant(NamedTuple):
    id: uuid.UUID
    name: str


class Bounds(NamedTuple):
    """What of a tenant is judged: jobs made since a time, and what was told since one. What is older may have been dropped."""

    at: datetime.datetime
    since: datetime.datetime
    events_since: datetime.datetime
    jobs: int


class Snapshot:
    """The database as it was in one moment."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def tenants(self, names: Sequence[str] | None = None, *, with_suspended: bool = False) -> list[Tenant]:
        rows = await self._fetch(SQL.tenants, names, with_suspended)
        return [Tenant(row["id"], row["name"]) for row in rows]

    async def bounds(self, tenant: Tenant, since: datetime.datetime | None = None) -> Bounds:
        [row] = await self._fetch(SQL.bounds, tenant.id, since or BEGINNING)
        return Bounds(row["at"], row["since"], row["events_since"], row["jobs"])

    async def verdicts(self, tenant: Tenant, bounds: Bounds, examples_max: int) -> AsyncIterator[Verdict]:
        """How each rule stands, as soon as that is known."""
        for rule in RULES:
            since = bounds.events_since if rule.is_about_events else bounds.since
            rows = await self._fetch(rule.statement, tenant.id, since, max(1, min(examples_max, EXAMPLES_MAX)))
            examples = [Example(row["thing"], row["found"]) for row in rows]
            yield Verdict(rule, rows[0]["total"] if rows else 0, examples)

    async def _fetch(self, statement: Statement, *args: object) -> list[asyncpg.Record]:
        try:
            return await self._connection.fetch(statement.text, *args)
        except connections.DRIVER_ERRORS as error:
            raise translate(error) from error


@asynccontextmanager
async def snapshot(dsn: str, search_path: str = connections.DEFAULT_SEARCH_PATH) -> AsyncIterator[Snapshot]:
    """Opens a session of its own, that reads and holds nobody up. Raises `DatabaseUnreachable`, and MeshError within.

    It is set otherwise than those that serve: whole tables are read, for which hash joins are right and loops are not, and it
    takes as long as it takes.
    """
    settings = {
        **connections.session_settings("devmesh check", 1.0, search_path),
        "enable_seqscan": "on", "enable_hashjoin": "on", "enable_mergejoin": "on", "enable_nestloop": "off",
        "work_mem": WORK_MEM, "statement_timeout": "0", "idle_in_transaction_session_timeout": "0",
        "default_transaction_isolation": "repeatable read", "default_transaction_read_only": "on",
    }  # fmt: skip
    connection = await connections.open_connection(dsn, settings)
    try:
        try:
            await connection.transaction().start()
        except connections.DRIVER_ERRORS as error:
            raise translate(error) from error
        yield Snapshot(connection)  # which has written nothing: its transaction ends with its session
    finally:
        await connections.close_connection(connection)
