"""Alerts about workers: what is wrong, and that it is over. Both are told: whoever was woken up may go to sleep again."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from devmesh.core.ids import new_ids
from devmesh.operations.work import Work
from devmesh.store.database import Record
from devmesh.store.statements import load

SQL = load("workers")
ABOUT = ("kind", "severity", "message")


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
    _tell(work, "worker.alert", rows, ABOUT)


async def clear_alerts(work: Work, worker_ids: Sequence[uuid.UUID]) -> None:
    """What was wrong with workers is over, or they have gone."""
    rows = await work.tx.fetch(SQL.clear_alerts, work.tenant_id, list(worker_ids))
    _tell(work, "worker.alert_cleared", rows, (*ABOUT, "raised_at", "cleared_at"))


def _tell(work: Work, event_type: str, rows: Iterable[Record], names: Iterable[str]) -> None:
    for row in rows:
        alert = {"id": row["alert_id"], **{name: row[name] for name in names}}
        work.emit(event_type, (f"worker:{row['worker_id']}",), {"worker": {"id": row["worker_id"]}, "alert": alert})


async def forget_workers(work: Work, days: int, count_max: int) -> int:
    """Removes workers that have gone so long ago, and clears what was said of them: nobody is to look after it. How many."""
    gone = [row["worker_id"] for row in await work.tx.fetch(SQL.forget_workers, work.tenant_id, days, count_max)]
    if gone:
        await clear_alerts(work, gone)
    return len(gone)
