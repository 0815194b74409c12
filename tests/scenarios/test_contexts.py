"""J20 to J22: what executions leave behind is kept whole, and found by those that do something alike."""

from __future__ import annotations

import math
import uuid
from typing import Any

import httpx
import pytest

from tests.conftest import run_sql
from tests.harness import Mesh, eventually
from tests.scenarios.jobs import Bench
from tests.wire import Wire, WireError


async def stored(wire: Wire, text: str, **about: Any) -> dict[str, Any]:
    context: dict[str, Any] = (await wire.call("context.store", **{"type": "t", "text": text, **about}))["context"]
    return context


async def searched(wire: Wire, **about: Any) -> list[tuple[str, float]]:
    answer = await wire.call("context.search", **about)
    return [(found["context"]["id"], found["score"]) for found in answer["results"]]


async def test_j20_a_context_comes_back_whole(bench: Bench) -> None:
    job = await bench.enqueue()
    about = {
        "text": "ü line\nand \u2028 more", "data": {"a": [1, None, {"b": "\u0000 stays JSON"}], "n": 1e-7},
        "tags": ["x", "y:z"], "job_id": job["id"], "attempt": 1, "model": "mine/v1",
        "vector": [0.1, -0.5, 1e-3, 3e14, 0.1234567, 1e-200],
    }  # fmt: skip
    context = await stored(bench.wire, **about)
    shown = await bench.wire.call("context.get", context_id=context["id"])
    assert shown["context"] == context
    assert {name: context[name] for name in about.keys() - {"vector"}} == {
        name: about[name] for name in about.keys() - {"vector"}
    }
    assert shown["vector"] == [0.1, -0.5, 1e-3, 3e14, 0.1234567, 0]
    assert (context["dimensions"], context["model"]) == (6, "mine/v1")
    listed = await bench.wire.call("context.list", job_id=job["id"], type="t", tag="x")
    assert listed["contexts"] == [context]
    await bench.wire.call("context.delete", context_id=context["id"])
    with pytest.raises(WireError) as refused:
        await bench.wire.call("context.get", context_id=context["id"])
    assert refused.value.kind == "not_found"


async def test_j21_the_execution_that_is_alike_comes_first_by_a_vector_of_ones_own(bench: Bench) -> None:
    wire = bench.wire
    analysis = await stored(wire, "data analysis of sales", vector=[1.0, 0.1, 0.0])
    mail = await stored(wire, "mails were sent", vector=[0.0, 1.0, 0.2])
    await stored(wire, "another model", vector=[1.0, 0.1, 0.0], model="other")
    await stored(wire, "another length", vector=[1.0, 0.1])
    await stored(wire, "no vector")
    answer = await wire.call("context.search", vector=[0.9, 0.2, 0.0])
    assert (answer["by"], answer["model"], answer["dimensions"]) == ("vector", "own", 3)
    scores = {found["context"]["id"]: found["score"] for found in answer["results"]}
    assert list(scores) == [analysis["id"], mail["id"]]
    cosine = (0.9 + 0.02) / (math.hypot(0.9, 0.2) * math.hypot(1.0, 0.1))
    assert scores[analysis["id"]] == pytest.approx(cosine, abs=1e-5)
    assert scores[analysis["id"]] > 0.7
    assert [found for found, _ in await searched(wire, vector=[0.9, 0.2, 0.0], min_score=0.7)] == [analysis["id"]]


@pytest.mark.parametrize("size", [1e-18, 1e15])
async def test_small_and_large_vectors_are_compared_as_others_are(bench: Bench, size: float) -> None:
    alike = await stored(bench.wire, "alike", vector=[size] * 64)
    [(found, score)] = await searched(bench.wire, vector=[size] * 64, min_score=0.9)
    assert found == alike["id"]
    assert score == pytest.approx(1, abs=1e-5)


async def test_contexts_are_kept_for_longer_than_their_jobs(mesh: Mesh, bench: Bench) -> None:
    job = await bench.enqueue()
    context = await stored(bench.wire, "learned", job_id=job["id"])
    run_sql(mesh.dsn, f"delete from mcp.jobs where job_id = '{job['id']}'")
    found = await bench.wire.call("context.list", job_id=job["id"])
    assert [each["id"] for each in found["contexts"]] == [context["id"]]
    assert [found for found, _ in await searched(bench.wire, text="learned", job_id=job["id"])] == [context["id"]]


async def test_j21_without_a_vector_the_words_decide_and_the_answer_says_so(bench: Bench) -> None:
    wire = bench.wire
    analysis = await stored(wire, "Data analysis: quarterly sales figures were analysed and charted", type="analysis")
    await stored(wire, "Mails were sent to all customers", type="mail")
    answer = await wire.call("context.search", text="analyse the sales data")
    assert (answer["by"], answer["model"]) == ("text", None)
    [best, *_] = answer["results"]
    assert (best["context"]["id"], best["score"]) == (analysis["id"], 1.0)
    assert await searched(wire, text="analyse the sales data", type="mail") == []
    assert await searched(wire, text="and the of") == [], "words that say nothing find nothing"
    assert await searched(wire, text="'a' & | ! :* <-> (") == []


async def test_j22_patterns_of_one_job_are_found_among_its_own(bench: Bench) -> None:
    wire = bench.wire
    job, other = await bench.enqueue(), await bench.enqueue()
    retried = await stored(wire, "it failed with a timeout and was retried", job_id=job["id"])
    await stored(wire, "it ran to its end at once", job_id=job["id"])
    await stored(wire, "it failed with a timeout and was retried", job_id=other["id"])
    [(found, score), *_] = await searched(wire, text="failed by timeout, then retried", job_id=job["id"])
    assert found == retried["id"]
    assert score > 0.5


async def test_a_long_text_is_searched_among_long_ones(bench: Bench) -> None:
    words = [f"w{number:x}" for number in range(9_000)]
    for number in range(30):
        await stored(bench.wire, f"{' '.join(words)} only{number}")
    [(_, score), *_] = await searched(bench.wire, text=" ".join(words[:2_000]))
    assert score == 1.0
    [(_, score), *_] = await searched(bench.wire, text=" ".join([*words[:1_999], "elsewhere"]))
    assert score == pytest.approx(1_999 / 2_000, abs=1e-6)


async def test_a_text_of_as_many_words_as_it_can_have_is_searched(bench: Bench) -> None:
    words = [chr(0x4E00 + number % 20_000) + chr(0x61 + number // 20_000) for number in range(21_845)]
    await stored(bench.wire, " ".join(words))
    await stored(bench.wire, words[-1])
    assert [score for _, score in await searched(bench.wire, text=" ".join(words))] == [1.0, 0.000046]


@pytest.mark.parametrize("odd", ["it's", "back\\slash", "a:b", "x|y&z!(w)", "'", "C:\\temp\\file.txt", "follow-up"])
async def test_whatever_is_a_word_is_found_by_it(bench: Bench, odd: str) -> None:
    await stored(bench.wire, f"invoice {odd}")
    [(_, score)] = await searched(bench.wire, text=f"{odd} invoice")
    assert score == 1.0


async def test_another_tenant_finds_nothing_of_it(mesh: Mesh, bench: Bench) -> None:
    context = await stored(bench.wire, "a secret recipe", vector=[1.0, 0.0])
    async with await Wire.connect(mesh.ws_url, mesh.new_tenant()) as stranger:
        assert await searched(stranger, text="secret recipe") == []
        assert await searched(stranger, vector=[1.0, 0.0]) == []
        assert await searched(stranger, text=bench.wire.initialized["tenant_id"]) == []
        for name in ("get", "delete"):
            with pytest.raises(WireError) as refused:
                await stranger.call(f"context.{name}", context_id=context["id"])
            assert refused.value.kind == "not_found"


async def test_a_database_without_the_extension_says_what_is_missing_and_does_the_rest(
    mesh: Mesh, bench: Bench
) -> None:
    context = await stored(bench.wire, "words remain", vector=[1.0, 2.0])
    run_sql(mesh.dsn, "drop extension vector cascade")
    try:
        with pytest.raises(WireError) as refused:
            await searched(bench.wire, vector=[1.0, 2.0])
        assert refused.value.kind == "unavailable"
        assert "create extension vector" in refused.value.message
        assert [found for found, _ in await searched(bench.wire, text="words")] == [context["id"]]
        await stored(bench.wire, "more", vector=[1.0, 2.0])
        for child in mesh.children:
            await becomes(child.port, "degraded", "create extension vector")
    finally:
        run_sql(mesh.dsn, "create extension vector schema public")
    assert len(await searched(bench.wire, vector=[1.0, 2.0])) == 2
    for child in mesh.children:
        await becomes(child.port, "healthy", "pgvector")


async def becomes(port: int, status: str, message: str, name: str = "vectors") -> None:
    """A service's health says so, and the service stays ready."""
    async with httpx.AsyncClient(timeout=5.0, trust_env=False) as http:

        async def is_so() -> bool:
            answer = (await http.get(f"http://127.0.0.1:{port}/health")).json()
            found = answer["components"][name]
            return bool(answer["ready"] and found["status"] == status and message in found["message"])

        await eventually(is_so, f"{name} is {status}")


@pytest.mark.parametrize(
    ("about", "field"),
    [
        ({"text": ""}, "text"),
        ({"text": "a\u0000b"}, "text"),
        ({"text": "x" * 65_537}, "text"),
        ({"vector": []}, "vector"),
        ({"vector": [0.0, 0.0]}, "vector"),
        ({"vector": [1e-200]}, "vector"),
        ({"vector": [1e-25, 2e-25]}, "vector"),
        ({"vector": [1e300]}, "vector[0]"),
        ({"vector": [1.0] * 4_097}, "vector"),
        ({"model": "m"}, "model"),
        ({"attempt": 1}, "attempt"),
        ({"attempt": 0}, "attempt"),
    ],
)
async def test_a_wrong_context_is_refused_by_field(bench: Bench, about: dict[str, Any], field: str) -> None:
    with pytest.raises(WireError) as refused:
        await stored(bench.wire, **{"text": "t", **about})
    assert (refused.value.kind, refused.value.data["field"]) == ("invalid_params", field)


async def test_a_context_of_a_job_that_is_not_there_is_refused(bench: Bench) -> None:
    with pytest.raises(WireError) as refused:
        await stored(bench.wire, "t", job_id=str(uuid.uuid4()))
    assert refused.value.kind == "not_found"


async def test_a_search_is_by_one_thing(bench: Bench) -> None:
    for about in ({}, {"text": "t", "vector": [1.0]}, {"vector": [1.0], "by": "text"}):
        with pytest.raises(WireError) as refused:
            await bench.wire.call("context.search", **about)
        assert refused.value.kind == "invalid_params"


async def test_a_server_without_an_embedder_makes_up_no_vector(bench: Bench) -> None:
    context = await stored(bench.wire, "a text alone")
    assert (context["model"], context["dimensions"]) == (None, None)
    with pytest.raises(WireError) as refused:
        await searched(bench.wire, text="a text alone", by="vector")
    assert (refused.value.kind, refused.value.data["reason"]) == ("conflict", "context.no_embedder")
    assert [found for found, _ in await searched(bench.wire, text="a text alone", by="text")] == [context["id"]]
