"""Services that are given a Qdrant or an embedder: what they do while it is away, or cannot be had."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from devmesh.engine import minilm
from tests.conftest import run_sql
from tests.harness import Mesh
from tests.scenarios.test_contexts import becomes, searched, stored
from tests.wire import Wire, WireError


async def test_while_qdrant_is_away_nothing_is_lost_and_words_are_searched(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh(
        "rest-api", "mcp-server", "worker", QDRANT_URL="http://127.0.0.1:9", DEVMESH_QDRANT_INTERVAL_S="0.2"
    )
    for child in mesh.children:
        await becomes(child.port, "degraded", "Qdrant is away")
    [worker] = mesh.of("worker")
    async with await Wire.connect(mesh.ws_url, mesh.admin_key) as wire:
        context = await stored(wire, "words remain", vector=[1.0, 2.0])
        await becomes(worker.port, "degraded", "Qdrant is away", "context-indexer")
        with pytest.raises(WireError) as refused:
            await searched(wire, vector=[1.0, 2.0])
        assert refused.value.kind == "unavailable"
        assert "search by the words of a text" in refused.value.message
        assert [found for found, _ in await searched(wire, text="words")] == [context["id"]]
    waiting = "select count(*) from mcp.execution_contexts where indexed_at is null and vector is not null"
    assert run_sql(mesh.dsn, waiting) == "1"


@pytest.mark.skipif(
    importlib.util.find_spec(minilm.MODEL.package) is not None,
    reason="the embedder is installed, so nothing is missing",
)
@pytest.mark.parametrize("service", ["rest-api", "mcp-server", "worker"])
def test_no_service_starts_with_an_embedder_that_is_not_installed(
    empty_database: str, tmp_path: Path, service: str
) -> None:
    child = Mesh(empty_database, tmp_path, {"DEVMESH_EMBEDDER": "minilm"}).add(service)
    child.start()
    assert child.wait() == 1
    [line] = [line for line in child.tail().splitlines() if line.startswith("devmesh ")]
    assert "DEVMESH_EMBEDDER is minilm" in line
    assert "pip install 'devmesh[embeddings]'" in line
