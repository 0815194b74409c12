"""Connections that end under load: what was asked is done once, what happened is told once, and nobody has to care."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import signal
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from websockets import Request, Response, ServerConnection, Subprotocol, serve

from devmesh.client import Client, Event, EventsMissed, EventStream, MeshError, TaskContext
from devmesh.client import Mesh as Agents
from devmesh.client import events as client_events
from devmesh.client.session import BACKOFF_BASE_S, BACKOFF_MAX_S, Backoff
from devmesh.core.errors import Kind
from devmesh.core.events import Cursor, decode_cursor
from tests.client.agents import at_work
from tests.harness import Child, Mesh, eventually, free_port

OwnMesh = Callable[..., Mesh]


def test_pauses_double_up_to_a_bound_and_are_jittered() -> None:
    backoff = Backoff()
    pauses = [backoff.next_s() for _ in range(2_000)]
    for failures, pause_s in enumerate(pauses[:20]):
        bound_s = min(BACKOFF_BASE_S * 2**failures, BACKOFF_MAX_S)
        assert bound_s / 2 <= pause_s <= bound_s
    assert len(set(pauses)) == len(pauses)
    backoff.reset()
    assert backoff.next_s() <= BACKOFF_BASE_S


async def restart(gateway: Child) -> None:
    """kill -9, and the same address again."""
    await asyncio.to_thread(gateway.kill)
    gateway.start()
    await asyncio.to_thread(gateway.wait_ready)


async def titles_created(client: Client) -> list[str]:
    return [task.title async for task in client.tasks.each(limit=200)]


def has_come_to(done: list[str], count: int) -> bool:
    return len(done) >= count


async def take(events: EventStream, count: int) -> list[Event]:
    async with asyncio.timeout(30):
        return [await events.next() for _ in range(count)]


async def until(events: EventStream, event_type: str) -> list[Event]:
    """What comes up to and with the first event of a type."""
    found: list[Event] = []
    async with asyncio.timeout(30):
        while not found or found[-1].type != event_type:
            found.append(await events.next())
    return found


async def test_a_gateway_killed_under_load_costs_no_call_and_doubles_none(own_mesh: OwnMesh) -> None:
    mesh = own_mesh("rest-api", "mcp-server")
    [gateway] = mesh.of("mcp-server")
    titles = [f"task {number}" for number in range(1_500)]
    kills = 0

    async with Client(mesh.ws_url, mesh.admin_key) as client, client.events("tenant") as events:
        queue = iter(titles)
        done: list[str] = []

        async def create() -> None:
            for title in queue:
                task = await client.tasks.create(title)
                done.append(task.title)

        creators = [asyncio.create_task(create()) for _ in range(64)]
        for so_far in (300, 900):
            await eventually(functools.partial(has_come_to, done, so_far), f"{so_far} tasks are created", 30)
            assert len(done) < len(titles), "the gateway must be killed while calls are in flight"
            await restart(gateway)
            kills += 1
        await asyncio.gather(*creators)

        assert kills == 2
        assert sorted(done) == sorted(titles)
        assert sorted(await titles_created(client)) == sorted(titles)
        told = [event.data["task"]["title"] for event in await take(events, len(titles))]
        assert sorted(told) == sorted(titles)
        last = await client.tasks.create("the last")
        [event] = await take(events, 1)
        assert event.topic == f"task:{last.id}"
        assert event.cursor == events.cursor


async def test_events_come_in_the_order_of_the_log_across_restarts(own_mesh: OwnMesh) -> None:
    mesh = own_mesh("rest-api", "mcp-server", "mcp-server")
    first, second = mesh.of("mcp-server")
    async with (
        Client(f"ws://127.0.0.1:{second.port}/ws", mesh.admin_key) as writer,
        Client(mesh.ws_url, mesh.admin_key) as reader,
        reader.events("tenant") as events,
    ):
        await writer.tasks.create("before")
        await asyncio.to_thread(first.kill)
        for number in range(20):
            await writer.tasks.create(f"meanwhile {number}")
        first.start()
        await writer.tasks.create("after")
        found = await take(events, 22)
        assert [event.data["task"]["title"] for event in found] == [
            "before", *(f"meanwhile {number}" for number in range(20)), "after",
        ]  # fmt: skip
        places = [decode_cursor(event.cursor).sequence for event in found]
        assert places == list(range(places[0], places[0] + 22))


async def test_a_task_in_hand_outlives_its_gateway(own_mesh: OwnMesh) -> None:
    mesh = own_mesh()
    [gateway] = mesh.of("mcp-server")
    agents = Agents(mesh.ws_url, mesh.admin_key)
    begun, may_end, runs = asyncio.Event(), asyncio.Event(), []

    @agents.agent("patient")
    async def work(task: TaskContext) -> str:
        runs.append(task.attempt)
        begun.set()
        await may_end.wait()
        await task.progress(0.9, "nearly")
        return "done"

    async with at_work(agents), Client(mesh.ws_url, mesh.admin_key) as client:
        task = await client.tasks.create("long", lease_s=10)
        await asyncio.wait_for(begun.wait(), 10)
        await asyncio.to_thread(gateway.kill)
        may_end.set()  # it wants to report while nobody is there to hear it
        missed = asyncio.create_task(client.tasks.create("created while the gateway is away"))
        gateway.start()
        ended = await client.tasks.wait(task.id, timeout_s=30)
        assert (ended.status, ended.result, ended.attempt, runs[0]) == ("completed", "done", 1, 1)
        await client.tasks.wait((await missed).id, timeout_s=30)
        assert runs == [1, 1]


async def test_a_client_stands_for_the_agent_it_registered_after_a_reconnect_too(own_mesh: OwnMesh) -> None:
    mesh = own_mesh("rest-api", "mcp-server")
    [gateway] = mesh.of("mcp-server")
    async with Client(mesh.ws_url, mesh.admin_key) as client:
        agent = await client.agents.register("reader")
        claiming = asyncio.create_task(client.tasks.claim(wait_s=30))
        await restart(gateway)
        task = await client.tasks.create("read", assign="pull")
        [claimed] = await claiming
        assert (claimed.id, claimed.assigned_to, claimed.attempt) == (task.id, agent.id, 1)
        assert claimed.created_by == agent.id
        await client.agents.deregister()
        await restart(gateway)
        assert (await client.tasks.create("orphan")).created_by is None
        assert client.agent_id is None


async def test_a_call_ends_in_time_while_nobody_is_there_and_the_client_recovers(own_mesh: OwnMesh) -> None:
    mesh = own_mesh("rest-api", "mcp-server")
    [gateway] = mesh.of("mcp-server")
    async with Client(mesh.ws_url, mesh.admin_key, timeout_s=1.0) as client:
        await asyncio.to_thread(gateway.kill)
        with pytest.raises(MeshError, match=r"no answer to task\.list within 1 s") as raised:
            await client.tasks.list()
        assert raised.value.kind == Kind.TIMEOUT
        gateway.start()
        await asyncio.to_thread(gateway.wait_ready)
        assert (await client.request("task.list", {}, dict[str, Any], timeout_s=20))["tasks"] == []


async def test_a_server_that_goes_away_in_good_order_is_not_noticed(own_mesh: OwnMesh) -> None:
    mesh = own_mesh("rest-api", "mcp-server")
    [gateway] = mesh.of("mcp-server")
    async with Client(mesh.ws_url, mesh.admin_key) as client:
        creating = [asyncio.create_task(client.tasks.create(f"task {number}")) for number in range(500)]
        await asyncio.wait(creating, return_when=asyncio.FIRST_COMPLETED)
        assert sum(task.done() for task in creating) < 500, "the server must go away while calls are in flight"
        gateway.signal(signal.SIGTERM)
        assert await asyncio.to_thread(gateway.wait) == 0
        gateway.start()
        await asyncio.gather(*creating)
        assert len(await titles_created(client)) == 500


def metrics_of(mesh: Mesh) -> str:
    [gateway] = mesh.of("mcp-server")
    return httpx.get(f"http://127.0.0.1:{gateway.port}/metrics", trust_env=False).text


class Fronted:
    """What a proxy shows of a server: itself, or for as long as `status` is set that there is nothing."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.refusals = 0
        self._connections: set[ServerConnection] = set()

    def look(self, connection: ServerConnection, _: Request) -> Response | None:
        if self.status is None:
            return None
        self.refusals += 1
        return connection.respond(self.status, "no such service\n")

    async def serve(self, connection: ServerConnection) -> None:
        self._connections.add(connection)
        async for message in connection:
            asked = json.loads(message)
            result: dict[str, Any] = {"cursor": "x"} if asked["method"] == "initialize" else {"tasks": []}
            await connection.send(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}))

    async def cut(self) -> None:
        for connection in self._connections:
            await connection.close(1012)


@pytest.mark.parametrize(("status", "is_final"), [(403, False), (404, False), (405, False), (503, False), (401, True)])
async def test_a_proxy_without_its_server_is_waited_for_by_who_was_connected(status: int, *, is_final: bool) -> None:
    front = Fronted()
    port = free_port()
    async with serve(
        front.serve, "127.0.0.1", port, process_request=front.look, subprotocols=[Subprotocol("devmesh.v1.json")]
    ):
        async with Client(f"ws://127.0.0.1:{port}/ws", "dm_x") as client:
            front.status = status
            await front.cut()
            await eventually(lambda: front.refusals >= (1 if is_final else 2), "it tries to connect again")
            if is_final:
                assert f"HTTP {status}" in (await asyncio.wait_for(client.ended(), 10)).message
                return
            front.status = None
            assert (await client.tasks.list()).tasks == []
        if status != 503:
            front.status = status
            with pytest.raises(MeshError, match=f"HTTP {status}") as raised:
                await Client(f"ws://127.0.0.1:{port}/ws", "dm_x").connect()
            assert raised.value.kind == Kind.NOT_FOUND


@pytest.mark.soak
async def test_a_reader_too_slow_is_sent_away_and_resumes_whole(
    own_mesh: OwnMesh, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = own_mesh("rest-api", "mcp-server", DEVMESH_OUTBOX_BYTES_MAX="20000")
    caplog.set_level(logging.INFO, "devmesh.client")
    monkeypatch.setattr(client_events, "WAITING_EVENTS_MAX", 50)
    total, at_once = 1_500, 50  # much more than fits into the buffers of the sockets in between
    async with Client(mesh.ws_url, mesh.admin_key) as client, client.events("tenant") as events:
        for begin in range(0, total, at_once):
            specs = [{"title": str(begin + place), "description": "x" * 15_000} for place in range(at_once)]
            await client.call("task.create_many", tasks=specs)
        await eventually(lambda: "devmesh_consumers_given_up_total 1.0" in metrics_of(mesh), "it is given up", 20.0)
        found = await take(events, total)
        assert [event.data["task"]["title"] for event in found] == [str(number) for number in range(total)]
    assert "(4008 resume)" in caplog.text


async def test_lost_events_are_said_and_reading_goes_on(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as client:
        await client.tasks.create("before")
        assert client.cursor is not None
        place = decode_cursor(client.cursor)
        stream = client.events("tenant", since=Cursor(place.epoch + 1, 1).encode())  # of a history that is gone
        with pytest.raises(EventsMissed) as raised:
            await anext(aiter(stream))
        assert stream.cursor == raised.value.cursor
        task = await client.tasks.create("after")
        async for event in stream:
            assert event.topic == f"task:{task.id}"
            break


async def test_a_stream_begun_again_goes_on_after_the_last_event_that_was_read(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as client:
        begin = client.cursor
        titles = [f"task {number}" for number in range(10)]
        for title in titles:
            await client.tasks.create(title)
        stream = client.events("tenant", since=begin)
        read: list[str] = []
        while len(read) < len(titles):
            async for event in stream:  # a connection of its own each time
                read.append(event.data["task"]["title"])
                break
        assert read == titles


async def test_the_inbox_and_a_task_each_tell_their_own(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as client:
        with pytest.raises(MeshError, match="stands for none"):
            client.events("inbox")
        with pytest.raises(MeshError, match="name at least one topic"):
            client.events()
        with pytest.raises(MeshError, match="not a topic"):
            await anext(aiter(client.events("nonsense")))
        await client.agents.register("reader")
        task = await client.tasks.create("mine", assign="pull")
        async with (
            Client(mesh.ws_url, tenant) as other,
            client.events("inbox") as inbox,
            client.events(f"task:{task.id}") as one,
        ):
            await other.tasks.create("nobody's", assign="pull")
            await client.tasks.claim()
            for stream in (inbox, one):
                assert {event.topic for event in await until(stream, "task.assigned")} <= {
                    f"task:{task.id}", f"agent:{client.agent_id}",
                }  # fmt: skip


async def test_a_key_that_is_bound_to_an_agent_hears_what_it_asks_for_and_nothing_else(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as admin:
        agent = await admin.agents.register("bound")
        made = await admin.call("key.create", kind="agent", agent=agent.id)
        agents = Agents(mesh.ws_url, made["secret"])

        @agents.agent("bound")
        async def work(task: TaskContext) -> str:
            return str(task.client.agent_id)

        async with at_work(agents), Client(mesh.ws_url, made["secret"]) as client:
            watched = await client.tasks.create("watched", assign="pull")
            async with client.events(f"task:{watched.id}") as events, client.events("inbox") as inbox:
                done = await client.tasks.create("done by the agent")
                assert (await client.tasks.wait(done.id, timeout_s=10)).result == str(agent.id)
                await client.tasks.cancel(watched.id)
                heard = await until(events, "task.cancelled")
                assert {event.topic for event in heard} == {f"task:{watched.id}"}
                assert f"task:{done.id}" in {event.topic for event in await until(inbox, "task.completed")}
