"""What a process finds contexts by, made from its settings: an embedder, an index, or neither.

The libraries of either are extras, imported only where they are configured.
"""

from __future__ import annotations

import asyncio
import importlib.util

from devmesh.core.components import Component, degraded, healthy
from devmesh.core.errors import MeshError
from devmesh.engine.breaker import watched
from devmesh.engine.context_embedder import ContextEmbedder
from devmesh.engine.context_keeper import ContextKeeper
from devmesh.engine.loop import Loop
from devmesh.operations.contexts import NO_VECTORS
from devmesh.operations.recall import Embedder, Recall
from devmesh.operations.work import WorkRunner
from devmesh.settings import Settings
from devmesh.store.database import Database
from devmesh.store.statements import load

SQL = load("contexts")
LOOK_LIMIT_S = 0.8  # below what health waits
NO_CLIENT = "QDRANT_URL is set and the client of Qdrant is not installed: pip install 'devmesh[qdrant]'"


class Unusable(Exception):
    """What is configured cannot be had. One line that says what to do."""


def require_usable(settings: Settings) -> None:
    """Raises Unusable. Loads nothing."""
    if settings.qdrant_url is not None and importlib.util.find_spec("qdrant_client") is None:
        raise Unusable(NO_CLIENT)
    _embedder(settings)


def _embedder(settings: Settings) -> Embedder | None:
    if settings.embedder == "none":
        return None
    from devmesh.engine.minilm import EmbedderMissing, MiniLM

    try:
        return MiniLM()
    except EmbedderMissing as error:
        raise Unusable(f"DEVMESH_EMBEDDER is {settings.embedder}: {error}") from error


class Recalling:
    def __init__(self, database: Database, settings: Settings) -> None:
        """Raises Unusable."""
        self._database, self._settings = database, settings
        self._seen = healthy("not looked at yet")
        self._qdrant = None
        if settings.qdrant_url is not None:
            from devmesh.engine.qdrant_index import QdrantIndex

            breaker = watched("qdrant", settings.breaker_failures_max, settings.breaker_open_s)
            self._qdrant = QdrantIndex.at(
                settings.qdrant_url, settings.qdrant_api_key, settings.qdrant_timeout_s, breaker
            )
        self.recall = Recall(_embedder(settings), self._qdrant)

    def loops(self, runner: WorkRunner) -> list[Loop]:
        """What a worker does for contexts when nobody asks."""
        settings = self._settings
        loops: list[Loop] = [ContextKeeper(runner, settings.context_keeper_interval_s, settings.context_days_kept)]
        if self.recall.embedder is not None:
            loops.append(ContextEmbedder(runner, self.recall.embedder, settings.embedder_interval_s))
        if self._qdrant is not None:
            from devmesh.engine.context_indexer import ContextIndexer

            loops.append(ContextIndexer(runner, self._qdrant, settings.qdrant_interval_s, settings.qdrant_timeout_s))
        return loops

    async def check(self) -> Component:
        """Whether vectors can be compared. Without that nothing is lost, and texts are searched by their words."""
        try:
            async with asyncio.timeout(LOOK_LIMIT_S):
                self._seen = await (self._qdrant.check() if self._qdrant is not None else self._look())
        except TimeoutError:
            if self._qdrant is not None:
                self._seen = degraded(f"no search by vectors: Qdrant does not answer within {LOOK_LIMIT_S:g} s")
        except MeshError:
            pass  # the database is away or busy, which its own component tells
        return self._seen

    async def _look(self) -> Component:
        [row] = await self._database.read(SQL.has_vectors)
        return healthy("pgvector") if row["has_vectors"] else degraded(f"no search by vectors: {NO_VECTORS}")

    async def close(self) -> None:
        if self._qdrant is not None:
            await self._qdrant.close()
