"""Brings the vectors of contexts into the index, and takes those of forgotten ones out of it: both caused by committed rows.

A pass is a few steps, each done before the next: note which vectors are sent, send them, note that they are there. Whatever
ends it in between, the next pass sends them again.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from devmesh.engine.loop import Loop
from devmesh.engine.qdrant_index import Point, QdrantIndex
from devmesh.operations.work import Work, WorkRunner
from devmesh.store.database import Record
from devmesh.store.statements import load

SQL = load("contexts")
POINTS_MAX = 256  # of a pass
SENDINGS_S = 3  # so many times the time limit of one request: after it nothing is under way that was sent before


class ContextIndexer(Loop):
    name = "context-indexer"

    def __init__(self, runner: WorkRunner, index: QdrantIndex, interval_s: float, timeout_s: float) -> None:
        super().__init__(interval_s)
        self._runner, self._index, self._settled_s = runner, index, timeout_s * SENDINGS_S

    async def run_once(self) -> bool:
        database = self._runner.database
        unindexed = {row["tenant_id"]: row["ids"] for row in await database.read(SQL.unindexed, POINTS_MAX)}
        await self.for_each(unindexed, lambda tenant_id: self._send(tenant_id, unindexed[tenant_id]))
        gone = {row["tenant_id"]: row for row in await database.read(SQL.gone, self._settled_s, POINTS_MAX)}
        await self.for_each(gone, lambda tenant_id: self._forget(tenant_id, gone[tenant_id]))
        return (
            sum(map(len, unindexed.values())) == POINTS_MAX
            or sum(len(row["ids"]) for row in gone.values()) == POINTS_MAX
        )

    async def _send(self, tenant_id: uuid.UUID, ids: Sequence[uuid.UUID]) -> None:
        async def note_sent(work: Work) -> list[Record]:
            return await work.tx.fetch(SQL.send, tenant_id, ids)

        async def note_indexed(work: Work) -> None:
            await work.tx.execute(SQL.note_indexed, tenant_id, ids)

        rows = await self._runner.run(tenant_id, note_sent)
        await self._index.put([
            Point(row["context_id"], tenant_id, row["vector"], row["model"], row["job_id"], row["type"], row["tags"])
            for row in rows
        ])  # fmt: skip
        await self._runner.run(tenant_id, note_indexed)

    async def _forget(self, tenant_id: uuid.UUID, row: Record) -> None:
        async def forget_notes(work: Work) -> None:
            await work.tx.execute(SQL.forget_gone, tenant_id, row["ids"])

        for dimensions in set(row["dimensions"]):
            same = [
                context_id for context_id, own in zip(row["ids"], row["dimensions"], strict=True) if own == dimensions
            ]
            await self._index.forget(dimensions, same)
        await self._runner.run(tenant_id, forget_notes)
