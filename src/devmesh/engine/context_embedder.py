"""Gives vectors to the texts that were stored without one: while no embedder was configured, or by a server that has none.

The vectors are made between transactions. A context that is gone by then, or has a vector from another worker, stays as it is.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import msgspec

from devmesh.engine.loop import Loop
from devmesh.operations.recall import Embedder
from devmesh.operations.work import Work, WorkRunner
from devmesh.store.database import Record
from devmesh.store.statements import load

SQL = load("contexts")
TEXTS_MAX = 16  # of a pass: long ones take a tenth of a second each, and a loop that stops is waited for for a few


class ContextEmbedder(Loop):
    name = "context-embedder"

    def __init__(self, runner: WorkRunner, embedder: Embedder, interval_s: float) -> None:
        super().__init__(interval_s)
        self._runner, self._embedder = runner, embedder

    async def run_once(self) -> bool:
        found = {row["tenant_id"]: row for row in await self._runner.database.read(SQL.unembedded, TEXTS_MAX)}
        await self.for_each(found, lambda tenant_id: self._embed(tenant_id, found[tenant_id]))
        return sum(len(row["ids"]) for row in found.values()) == TEXTS_MAX

    async def _embed(self, tenant_id: uuid.UUID, row: Record) -> None:
        # One after the other: whoever asks for a vector meanwhile waits for one text, not for all of these.
        vectors = [await self._embedder.embed(text) for text in row["texts"]]

        async def keep(work: Work) -> None:
            await self._keep(work, row["ids"], vectors)

        await self._runner.run(tenant_id, keep)

    async def _keep(self, work: Work, ids: Sequence[uuid.UUID], vectors: Sequence[list[float]]) -> None:
        encoded = [msgspec.json.encode(vector).decode() for vector in vectors]
        for row in await work.tx.fetch(SQL.embed, work.tenant_id, ids, encoded, self._embedder.name):
            context_id = row["context_id"]
            patch = {"id": context_id, "model": self._embedder.name, "dimensions": row["dimensions"]}
            work.emit("context.embedded", (f"context:{context_id}",), {"context": patch})
