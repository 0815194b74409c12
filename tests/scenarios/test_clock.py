"""A database whose clock is stepped by an hour: leases end early or late, and nothing is lost or done twice."""

from __future__ import annotations

import datetime
import os
import uuid
from collections.abc import Callable, Iterator

import httpx
import pytest

from devmesh.core.events import decode_cursor
from devmesh.store.migrator import Migrator
from tests.conftest import QUICK, run_sql
from tests.fleet import Agent, create, get
from tests.harness import Mesh, eventually
from tests.scenarios.jobs import Bench, register
from tests.stepping import Clock, SteppedPostgres, stepped_postgres
from tests.wire import Wire, WireError

HOUR_S = 3600
NOBODYS = {"assign": "pull", "required_capabilities": ["nobody"]}
MakeMesh = Callable[..., Mesh]


@pytest.fixture(scope="module")
def stepped() -> Iterator[SteppedPostgres]:
    with stepped_postgres() as postgres:
        assert "LD_PRELOAD" not in os.environ
        yield postgres


@pytest.fixture(scope="module")
def mesh(stepped: SteppedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    mesh = Mesh(stepped.database(), tmp_path_factory.mktemp("clock"), QUICK)
    try:
        mesh.start("rest-api", "mcp-server", "worker")
        yield mesh
    finally:
        mesh.end()


@pytest.fixture
def clock(stepped: SteppedPostgres) -> Clock:
    stepped.clock.set(0)
    return stepped.clock


async def component(mesh: Mesh) -> tuple[str, str]:
    async with httpx.AsyncClient(base_url=mesh.rest_url, trust_env=False) as http:
        found = (await http.get("/health")).json()["components"]["database"]
    return found["status"], found["message"]


async def follow(mesh: Mesh) -> Wire:
    wire = await Wire.connect(mesh.ws_url, mesh.admin_key)
    await wire.call("subscribe", topics=["tenant"])
    return wire


def assert_whole(wire: Wire) -> None:
    """What was told has no hole and no repetition, whatever the times say."""
    places = [decode_cursor(event["cursor"]).sequence for event in wire.events]
    assert places == list(range(places[0], places[0] + len(places)))


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
async def test_a_step_is_named_and_answers_and_events_stay_whole(mesh: Mesh, clock: Clock, step_s: int) -> None:
    async with await follow(mesh) as wire:
        before = await wire.call("task.create", title="once", idempotency_key=f"step {step_s}", **NOBODYS)
        clock.set(step_s)
        again = await wire.call("task.create", title="once", idempotency_key=f"step {step_s}", **NOBODYS)
        assert again == before
        after = await create(wire, "after the step", **NOBODYS)
        moved_s = (_epoch(after["created_at"]) - _epoch(before["task"]["created_at"])) / step_s
        assert 0.9 < moved_s < 1.1
        way = "ahead of" if step_s > 0 else "behind"

        async def is_named() -> bool:
            status, message = await component(mesh)
            return status == "degraded" and f"clock is 3600 s {way} this machine's" in message

        await eventually(is_named, "the step is named")
        clock.set(0)
        await create(wire, "back again", **NOBODYS)
        await eventually(lambda: "back again" in _titles(wire), "the last event comes")
        assert [title for title in _titles(wire) if title in ("once", "after the step", "back again")] == [
            "once", "after the step", "back again",
        ]  # fmt: skip
        assert_whole(wire)


async def test_events_are_numbered_on_in_whichever_month_a_clock_puts_them(
    stepped: SteppedPostgres, clock: Clock
) -> None:
    dsn, tenant_id = stepped.database(), uuid.uuid4()
    await Migrator(dsn).up()
    run_sql(dsn, f"insert into mcp.tenants (tenant_id, name) values ('{tenant_id}', 'stepped')")
    days = [0, 0, 40, 40, -40, -400, -400, 0, 40, 800, 0, -40, 400, 0]
    numbers = []
    for day in days:
        clock.set(day * 24 * HOUR_S)
        told = run_sql(dsn, f"select mcp.append_events('{tenant_id}', '{{a,b}}', '{{t,t}}', array['{{}}', '{{}}'])")
        numbers.append(int(told))
    assert numbers == list(range(2, 2 * len(days) + 1, 2))
    months = run_sql(dsn, "select count(distinct date_trunc('month', at)) from mcp.events")
    assert int(months) == len(set(days)), "each step was into another month"


async def test_forwards_leases_end_early_and_what_was_held_is_done_once_by_its_next_attempt(
    mesh: Mesh, clock: Clock
) -> None:
    async with (
        await follow(mesh) as watcher,
        await Agent.join(mesh, mesh.admin_key, "early", "early", concurrency=2) as agent,
    ):
        task = await create(watcher, "held", required_capabilities=["early"], lease_s=300, max_retries=3)
        first = await agent.next_task()
        await agent.say("accept", first)
        clock.set(HOUR_S)
        await watcher.next_event("task.lease_expired")
        await agent.wire.call("agent.heartbeat")  # as the SDK says by itself: it lives
        second = await agent.next_task(within_s=20.0)
        assert (second["id"], second["attempt"]) == (task["id"], first["attempt"] + 1)
        assert await agent.refused("complete", first) == "task.stale_attempt"
        assert (await agent.complete(second, result="once"))["status"] == "completed"
        outcomes = run_sql(
            mesh.dsn, f"select outcome from mcp.task_attempts where task_id = '{task['id']}' order by attempt"
        )
        assert outcomes.splitlines() == ["lease_expired", "completed"]
        await watcher.next_event("task.completed", where=lambda event: event["data"]["task"]["id"] == task["id"])
        assert [event["type"] for event in watcher.events].count("task.completed") == 1
        assert_whole(watcher)


async def test_backwards_leases_end_late_and_whoever_lives_goes_on(mesh: Mesh, clock: Clock) -> None:
    clock.set(HOUR_S)
    async with (
        await follow(mesh) as watcher,
        await Agent.join(mesh, mesh.admin_key, "late", "late", concurrency=3) as agent,
    ):
        held = await create(watcher, "held", required_capabilities=["late"], lease_s=2)
        holding = await agent.next_task()
        await agent.say("accept", holding)
        waiting = await create(watcher, "waiting", assign="pull", required_capabilities=["late"])
        clock.set(0)
        fresh = await create(watcher, "fresh", required_capabilities=["late"])  # new work is not held up
        given = await agent.next_task()
        assert given["id"] == fresh["id"]
        await agent.complete(given)
        await agent.wire.call("task.heartbeat", task_id=held["id"], attempt=holding["attempt"])
        renewed = await get(watcher, held)
        assert _epoch(renewed["lease_until"]) - _epoch(fresh["created_at"]) < HOUR_S / 2  # by the clock as it is now
        with pytest.raises(WireError) as stale:
            await agent.wire.call("task.complete", task_id=held["id"], attempt=holding["attempt"] + 1)
        assert stale.value.reason == "task.stale_attempt"
        await agent.complete(holding)
        # What was ready by the later clock waits until the time has come again: late, not lost.
        assert (await agent.wire.call("task.claim", capabilities=["late"]))["tasks"] == []
        clock.set(HOUR_S)
        claimed = await agent.wire.call("task.claim", capabilities=["late"], wait_ms=5_000)
        assert [task["id"] for task in claimed["tasks"]] == [waiting["id"]]
        assert_whole(watcher)


async def test_set_back_by_less_than_a_second_a_worker_is_given_no_more_than_it_has_room_for(
    mesh: Mesh, clock: Clock
) -> None:
    async with await Wire.connect(mesh.ws_url, mesh.admin_key) as wire:
        bench = Bench(wire, await register(wire, capacity=2))
        clock.set(-5)
        for _ in range(3):  # whatever the clock has been, these look from the front, and the next do not
            assert await bench.claim() == []
        for _ in range(3):
            await bench.enqueue()
        clock.set(0)
        assert len(await bench.claim(1)) == 1
        clock.set(-0.9)
        assert [len(await bench.claim(1)) for _ in range(2)] == [1, 0]


def _titles(wire: Wire) -> list[str]:
    return [event["data"]["task"]["title"] for event in wire.events if event["type"] == "task.created"]


def _epoch(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()
