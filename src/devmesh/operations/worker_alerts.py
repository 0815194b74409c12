"""Alerts about workers: what is wrong, and that it is over. Both are told: whoever was woken up may go to sleep again."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from devmesh.core.ids import new_ids
from devmesh.operations.work import Work
from devmesh.store.statements import load

SQL = load("workers")


class NewAlert(NamedTuple):
    worker_id: uuid.UUID
    kind: str
    severity: int
    message: str


async def raise_alerts(work: Work, alerts: Sequence[NewAlert]) -> None:
    """Raises alerts, or raises those of their kinds that are open already further. No two are of one worker and kind."""
    if not alerts:
        return
    rows = await work.tx.fetch(
        SQL.raise_alerts, work.tenant_id, new_ids(len(alerts)), [alert.worker_id for alert in alerts],
        [alert.kind for alert in alerts], [alert.severity for alert in alerts], [alert.message for alert in alerts],
    )  # fmt: skip
    for row in rows:
        told = {name: row[name] for name in ("kind", "severity", "message")}
        data = {"worker": {"id": row["worker_id"]}, "alert": {"id": row["alert_id"], **told}}
        work.emit("worker.alert", (f"worker:{row['worker_id']}",), data)


async def clear_alerts(work: Work, worker_ids: Sequence[uuid.UUID]) -> None:
    """What was wrong with workers is over, or they have gone."""
    for row in await work.tx.fetch(SQL.clear_alerts, work.tenant_id, list(worker_ids)):
        told = {name: row[name] for name in ("kind", "severity", "message", "raised_at", "cleared_at")}
        data = {"worker": {"id": row["worker_id"]}, "alert": {"id": row["alert_id"], **told}}
        work.emit("worker.alert_cleared", (f"worker:{row['worker_id']}",), data)


async def forget_workers(work: Work, days: int, count_max: int) -> int:
    """Removes workers that have gone so long ago, and clears what was said of them: nobody is to look after it. How many."""
    gone = [row["worker_id"] for row in await work.tx.fetch(SQL.forget_workers, work.tenant_id, days, count_max)]
    if gone:
        await clear_alerts(work, gone)
    return len(gone)
