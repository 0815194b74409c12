"""E1-E10: events are delivered in order, once, after any interruption, or the loss is said."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import statistics
import time
import uuid
from collections.abc import Callable

import pytest
import websockets

from tests.conftest import run_sql
from tests.harness import Mesh, eventually
from tests.wire import JSON, MSGPACK, Wire, WireError

TASKS_PER_CALL = 1000


async def create_tasks(wire: Wire, count: int) -> None:
    """Each leaves one event: pull tasks are not assigned by the mesh."""
    for begin in range(0, count, TASKS_PER_CALL):
        tasks = [
            {"title": str(number), "assign": "pull"} for number in range(begin, min(begin + TASKS_PER_CALL, count))
        ]
        await wire.call("task.create_many", tasks=tasks)


def titles(wire: Wire) -> list[str]:
    return [event["data"]["task"]["title"] for event in wire.events if event["type"] == "task.created"]


@pytest.mark.parametrize("missed", [1, 1_000, 10_000, pytest.param(50_000, marks=pytest.mark.soak)])
@pytest.mark.timeout(240)
async def test_e01_every_missed_event_comes_after_a_reconnect_in_order_and_once(
    mesh: Mesh, tenant: str, missed: int
) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as before:
        await before.call("subscribe", topics=["tenant"])
        cursor = before.initialized["cursor"]
    async with await Wire.connect(mesh.ws_url, tenant) as other:
        await create_tasks(other, missed)
        async with await Wire.connect(mesh.ws_url, tenant) as after:
            begun = await after.call("subscribe", topics=["tenant"], since=cursor)
            assert begun["recovered"] is True
            await create_tasks(other, 3)  # what comes meanwhile follows what was missed
            await after.until_events(missed + 3, within_s=60)
            assert titles(after) == [*map(str, range(missed)), "0", "1", "2"]


async def test_e01_a_replay_repeats_nothing_that_came_over_another_topic(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        created = await wire.call("task.create", title="first", assign="pull")
        topic = f"task:{created['task']['id']}"
        await wire.call("subscribe", topics=[topic])
        await wire.call("task.cancel", task_id=created["task"]["id"])
        await wire.next_event("task.cancelled")
        await wire.call("subscribe", topics=["tenant"], since=wire.initialized["cursor"])
        await wire.call("task.create", title="last", assign="pull")
        await eventually(lambda: "last" in titles(wire), "the last event comes")
        assert sorted(event["type"] for event in wire.events) == ["task.cancelled", "task.created", "task.created"]


async def test_e01_the_inbox_resumes_with_the_session(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        agent = (await wire.call("agent.register", name="resumer", capabilities=["resume"]))["agent"]
        await wire.next_event("agent.registered")
        cursor = wire.cursor
    async with await Wire.connect(mesh.ws_url, tenant) as other:
        await other.call("task.create", title="meant for you", assign=agent["id"])
    async with await Wire.connect(mesh.ws_url, tenant, agent="resumer", resume=cursor) as again:
        assert again.initialized["recovered"] is True
        assert again.initialized["agent_id"] == agent["id"]
        event = await again.next_event("task.assigned")
        assert event["data"]["task"]["title"] == "meant for you"


async def test_e02_a_cursor_older_than_retention_is_said_to_be(
    own_mesh: Callable[..., Mesh], fresh_database: str
) -> None:
    mesh = own_mesh("rest-api", "mcp-server")
    async with await Wire.connect(mesh.ws_url, mesh.admin_key) as wire:
        cursor = wire.initialized["cursor"]
        await create_tasks(wire, 10)
        # Retention drops the oldest part of the log and remembers how far it went.
        run_sql(fresh_database, "delete from mcp.events where sequence <= 6")
        run_sql(fresh_database, "update mcp.tenants set stream_floor = 6")
    mesh.of("mcp-server")[0].kill()
    mesh.of("mcp-server")[0].start()
    mesh.of("mcp-server")[0].wait_ready()
    async with await Wire.connect(mesh.ws_url, mesh.admin_key) as wire:
        begun = await wire.call("subscribe", topics=["tenant"], since=cursor)
        assert begun["recovered"] is False
        await wire.until_events(4)
        assert titles(wire) == ["6", "7", "8", "9"]
        again = await wire.call(
            "subscribe", topics=["inbox" if wire.initialized["agent_id"] else "tenant"], since=begun["cursor"]
        )
        assert again["recovered"] is True


async def test_e02_a_cursor_of_another_history_is_said_to_be(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        await create_tasks(wire, 1)
        foreign = "00000009" + "0" * 15 + "1"  # epoch 9, sequence 1
        begun = await wire.call("subscribe", topics=["tenant"], since=foreign)
        assert begun["recovered"] is False
        with pytest.raises(WireError) as refused:
            await wire.call("subscribe", topics=["tenant"], since="no cursor")
        assert (refused.value.kind, refused.value.data["field"]) == ("invalid_params", "cursor")


@pytest.mark.timeout(240)
async def test_e03_a_gateway_killed_under_load_loses_and_repeats_nothing(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api", "mcp-server", "mcp-server")
    doomed, other = mesh.of("mcp-server")
    doomed_url, other_url = (f"ws://127.0.0.1:{child.port}/ws" for child in (doomed, other))
    wires = [await Wire.connect(doomed_url, mesh.admin_key) for _ in range(100)]
    await asyncio.gather(*(wire.call("subscribe", topics=["tenant"]) for wire in wires))
    written: list[str] = []

    async def write() -> None:
        async with await Wire.connect(other_url, mesh.admin_key) as writer:
            for number in range(600):
                await writer.call("task.create", title=str(number), assign="pull")
                written.append(str(number))

    writing = asyncio.create_task(write())
    await eventually(lambda: len(written) >= 200, "200 tasks are written", 60)
    doomed.kill()

    async def resume(wire: Wire) -> list[str]:
        with contextlib.suppress(ConnectionError):
            await wire.closed()
        async with await Wire.connect(other_url, mesh.admin_key) as again:
            begun = await again.call("subscribe", topics=["tenant"], since=wire.cursor or wire.initialized["cursor"])
            assert begun["recovered"] is True
            await writing
            await again.until_events(600 - len(wire.events))
            return titles(wire) + titles(again)

    for seen in await asyncio.gather(*(resume(wire) for wire in wires)):
        assert seen == written


@pytest.mark.timeout(240)
async def test_e04_who_does_not_read_is_disconnected_and_resumes_whole(mesh: Mesh, tenant: str) -> None:
    [gateway] = mesh.of("mcp-server")
    given_up = gateway.metric("devmesh_consumers_given_up_total")
    stuck = await Wire.connect(mesh.ws_url, tenant)
    cursor = stuck.initialized["cursor"]
    await stuck.call("subscribe", topics=["tenant"])
    stuck._reader.cancel()  # reads nothing more
    stuck.connection.transport.pause_reading()
    async with await Wire.connect(mesh.ws_url, tenant) as well, await Wire.connect(mesh.ws_url, tenant) as writer:
        await well.call("subscribe", topics=["tenant"])
        filler = "x" * 15_000
        for number in range(20):
            tasks = [{"title": f"{number}.{part}", "assign": "pull", "description": filler} for part in range(50)]
            await writer.call("task.create_many", tasks=tasks)
        await well.until_events(1000)  # unharmed
        await eventually(lambda: gateway.metric("devmesh_consumers_given_up_total") > given_up, "it is given up")
        stuck.connection.transport.resume_reading()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(20):
                while True:
                    await stuck.connection.recv()
        assert stuck.connection.close_code == 4008
        async with await Wire.connect(mesh.ws_url, tenant) as again:
            await again.call("subscribe", topics=["tenant"], since=cursor)
            await again.until_events(1000)
            assert titles(again) == titles(well)


async def test_e04_who_reads_is_not_sent_away_by_more_than_waits_for_a_consumer(mesh: Mesh, tenant: str) -> None:
    readers = [await Wire.connect(mesh.ws_url, tenant) for _ in range(3)]
    for reader in readers:
        await reader.call("subscribe", topics=["tenant"])
    async with await Wire.connect(mesh.ws_url, tenant) as writer:
        for number in range(3):
            specs = [{"title": f"{number}.{part}", "assign": "pull", "description": "x" * 4_500} for part in range(200)]
            calls = [writer.call("task.create_many", tasks=specs) for _ in range(4)]
            await asyncio.gather(*calls)
        for reader in readers:
            await reader.until_events(2_400)
            assert titles(reader) == titles(readers[0])
            assert len(set(titles(reader))) == 600
            assert reader.connection.close_code is None
            await reader.close()


async def test_e05_a_snapshot_and_the_events_after_its_cursor_miss_nothing(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as writer:
        stop = asyncio.Event()
        written: list[str] = []

        async def write() -> None:
            while not stop.is_set():
                created = await writer.call("task.create", title="t", assign="pull")
                written.append(created["task"]["id"])

        writing = asyncio.create_task(write())
        for _ in range(5):
            async with await Wire.connect(mesh.ws_url, tenant) as reader:
                seen = set()
                cursor = None
                while True:
                    page = await reader.call("task.list", limit=200, **({"cursor": cursor} if cursor else {}))
                    seen |= {task["id"] for task in page["tasks"]}
                    if (cursor := page.get("next_cursor")) is None:
                        break
                await reader.call("subscribe", topics=["tenant"], since=reader.initialized["cursor"])
                known = len(written)
                await eventually(
                    lambda: seen | {e["data"]["task"]["id"] for e in reader.events} >= set(written[:known]),  # noqa: B023
                    "snapshot and events hold everything that was written",
                )
        stop.set()
        await writing


@pytest.mark.timeout(240)
async def test_e06_a_thousand_subscribers_of_a_topic_each_get_each_event(mesh: Mesh, tenant: str) -> None:
    wires: list[Wire] = []
    for _ in range(10):
        wires += await asyncio.gather(*(Wire.connect(mesh.ws_url, tenant) for _ in range(100)))
    async with await Wire.connect(mesh.ws_url, tenant) as first:
        await first.call("subscribe", topics=["tenant"])
        task = (await first.call("task.create", title="watched", assign="pull"))["task"]
        await first.next_event(
            "task.created"
        )  # "from now on" may begin a moment before: with what the gateway has not read yet
    await asyncio.gather(*(wire.call("subscribe", topics=[f"task:{task['id']}"]) for wire in wires))
    await wires[0].call("task.cancel", task_id=task["id"])
    await wires[0].call("task.retry", task_id=task["id"])
    await asyncio.gather(*(wire.until_events(2) for wire in wires))
    for wire in wires:
        assert [event["type"] for event in wire.events] == ["task.cancelled", "task.retried"]
    await asyncio.gather(*(wire.close() for wire in wires))


async def test_e07_both_codecs_show_the_same_events(mesh: Mesh, tenant: str) -> None:
    wires = [await Wire.connect(mesh.ws_url, tenant, subprotocol=protocol) for protocol in (JSON, MSGPACK)]
    for wire in wires:
        await wire.call("subscribe", topics=["tenant"])
    agent = (
        await wires[1].call("agent.register", name="codec", capabilities=["c"], metadata={"a": [1, 2.5, None, "é"]})
    )["agent"]
    task = (await wires[0].call("task.create", title="ü", assign=agent["id"], parameters={"n": 1}))["task"]
    for wire in wires:
        await wire.next_event("task.assigned")
    assigned = await wires[1].call("task.complete", task_id=task["id"], attempt=1, result={"deep": [{"x": 1}]})
    assert assigned["task"]["status"] == "completed"
    for wire in wires:
        await wire.next_event("task.completed")
    assert wires[0].events == wires[1].events
    for wire in wires:
        await wire.close()


async def test_e09_a_lost_bell_costs_a_poll_interval_and_no_event(
    own_mesh: Callable[..., Mesh], fresh_database: str
) -> None:
    mesh = own_mesh("rest-api", "mcp-server", "mcp-server")
    first, second = (f"ws://127.0.0.1:{child.port}/ws" for child in mesh.of("mcp-server"))
    # Every session that listens ends, and none may listen again: no bell crosses processes any more.
    run_sql(fresh_database, "revoke execute on function pg_notify(text, text) from public")
    run_sql(
        fresh_database,
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query like 'LISTEN%'",
    )
    async with (
        await Wire.connect(first, mesh.admin_key) as writer,
        await Wire.connect(second, mesh.admin_key) as reader,
    ):
        await reader.call("subscribe", topics=["tenant"])
        await create_tasks(writer, 5)
        await reader.until_events(5, within_s=10)


async def test_e10_one_tenant_s_flood_does_not_delay_another_s_events(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as quiet, await Wire.connect(mesh.ws_url, tenant) as writer:
        await quiet.call("subscribe", topics=["tenant"])
        before_s = await median_delay_s(quiet, writer)
        stranger = mesh.new_tenant()
        reader = await Wire.connect(mesh.ws_url, stranger)
        await reader.call("subscribe", topics=["tenant"])
        reader._reader.cancel()  # the flood is delivered, but this process has no time to understand it
        reading = asyncio.create_task(read_away(reader))
        floods = [await Wire.connect(mesh.ws_url, stranger) for _ in range(2)]
        flooding = [asyncio.create_task(flood(wire)) for wire in floods]
        during_s = [await median_delay_s(quiet, writer)]
        while min(during_s) - before_s > 0.1 and len(during_s) < 3:  # others use this machine too
            during_s.append(await median_delay_s(quiet, writer))
        assert not any(task.done() for task in flooding)
        assert min(during_s) - before_s <= 0.1, during_s
        for task in (*flooding, reading):
            task.cancel()
        await asyncio.gather(*flooding, reading, return_exceptions=True)
        for wire in (reader, *floods):
            await wire.close()


async def flood(wire: Wire) -> None:
    """Without a pause, until it is cancelled."""
    while True:
        await wire.call("task.create_many", tasks=[{"title": "flood", "assign": "pull"}] * 200)


async def read_away(wire: Wire) -> None:
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            await wire.connection.recv()


async def median_delay_s(reader: Wire, writer: Wire) -> float:
    """From when an event is numbered, just before its commit, to when its subscriber has it."""
    delays_s = []
    for _ in range(25):
        await writer.call("task.create", title="seldom", assign="pull")
        event = await reader.next_event("task.created")
        delays_s.append(time.time() - datetime.datetime.fromisoformat(event["at"]).timestamp())
    return statistics.median(delays_s)


async def test_two_tenants_never_see_each_other_s_events(mesh: Mesh, tenant: str) -> None:
    stranger_key = mesh.new_tenant()
    async with (
        await Wire.connect(mesh.ws_url, tenant) as wire,
        await Wire.connect(mesh.ws_url, stranger_key) as stranger,
    ):
        task = (await wire.call("task.create", title="secret", assign="pull"))["task"]
        await stranger.call("subscribe", topics=["tenant", f"task:{task['id']}"])
        await wire.call("task.cancel", task_id=task["id"])
        await stranger.call("task.create", title="own", assign="pull")
        await stranger.next_event("task.created")
        assert [event["data"]["task"]["title"] for event in stranger.events] == ["own"]


async def test_topics_that_mean_nothing_are_refused(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        with pytest.raises(WireError) as refused:
            await wire.call("subscribe", topics=["inbox"])
        assert (refused.value.kind, refused.value.reason) == ("conflict", "session.no_agent")
        for topic in ("task:1", "nothing", f"cat:{uuid.uuid4()}", "queue:"):
            with pytest.raises(WireError) as refused:
                await wire.call("subscribe", topics=[topic])
            assert (refused.value.kind, refused.value.data["field"]) == ("invalid_params", "topics")
        limit = wire.initialized["limits"]["subscriptions_max"]
        await wire.call("subscribe", topics=[f"queue:{number}" for number in range(limit)])
        with pytest.raises(WireError) as refused:
            await wire.call("subscribe", topics=["queue:one-more"])
        assert refused.value.kind == "quota_exceeded"
        left = await wire.call("unsubscribe", topics=[f"queue:{number}" for number in range(1, limit)])
        assert left == {"topics": ["queue:0"]}
