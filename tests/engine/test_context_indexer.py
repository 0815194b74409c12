"""Vectors reach Qdrant after their contexts are committed, and searches go through it: on the Qdrant that its client brings."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from qdrant_client import AsyncQdrantClient

from devmesh import operations
from devmesh.core.errors import MeshError
from devmesh.engine.bell import Bell
from devmesh.engine.breaker import watched
from devmesh.engine.context_indexer import ContextIndexer
from devmesh.engine.context_keeper import ContextKeeper
from devmesh.engine.qdrant_index import QdrantIndex
from devmesh.operations.corridor import Corridor
from devmesh.operations.recall import Recall
from devmesh.operations.work import WorkRunner
from devmesh.settings import Settings
from devmesh.store.vault import Vault
from tests.conftest import run_sql
from tests.engine.calling import call
from tests.harness import eventually
from tests.sealed import new_tenant, opened

operations.load_all()
pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant")
TIMEOUT_S = 0.05


class Node:
    """A corridor and a worker's loops, with a Qdrant in memory or one that is away."""

    def __init__(self, runner: WorkRunner) -> None:
        self.runner = runner
        self.client = AsyncQdrantClient(":memory:")
        self.use(QdrantIndex(self.client, 5.0, watched("qdrant", 3, 0.01)))

    def use(self, index: QdrantIndex) -> None:
        self.index = index
        self.corridor = Corridor(self.runner, Settings(), Recall(index=index))
        self.indexer = ContextIndexer(self.runner, index, 1.0, TIMEOUT_S)

    async def call(self, tenant_id: uuid.UUID, method: str, **params: Any) -> dict[str, Any]:
        return await call(self.corridor, tenant_id, method, **params)

    async def stored(self, tenant_id: uuid.UUID, **about: Any) -> str:
        told = {"type": "t", "text": "x", "vector": [1.0, 0.0], **about}
        return str((await self.call(tenant_id, "context.store", **told))["context"]["id"])

    async def found(self, tenant_id: uuid.UUID, **about: Any) -> list[str]:
        answer = await self.call(tenant_id, "context.search", **{"vector": [1.0, 0.1], **about})
        assert answer["by"] == "vector"
        return [each["context"]["id"] for each in answer["results"]]

    async def points(self, dimensions: int = 2) -> dict[str, Any]:
        """What Qdrant has, by id."""
        found, _ = await self.client.scroll(f"devmesh_contexts_{dimensions}", limit=1_000)
        return {str(point.id): point.payload for point in found}


@pytest_asyncio.fixture
async def node(fresh_database: str) -> AsyncIterator[Node]:
    async with opened(fresh_database) as database:
        node = Node(WorkRunner(database, Bell([], 5.0), Vault()))
        yield node
        await node.client.close()


@pytest_asyncio.fixture
async def tenant_id(node: Node) -> uuid.UUID:
    return await new_tenant(node.runner.database)


async def test_vectors_are_found_in_qdrant_once_it_has_them(node: Node, tenant_id: uuid.UUID) -> None:
    near, far = await node.stored(tenant_id), await node.stored(tenant_id, vector=[0.5, 1.0], tags=["far"], type="u")
    await node.stored(tenant_id, vector=[1.0, 0.0], model="other")
    await node.stored(tenant_id, vector=[1.0, 0.0, 0.0])
    assert await node.found(tenant_id) == [], "Qdrant has nothing yet, and nobody else is asked"
    assert not await node.indexer.run_once()
    answer = await node.call(tenant_id, "context.search", vector=[1.0, 0.1])
    assert [each["context"]["id"] for each in answer["results"]] == [near, far]
    assert answer["results"][0]["score"] == pytest.approx(1 / 1.01**0.5, abs=1e-4)
    assert (answer["by"], answer["model"], answer["dimensions"]) == ("vector", "own", 2)
    assert await node.found(tenant_id, min_score=0.9) == [near]
    assert await node.found(tenant_id, tag="far") == await node.found(tenant_id, type="u") == [far]
    assert await node.found(tenant_id, limit=1) == [near]
    assert len(await node.found(tenant_id, vector=[1.0, 0.0, 0.0])) == 1
    payload = (await node.points())[near]
    assert payload["tenant_id"] == str(tenant_id)


async def test_a_tenant_finds_its_own_alone(node: Node, tenant_id: uuid.UUID) -> None:
    other = await new_tenant(node.runner.database)
    mine = await node.stored(tenant_id)
    theirs = [await node.stored(other, vector=[1.0, 0.1]) for _ in range(3)]
    await node.indexer.run_once()
    assert await node.found(tenant_id, limit=1) == [mine], "nearer ones of others take no place"
    assert set(await node.found(other)) == set(theirs)


async def test_what_qdrant_has_and_postgresql_has_not_is_not_found(
    fresh_database: str, node: Node, tenant_id: uuid.UUID
) -> None:
    kept, gone = await node.stored(tenant_id), await node.stored(tenant_id)
    await node.indexer.run_once()
    await node.call(tenant_id, "context.delete", context_id=gone)
    assert await node.found(tenant_id) == [kept]
    assert gone in await node.points()

    async def is_forgotten() -> bool:
        await node.indexer.run_once()
        return (await node.points()).keys() == {kept}

    await eventually(is_forgotten, "Qdrant forgets it too, when nothing can be under way that was sent before")
    await node.stored(tenant_id)
    assert not run_sql(fresh_database, "select * from mcp.context_points_gone")


async def test_what_was_forgotten_hides_no_others_until_qdrant_has_forgotten_it(
    node: Node, tenant_id: uuid.UUID
) -> None:
    node.indexer = ContextIndexer(node.runner, node.index, 1.0, 3_600.0)
    nearer = [await node.stored(tenant_id, vector=[1.0, 0.1]) for _ in range(3)]
    near, far = await node.stored(tenant_id), await node.stored(tenant_id, vector=[0.5, 1.0])
    await node.indexer.run_once()
    for context_id in nearer:
        await node.call(tenant_id, "context.delete", context_id=context_id)
    await node.indexer.run_once()
    assert set(nearer) < set(await node.points())
    assert await node.found(tenant_id, limit=1) == [near]
    assert await node.found(tenant_id, limit=3) == [near, far]


async def test_while_qdrant_is_away_contexts_are_kept_and_come_to_it_later(node: Node, tenant_id: uuid.UUID) -> None:
    there = QdrantIndex(node.client, 5.0, watched("qdrant", 3, 0.01))
    away = QdrantIndex.at("http://127.0.0.1:9", None, 1.0, watched("qdrant", 2, 60.0))
    node.use(away)
    ids = {await node.stored(tenant_id, text=f"words {number}") for number in range(3)}
    for _ in range(3):
        with pytest.raises(MeshError) as refused:
            await node.indexer.run_once()
        assert refused.value.kind == "unavailable"
        with pytest.raises(MeshError) as refused:
            await node.found(tenant_id)
        assert (refused.value.kind, refused.value.message[:14]) == ("unavailable", "Qdrant is away")
    with pytest.raises(MeshError) as refused:
        await node.found(tenant_id)
    assert (refused.value.data.retry_after_ms or 0) > 30_000, "the breaker is open"
    by_words = await node.call(tenant_id, "context.search", text="words")
    assert (by_words["by"], len(by_words["results"])) == ("text", 3)
    assert (await away.check()).status == "degraded"
    await away.close()
    node.use(there)
    await node.indexer.run_once()
    assert set(await node.found(tenant_id)) == ids
    assert (await there.check()).status == "healthy"


async def test_old_contexts_are_forgotten_by_all(fresh_database: str, node: Node, tenant_id: uuid.UUID) -> None:
    old, fresh = await node.stored(tenant_id), await node.stored(tenant_id)
    await node.indexer.run_once()
    aged = "01000000-0000-7000-8000-000000000000"  # of 2004
    run_sql(
        fresh_database,
        f"update mcp.execution_contexts set created_at = now() - interval '31 days', context_id = '{aged}'"
        f" where context_id = '{old}'",
    )
    assert not await ContextKeeper(node.runner, 1.0, 0.0).run_once()
    assert len((await node.call(tenant_id, "context.list"))["contexts"]) == 2, "0 is for ever"
    await ContextKeeper(node.runner, 1.0, 30.0).run_once()
    assert [each["id"] for each in (await node.call(tenant_id, "context.list"))["contexts"]] == [fresh]
    assert run_sql(fresh_database, "select context_id from mcp.context_points_gone").strip() == aged
