"""Texts that were stored without a vector get one from whatever embedder there is, after their contexts are committed.

The embedder here counts letters: a vector that is worth little, and the same for the same text.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest_asyncio

from devmesh import operations
from devmesh.core.errors import unavailable
from devmesh.engine.bell import Bell
from devmesh.engine.context_embedder import TEXTS_MAX, ContextEmbedder
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
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Letters:
    name = "letters"

    def __init__(self) -> None:
        self.asked = 0
        self.is_busy = False
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def embed(self, text: str) -> list[float]:
        self.asked += 1
        await self.goes_on.wait()
        if self.is_busy:
            raise unavailable("it is busy")
        return [float(text.count(letter)) + 0.5 for letter in LETTERS]


class Node:
    """A server without an embedder, one with, and a worker's loop."""

    def __init__(self, runner: WorkRunner) -> None:
        self.runner, self.embedder = runner, Letters()
        self.without = Corridor(runner, Settings())
        self.having = Corridor(runner, Settings(), Recall(self.embedder))
        self.loop = ContextEmbedder(runner, self.embedder, 0.02)

    async def stored(self, tenant_id: uuid.UUID, text: str, **about: Any) -> dict[str, Any]:
        answer = await call(self.without, tenant_id, "context.store", type="t", text=text, **about)
        context: dict[str, Any] = answer["context"]
        return context

    async def shown(self, tenant_id: uuid.UUID, context: dict[str, Any]) -> dict[str, Any]:
        return await call(self.having, tenant_id, "context.get", context_id=context["id"])

    async def found(self, tenant_id: uuid.UUID, text: str) -> list[str]:
        answer = await call(self.having, tenant_id, "context.search", text=text)
        assert (answer["by"], answer["model"], answer["dimensions"]) == ("vector", "letters", 26)
        return [each["context"]["id"] for each in answer["results"]]


@pytest_asyncio.fixture
async def node(fresh_database: str) -> AsyncIterator[Node]:
    async with opened(fresh_database) as database:
        yield Node(WorkRunner(database, Bell([], 5.0), Vault()))


@pytest_asyncio.fixture
async def tenant_id(node: Node) -> uuid.UUID:
    return await new_tenant(node.runner.database)


async def test_texts_from_before_the_embedder_are_found_by_their_meaning(node: Node, tenant_id: uuid.UUID) -> None:
    other = await new_tenant(node.runner.database)
    alike, unlike = await node.stored(tenant_id, "abba"), await node.stored(tenant_id, "zzzzz")
    own = await node.stored(tenant_id, "baba", vector=[1.0, 2.0], model="mine")
    theirs = await node.stored(other, "abba")
    assert alike["model"] is None
    assert await node.found(tenant_id, "baba") == []
    assert not await node.loop.run_once()
    assert await node.found(tenant_id, "baba") == [alike["id"], unlike["id"]]
    assert await node.found(other, "baba") == [theirs["id"]]
    shown = await node.shown(tenant_id, alike)
    assert shown["vector"] == await node.embedder.embed("abba")
    assert shown["context"] == {**alike, "model": "letters", "dimensions": 26}, "and nothing else has changed"
    assert (await node.shown(tenant_id, own))["context"] == own, "a vector of one's own stays"
    asked = node.embedder.asked
    assert not await node.loop.run_once()
    assert node.embedder.asked == asked, "nothing is left to do"


async def test_each_new_vector_is_told(fresh_database: str, node: Node, tenant_id: uuid.UUID) -> None:
    context = await node.stored(tenant_id, "abba")
    await node.loop.run_once()
    told = run_sql(fresh_database, "select topics[1], data from mcp.events where type = 'context.embedded'").strip()
    topic, data = told.split("|", 1)
    assert topic == f"context:{context['id']}"
    patch = msgspec.json.decode(data)["context"]
    assert {**context, **patch} == (await node.shown(tenant_id, context))["context"]


async def test_many_texts_come_in_several_passes(fresh_database: str, node: Node, tenant_id: uuid.UUID) -> None:
    for number in range(TEXTS_MAX + 1):
        await node.stored(tenant_id, f"text {number}")
    assert await node.loop.run_once(), "there are more"
    left = "select count(*) from mcp.execution_contexts where vector is null"
    assert run_sql(fresh_database, left).strip() == "1"
    assert not await node.loop.run_once()
    assert run_sql(fresh_database, left).strip() == "0"


async def test_what_happens_to_a_context_meanwhile_stays(fresh_database: str, node: Node, tenant_id: uuid.UUID) -> None:
    gone, kept = await node.stored(tenant_id, "gone"), await node.stored(tenant_id, "kept")
    faster = await node.stored(tenant_id, "faster")
    node.embedder.goes_on.clear()
    under_way = asyncio.create_task(node.loop.run_once())

    async def is_under_way() -> bool:
        return node.embedder.asked > 0

    await eventually(is_under_way, "a pass makes vectors")
    await call(node.without, tenant_id, "context.delete", context_id=gone["id"])
    run_sql(
        fresh_database,
        f"update mcp.execution_contexts set model = 'other', vector = '{{1}}' where context_id = '{faster['id']}'",
    )
    node.embedder.goes_on.set()
    await under_way
    told = run_sql(fresh_database, "select topics[1] from mcp.events where type = 'context.embedded'").split()
    assert told == [f"context:{kept['id']}"]
    assert (await node.shown(tenant_id, faster))["context"]["model"] == "other"
    assert len((await call(node.having, tenant_id, "context.list"))["contexts"]) == 2


async def test_an_embedder_that_is_busy_or_hangs_is_told_and_nothing_is_lost(node: Node, tenant_id: uuid.UUID) -> None:
    context = await node.stored(tenant_id, "abba")
    node.embedder.is_busy = True
    node.loop.start()

    async def becomes(status: str, message: str) -> None:
        async def is_so() -> bool:
            found = await node.loop.check(0.05 if status == "unhealthy" else 5.0)
            return found.status == status and message in (found.message or "")

        await eventually(is_so, f"the loop is {status}")

    try:
        await becomes("degraded", "it is busy")
        assert (await node.shown(tenant_id, context))["context"] == context
        node.embedder.goes_on.clear()
        await becomes("unhealthy", "a pass has been under way for")
        node.embedder.is_busy = False
        node.embedder.goes_on.set()
        await becomes("healthy", "")
        assert await node.found(tenant_id, "baba") == [context["id"]]
    finally:
        await node.loop.stop()
