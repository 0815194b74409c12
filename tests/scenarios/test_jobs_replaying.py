"""Dead letters that are put back: each in its order, and none that waits for ever or hides another."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import run_sql
from tests.harness import Mesh
from tests.scenarios.jobs import Bench, do, reason, register
from tests.wire import Wire, WireError


async def test_those_that_are_replayed_together_run_in_the_order_that_was_asked_for(bench: Bench) -> None:
    first = await bench.enqueue(max_retries=0)
    other = await bench.enqueue(delay_ms=60_000)
    child = await bench.enqueue(depends_on=[first["id"], other["id"]])
    grandchild = await bench.enqueue(depends_on=[child["id"]])
    await do(bench, "fail", error="broken")
    error = (await bench.get(child))["error"]
    assert (error["job_id"], sorted(error["waited_for"])) == (first["id"], sorted([first["id"], other["id"]]))
    replayed = await bench.wire.call("dead_letter.replay", all=True, queue=bench.queue)
    assert sorted(replayed["job_ids"]) == sorted(job["id"] for job in (first, child, grandchild))
    assert await reason(bench, child) == "waiting_for_parents"
    assert await do(bench) == [first["id"]]
    assert await do(bench) == [], "the child waits for the other as well"
    await bench.wire.call("job.cancel", job_id=other["id"])
    assert [await bench.status(job) for job in (child, grandchild)] == ["FAILED", "FAILED"]
    await bench.wire.call("job.retry", job_id=grandchild["id"])
    await bench.wire.call("job.retry", job_id=child["id"])
    assert sorted(await do(bench)) == sorted([child["id"], grandchild["id"]]), "what is over is waited for no more"


async def test_one_that_was_cancelled_while_it_waited_waits_again_when_it_is_retried(bench: Bench) -> None:
    over = await bench.enqueue()
    assert await do(bench) == [over["id"]]
    parent = await bench.enqueue()
    child = await bench.enqueue(depends_on=[over["id"], parent["id"]])
    await bench.wire.call("job.cancel", job_id=child["id"], reason="a while")
    assert await bench.status(child) == "CANCELLED"
    await bench.wire.call("job.retry", job_id=child["id"])
    assert await reason(bench, child) == "waiting_for_parents"
    assert await do(bench) == [parent["id"]]
    assert await do(bench) == [child["id"]]


async def test_one_that_is_replayed_does_not_wait_for_whoever_waits_for_it_by_now(bench: Bench) -> None:
    first = await bench.enqueue(max_retries=0)
    child = await bench.enqueue(depends_on=[first["id"]])
    await do(bench, "fail", error="broken")
    await bench.wire.call("dead_letter.replay", job_ids=[first["id"]])
    await bench.wire.call(
        "job.depend", job_id=first["id"], depends_on=[child["id"]], on_parent_failure="wait", inherit_priority=False
    )
    assert await do(bench) == []
    await bench.wire.call("dead_letter.replay", job_ids=[child["id"]])
    assert await do(bench) == [child["id"]]
    assert await do(bench) == [first["id"]]


@pytest.mark.parametrize("swap", [False, True])
async def test_those_that_waited_for_each_other_one_after_the_other_draw_no_circle_when_replayed_together(
    bench: Bench, *, swap: bool
) -> None:
    third, second, first = [await bench.enqueue(max_retries=0) for _ in range(3)]
    if swap:
        first, second = second, first
    await bench.wire.call("job.depend", job_id=second["id"], depends_on=[first["id"]])
    await bench.wire.call("job.cancel", job_id=first["id"])
    await bench.wire.call("job.retry", job_id=first["id"])
    await bench.wire.call(
        "job.depend", job_id=first["id"], depends_on=[second["id"], third["id"]], on_parent_failure="wait"
    )
    await bench.wire.call("job.cancel", job_id=third["id"])
    assert [await bench.status(job) for job in (first, second)] == ["FAILED", "FAILED"]
    await bench.wire.call("dead_letter.replay", job_ids=[first["id"], second["id"]])
    assert sorted(await do(bench) + await do(bench)) == sorted([first["id"], second["id"]])


async def test_a_chain_is_replayed_in_its_order_whichever_way_it_was_drawn(bench: Bench) -> None:
    for step in (1, -1):
        order = [await bench.enqueue(max_retries=0) for _ in range(10)][::step]
        for parent, child in itertools.pairwise(order):
            await bench.wire.call("job.depend", job_id=child["id"], depends_on=[parent["id"]])
        await do(bench, "fail", error="broken")
        await bench.wire.call("dead_letter.replay", job_ids=[job["id"] for job in order])
        assert [await do(bench) for _ in order] == [[job["id"]] for job in order]


async def test_those_that_are_refused_hide_none_of_those_behind_them(bench: Bench) -> None:
    for _ in range(4):  # one of the key after the other
        await bench.enqueue(unique_key="u", max_retries=0)
        await do(bench, "fail", error="broken")
    others = [(await bench.enqueue(max_retries=0))["id"] for _ in range(3)]
    await do(bench, "fail", error="broken")
    await bench.enqueue(unique_key="u", delay_ms=60_000)
    steps = [await bench.wire.call("dead_letter.replay", all=True, queue=bench.queue, limit=2)]
    while steps[-1]["after"] is not None:
        where = {name: steps[-1][name] for name in ("up_to", "after")}
        steps.append(await bench.wire.call("dead_letter.replay", all=True, queue=bench.queue, limit=2, **where))
    assert [(len(step["job_ids"]), len(step["refused"])) for step in steps] == [(0, 2), (0, 2), (2, 0), (1, 0)]
    assert sorted(await do(bench)) == sorted(others)


async def in_steps(bench: Bench, limit: int) -> list[str]:
    """Replays all dead letters. Those of them that are refused."""
    asked: dict[str, Any] = {"all": True, "queue": bench.queue, "limit": limit}
    refused: list[str] = []
    while True:
        answer = await bench.wire.call("dead_letter.replay", **asked)
        refused += [each["id"] for each in answer["refused"]]
        if answer["after"] is None:
            return refused
        asked.update(up_to=answer["up_to"], after=answer["after"])


async def dead_before_their_parent(bench: Bench, **about: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A job and three that failed with it, as dead letters: it is the latest of them, because it was retried in vain."""
    parent = await bench.enqueue(max_retries=0, **about)
    children = [await bench.enqueue(depends_on=[parent["id"]]) for _ in range(3)]
    await do(bench, "fail", error="broken")
    await bench.wire.call("job.retry", job_id=parent["id"])
    assert await do(bench, "fail", error="broken") == [parent["id"]]
    return parent, children


async def test_those_that_are_replayed_in_steps_wait_for_one_that_a_later_step_comes_to(bench: Bench) -> None:
    parent, children = await dead_before_their_parent(bench)
    assert await in_steps(bench, 2) == []
    assert await do(bench) == [parent["id"]]
    assert sorted(await do(bench)) == sorted(job["id"] for job in children)


async def test_those_that_wait_for_one_that_a_later_step_refuses_are_dead_letters_again(bench: Bench) -> None:
    parent, children = await dead_before_their_parent(bench, unique_key="u")
    await bench.enqueue(unique_key="u", delay_ms=60_000)
    assert await in_steps(bench, 2) == [parent["id"]]
    assert [await bench.status(job) for job in (*children, parent)] == ["FAILED", "FAILED", "PENDING", "FAILED"]
    assert await do(bench) == [children[2]["id"]], "it came together with the one that was refused"


@pytest.mark.parametrize(
    "error",
    [
        "ParentFailed",
        {"type": "ParentFailed"},
        {"type": "ParentFailed", "waited_for": ["nobody"], "on_parent_failure": "fail"},
        {"type": "ParentFailed", "waited_for": [str(uuid.uuid4())], "on_parent_failure": "fail"},
        {"type": "ParentFailed", "waited_for": None, "on_parent_failure": "maybe"},
    ],
)
async def test_an_error_of_a_handler_that_looks_like_one_of_a_parent_keeps_nothing_from_a_replay(
    bench: Bench, error: Any
) -> None:
    job = await bench.enqueue(max_retries=0)
    await do(bench, "fail", error=error)
    await bench.wire.call("dead_letter.replay", job_ids=[job["id"]])
    assert await do(bench) == [job["id"]]


@pytest.mark.parametrize("verb", ["dead_letter.replay", "job.retry"])
async def test_nor_one_that_names_a_job_for_which_its_own_has_never_waited(bench: Bench, verb: str) -> None:
    other = await bench.enqueue(delay_ms=60_000)
    job = await bench.enqueue(max_retries=0)
    error = {"type": "ParentFailed", "waited_for": [other["id"]], "on_parent_failure": "wait"}
    await do(bench, "fail", error=error)
    assert (await bench.get(job))["error"] == error
    if verb == "job.retry":
        await bench.wire.call("dead_letter.discard", job_ids=[job["id"]])
    asked: dict[str, Any] = {"job_id": job["id"]} if verb == "job.retry" else {"job_ids": [job["id"]]}
    await bench.wire.call(verb, **asked)
    assert await do(bench) == [job["id"]]


@pytest.mark.parametrize("verb", ["replay", "discard"])
@pytest.mark.parametrize(
    "narrower", [{"queue": "q"}, {"type": "t"}, {"limit": 1}, {"up_to": "0" * 32}, {"after": "0" * 32}]
)
async def test_what_narrows_all_is_refused_beside_jobs_by_name(
    bench: Bench, verb: str, narrower: dict[str, Any]
) -> None:
    job = await bench.enqueue(max_retries=0)
    await do(bench, "fail", error="broken")
    with pytest.raises(WireError) as refused:
        await bench.wire.call(f"dead_letter.{verb}", job_ids=[job["id"]], **narrower)
    assert (refused.value.kind, refused.value.data["field"]) == ("invalid_params", *narrower)
    assert [letter["job_id"] for letter in await bench.dead_letters()] == [job["id"]]


async def test_what_has_ended_in_no_month_is_not_replayed_while_it_is_moved_to_one(
    own_mesh: Callable[..., Mesh],
) -> None:
    """The copy that takes its place may have been made before."""
    mesh = own_mesh("rest-api", "mcp-server")
    async with await Wire.connect(mesh.ws_url, mesh.new_tenant()) as wire:
        bench = Bench(wire, await register(wire))
        job = await bench.enqueue(max_retries=0)
        await do(bench, "fail", error="broken")
        [part] = run_sql(mesh.dsn, "select distinct tableoid::regclass from mcp.job_executions").split()
        run_sql(
            mesh.dsn,
            f"alter table mcp.job_executions detach partition {part};"
            f" insert into mcp.job_executions select * from {part}; drop table {part}",
        )
        blocks = run_sql(mesh.dsn, "select blocks from mcp.begin_drain('job_executions', 1)")
        run_sql(mesh.dsn, f"select mcp.copy_drain('job_executions', 0, {blocks})")
        for method, asked in (("dead_letter.replay", {"job_ids": [job["id"]]}), ("job.retry", {"job_id": job["id"]})):
            with pytest.raises(WireError) as refused:
                await wire.call(method, **asked)
            assert refused.value.kind == "unavailable"
        run_sql(mesh.dsn, "select mcp.end_drain('job_executions', 'mcp.job_executions_drain'::regclass)")
        await wire.call("dead_letter.replay", job_ids=[job["id"]])
        assert await bench.status(job) == "PENDING"
        assert await do(bench) == [job["id"]]
