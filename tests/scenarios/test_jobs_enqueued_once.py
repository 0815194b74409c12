"""A few jobs are enqueued in one round trip, keys and all: what a repeated call gets, and what others get beside it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.conftest import run_sql
from tests.harness import Mesh
from tests.scenarios.jobs import Bench
from tests.wire import Wire, WireError

ODD = 'a "quoted", \\ back\\slashed, \u001e parted, ü, 𝄞 text'
SPECS: list[dict[str, Any]] = [
    {"payload": {"text": ODD}, "tags": ["a", "b:c"], "timeout_ms": 5, "backoff_ms": 0, "max_retries": 0, "priority": 5},
    {"payload": [0.5, None, {}]},
    {"delay_ms": 60_000},
    {"unique_key": "u"},
    {"concurrency_key": "c", "concurrency_limit": 2},
]
ABOUT_A_KEY: list[dict[str, Any]] = [
    {"unique_states": ["COMPLETED"]},
    {"unique_period_s": 60},
    {"concurrency_limit": 3},
]


async def enqueued(bench: Bench) -> int:
    return len((await bench.wire.call("job.list", queue=bench.queue, limit=100))["jobs"])


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: next(iter(spec)) + str(len(spec)))
async def test_a_repeated_call_gets_the_same_answer_and_enqueues_nothing(bench: Bench, spec: dict[str, Any]) -> None:
    asked = {"type": "t", "queue": bench.queue, **spec, "idempotency_key": f"once {bench.queue}"}
    first = await bench.wire.call("job.enqueue", **asked)
    again = await bench.wire.call("job.enqueue", **asked)
    assert first == again
    assert await bench.get(first["job"]) == first["job"], "what is told of it is what there is"
    assert await enqueued(bench) == 1
    with pytest.raises(WireError, match="other parameters"):
        await bench.wire.call("job.enqueue", **{**asked, "type": "another"})


async def test_calls_with_one_key_in_one_moment_on_any_wire_enqueue_one_job(
    mesh: Mesh, tenant: str, bench: Bench
) -> None:
    asked = {"type": "t", "queue": bench.queue}
    async with await Wire.connect(mesh.ws_url, tenant) as other:
        for number in range(10):
            answers = await asyncio.gather(
                *(wire.call("job.enqueue", **asked, idempotency_key=f"k{number}") for wire in [bench.wire, other] * 4)
            )
            assert all(answer == answers[0] for answer in answers)
    assert await enqueued(bench) == 10


async def test_a_key_that_was_used_keeps_none_beside_it_from_being_enqueued(mesh: Mesh, bench: Bench) -> None:
    asked = {"type": "t", "queue": bench.queue}
    used = await bench.wire.call("job.enqueue", **asked, idempotency_key=f"7 {bench.queue}")
    answers = await asyncio.gather(
        *(bench.wire.call("job.enqueue", **asked, idempotency_key=f"{number} {bench.queue}") for number in range(30)),
        *(bench.wire.call("job.enqueue", **asked) for _ in range(10)),
    )
    assert answers[7] == used
    assert len({answer["job"]["id"] for answer in answers}) == 40
    assert await enqueued(bench) == 40
    told = run_sql(
        mesh.dsn,
        "select sum(json_array_length(data -> 'jobs')) from mcp.events"
        f" where type = 'job.enqueued' and 'queue:{bench.queue}' = any(topics)",
    )
    assert told == "40", "each was told of once"


async def test_a_call_that_is_refused_may_be_made_again_with_its_key(bench: Bench) -> None:
    asked = {"type": "t", "queue": bench.queue, "idempotency_key": f"again {bench.queue}"}
    with pytest.raises(WireError, match="delay_ms"):
        await bench.wire.call("job.enqueue", **asked, delay_ms=1, run_at="2026-01-01T00:00:00Z")
    await bench.wire.call("job.enqueue", **asked)
    assert await enqueued(bench) == 1


@pytest.mark.parametrize("about", ABOUT_A_KEY, ids=lambda about: next(iter(about)))
async def test_what_is_said_of_a_key_that_is_not_given_is_refused_by_field(bench: Bench, about: dict[str, Any]) -> None:
    [field] = about
    good = {"type": "t", "queue": bench.queue}
    calls = [{**good, **about} if number % 3 == 0 else good for number in range(9)]  # they go together
    answers = await asyncio.gather(*(bench.wire.ask("job.enqueue", call) for call in calls))
    assert [call is good for call in calls] == ["result" in answer for answer in answers]
    told = [answer["error"]["data"] for answer in answers if "error" in answer]
    assert {(each["kind"], each["field"]) for each in told} == {("invalid_params", field)}
    other_key = "concurrency_key" if field.startswith("unique") else "unique_key"
    schedule = (await bench.wire.call("schedule.create", name=bench.queue, interval_s=3_600, job=good))["schedule"]
    refusals: list[tuple[str, str, dict[str, Any]]] = [
        ("job.enqueue", field, {**good, **about, other_key: "k"}),
        ("job.enqueue_many", f"jobs[1].{field}", {"jobs": [good, {**good, **about}]}),
        ("schedule.create", f"job.{field}", {"name": "other", "interval_s": 3_600, "job": {**good, **about}}),
        ("schedule.update", f"job.{field}", {"schedule_id": schedule["id"], "job": {**good, **about}}),
    ]
    for operation, named, params in refusals:
        with pytest.raises(WireError) as refused:
            await bench.wire.call(operation, **params)
        assert (refused.value.kind, refused.value.data["field"]) == ("invalid_params", named), operation
    assert len((await bench.wire.call("job.list", queue=bench.queue))["jobs"]) == calls.count(good)
