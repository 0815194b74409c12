"""How many jobs a second a queue gives out, exact on any number of nodes: who claims has the queue's tokens in hand."""

from __future__ import annotations

import collections
import datetime
import math
from collections.abc import Iterable

from devmesh.operations.work import Work
from devmesh.store.database import Record
from devmesh.store.statements import load

SQL = load("queues")


async def shares(work: Work, held_up: Iterable[Record], room: int) -> tuple[dict[str, int], datetime.datetime | None]:
    """What those of some queues that are paused or have a rate may give out, up to `room`.

    And when, if others may have held the tokens before.
    """
    found = {row["queue"]: 0 for row in held_up if row["is_paused"]}
    rated = sorted((row for row in held_up if not row["is_paused"]), key=lambda row: row["queue"])
    moment = None
    if rated:
        rows = await work.tx.fetch(
            SQL.fill, work.tenant_id, [row["queue"] for row in rated], [row["rate_per_s"] for row in rated],
            [row["burst"] for row in rated],
        )  # fmt: skip
        found |= {row["queue"]: min(math.floor(row["tokens"]), room) for row in rows}
        moment = max(row["moment"] for row in rows)
    return found, moment


async def spend(work: Work, rated: dict[str, int], claimed: Iterable[Record]) -> None:
    """These were given out."""
    counts = collections.Counter(row["queue"] for row in claimed if row["queue"] in rated)
    if counts:
        await work.tx.execute(SQL.spend, work.tenant_id, list(counts), list(counts.values()))
