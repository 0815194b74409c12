"""The client on a mesh that is well: nouns, values, many requests at once, and errors that say what is wrong."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest

from devmesh import operations
from devmesh.client import Client, MeshError
from devmesh.client import Mesh as Agents
from devmesh.client.codecs import CodecName
from devmesh.client.session import REPEATABLE, takes_key
from devmesh.client.tasks import Tasks
from devmesh.core.errors import Kind
from devmesh.edges.session import METHODS
from devmesh.operations.registry import REGISTRY
from tests.client.disturbing import Disturbed
from tests.harness import Mesh, eventually, free_port

UNKNOWN_KEY = "dm_" + "A" * 43


def test_the_client_knows_which_operations_must_not_be_done_twice() -> None:
    operations.load_all()
    for name, operation in REGISTRY.items():
        is_repeatable = name.rpartition(".")[2] in REPEATABLE
        assert takes_key(name) == (operation.mutates and not is_repeatable), name
    assert not any(takes_key(name) for name in (*METHODS, "initialize"))


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_nouns_take_and_give_python_values(mesh: Mesh, tenant: str, codec: CodecName) -> None:
    parameters = {"text": "größer", "numbers": [1, 2.5, None], "deep": {"yes": True}}
    async with Client(mesh.ws_url, tenant, codec=codec) as client:
        agent = await client.agents.register("reader", capabilities=["read"], concurrency=2, metadata={"version": 1})
        assert client.agent_id == agent.id
        assert (agent.metadata, agent.status) == ({"version": 1}, "available")
        created = await client.tasks.create(
            "read", parameters=parameters, required_capabilities=["read"], assign="pull", priority=5, tags=["a"]
        )
        [task] = await client.tasks.claim(wait_s=5)
        assert (task.id, task.parameters, task.assigned_to) == (created.id, parameters, agent.id)
        await client.tasks.accept(task.id, attempt=task.attempt)
        moved = await client.tasks.progress(task.id, task.attempt, 0.25, "begun")
        assert (moved.progress, moved.progress_message, moved.status) == (0.25, "begun", "running")
        await client.tasks.heartbeat(task.id, task.attempt)
        await client.tasks.complete(task.id, task.attempt, {"words": 3})
        ended = await client.tasks.wait(task.id, timeout_s=5)
        assert (ended.result, ended.is_finished, ended.finished_at is not None) == ({"words": 3}, True, True)
        history = await client.tasks.history(task.id)
        assert [attempt.outcome for attempt in history.attempts] == ["completed"]
        assert [event.type for event in history.events][-1] == "task.completed"
        assert (await client.tasks.explain(task.id)).reason == "finished"
        assert (await client.tasks.stats()).counts["completed"] == 1
        assert [found.id for found in await client.agents.discover(["read"])] == [agent.id]
        assert (await client.agents.health(agent.id)).success_rate == 1.0
        assert (await client.call("task.get", task_id=task.id))["task"]["result"] == {"words": 3}


async def test_pages_follow_one_another(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as client:
        made = await client.tasks.create_many([{"title": f"task {number}"} for number in range(7)])
        found = [task.id async for task in client.tasks.each(limit=3)]
        assert found == [task.id for task in reversed(made)]
        assert [task.title for task in (await client.tasks.list(limit=2)).tasks] == ["task 6", "task 5"]


async def test_a_distributed_task_and_what_cancelling_it_reaches(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as client:
        made = await client.tasks.create_distributed(
            "all", [{"title": "one"}, {"title": "two", "priority": 5}], completion="any"
        )
        assert (made.task.distribution or {})["completion"] == "any"
        await client.tasks.cancel(made.task.id, reason="enough")
        children = [await client.tasks.get(child.id) for child in made.subtasks]
        assert [child.status for child in children] == ["cancelled", "cancelled"]


async def test_many_more_requests_than_the_server_takes_at_once(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as client:
        made = await asyncio.gather(*(client.tasks.create(f"task {number}") for number in range(1_000)))
        assert len({task.id for task in made}) == 1_000


async def test_a_wait_ends_in_time_with_an_error_that_cannot_be_overlooked(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as client:
        task = await client.tasks.create("nobody does this")
        began = time.monotonic()
        with pytest.raises(MeshError, match=r"has not ended within 0\.3 s") as raised:
            await client.tasks.wait(task.id, timeout_s=0.3)
        assert raised.value.kind == Kind.TIMEOUT
        assert 0.3 <= time.monotonic() - began < 5


async def test_an_own_idempotency_key_is_kept(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as client:
        key = uuid.uuid4().hex
        first = await client.tasks.create("once", idempotency_key=key)
        assert (await client.tasks.create("once", idempotency_key=key)).id == first.id
        with pytest.raises(MeshError) as raised:
            await client.tasks.create("another", idempotency_key=key)
        assert raised.value.kind == Kind.IDEMPOTENCY_MISMATCH


async def test_errors_carry_what_the_server_says(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as client:
        with pytest.raises(MeshError) as raised:
            await client.call("task.create", title="x", priority=9)
        assert (raised.value.kind, raised.value.field, raised.value.code) == ("invalid_params", "priority", -32602)
        with pytest.raises(MeshError) as raised:
            await client.call("task.make", title="x")
        assert raised.value.kind == "unknown_method"
        task = await client.tasks.create("x")
        await client.tasks.cancel(task.id)
        with pytest.raises(MeshError) as raised:
            await client.tasks.cancel(task.id)
        assert (raised.value.kind, raised.value.reason, raised.value.retryable) == ("conflict", "task.state", False)


async def test_what_no_message_can_carry_harms_nobody_else(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as client:
        waiting = asyncio.create_task(client.call("task.claim", wait_ms=60_000, agent_id=await _agent(client)))
        with pytest.raises(MeshError, match=r"task\.create cannot be encoded") as raised:
            await client.tasks.create("x", parameters={"it": object()})
        assert raised.value.kind == Kind.INVALID_PARAMS
        with pytest.raises(MeshError, match="at the most") as raised:
            await client.tasks.create("x", parameters={"it": "x" * 2_000_000})
        assert raised.value.kind == Kind.TOO_LARGE
        task = await client.tasks.create("x", assign="pull")
        assert (await waiting)["tasks"][0]["id"] == str(task.id)


async def _agent(client: Client) -> uuid.UUID:
    return (await client.agents.register("claimer")).id


async def test_a_client_whose_agent_has_left_becomes_the_next_one_that_it_registers(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as client, Client(mesh.ws_url, tenant) as other:
        first = await client.agents.register("phoenix")
        await other.agents.register("another's")
        await client.agents.deregister()
        assert client.agent_id is None
        agent = await client.agents.register("phoenix")
        assert client.agent_id == agent.id != first.id
        assert (await other.agents.get(agent.id)).sessions == 1
        await client.agents.deregister(other.agent_id)
        assert client.agent_id == agent.id
        task = await client.tasks.create("anything", assign="pull")
        [claimed] = await client.tasks.claim(wait_s=5)
        assert (claimed.id, claimed.assigned_to) == (task.id, agent.id)


async def test_a_client_is_the_first_of_the_agents_that_it_registers_at_once(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as client:
        agents = await asyncio.gather(*(client.agents.register(f"number {number}") for number in range(5)))
        assert client.agent_id == (await client.agents.heartbeat()).id
        assert [agent.id for agent in agents if (await client.agents.get(agent.id)).sessions] == [client.agent_id]


@pytest.mark.parametrize(("key", "why"), [(UNKNOWN_KEY, "not known"), ("nonsense", "neither a key")])
async def test_a_wrong_key_is_an_error_at_once(mesh: Mesh, key: str, why: str) -> None:
    began = time.monotonic()
    with pytest.raises(MeshError, match=why) as raised:
        async with Client(mesh.ws_url, key):
            pass
    assert raised.value.kind == Kind.UNAUTHENTICATED
    assert time.monotonic() - began < 5


async def test_an_agent_that_is_none_is_an_error_at_once(mesh: Mesh, tenant: str) -> None:
    with pytest.raises(MeshError) as raised:
        async with Client(mesh.ws_url, tenant, agent="nobody"):
            pass
    assert raised.value.kind == Kind.NOT_FOUND


async def test_an_address_where_nobody_is(mesh: Mesh, tenant: str) -> None:
    url = f"ws://127.0.0.1:{free_port()}/ws"
    with pytest.raises(MeshError, match="cannot be reached") as raised:
        async with Client(url, tenant, connect_timeout_s=0.5):
            pass
    assert url in raised.value.message
    assert raised.value.kind == Kind.UNAVAILABLE


@pytest.mark.parametrize("url", ["ws://127.0.0.1:99999/ws", "ws://127.0.0.1:port/ws", "ws://[::1/ws", "ws://host/ws#x"])
async def test_an_address_that_cannot_be_is_an_error_at_once(url: str) -> None:
    with pytest.raises(MeshError, match="is no address") as raised:
        await asyncio.wait_for(Client(url, UNKNOWN_KEY).connect(), 5)
    assert raised.value.kind == Kind.INVALID_PARAMS


async def test_an_address_where_something_else_is(mesh: Mesh, tenant: str) -> None:
    """Nobody waits for what will not come: neither a client, nor a worker, which waits for a mesh that is not there yet."""
    for url in (mesh.rest_url.replace("http", "ws") + "/ws", mesh.ws_url.removesuffix("ws")):
        agents = Agents(url, tenant)
        agents.job("x")(lambda _: None)
        for connect in (Client(url, tenant, connect_timeout_s=None).connect, agents.serve):
            with pytest.raises(MeshError, match=r"no WebSocket at .* ends in /ws") as raised:
                await asyncio.wait_for(connect(), 5)
            assert raised.value.kind == Kind.NOT_FOUND


async def test_a_key_that_is_revoked_ends_calls_and_events_and_is_not_tried_for_ever(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as admin:
        made = await admin.call("key.create", kind="user")
        async with Client(mesh.ws_url, made["secret"]) as client, client.events("tenant") as events:
            await admin.call("key.revoke", key_id=made["key"]["id"])
            with pytest.raises(MeshError) as raised:
                await asyncio.wait_for(events.next(), 10)
            assert raised.value.kind == Kind.UNAUTHENTICATED
            assert (await asyncio.wait_for(client.ended(), 10)).kind == Kind.UNAUTHENTICATED
            with pytest.raises(MeshError) as raised:
                await client.tasks.list()
            assert raised.value.kind == Kind.UNAUTHENTICATED


async def test_a_closed_client_answers_those_who_still_wait(mesh: Mesh, tenant: str) -> None:
    client = Client(mesh.ws_url, tenant)
    await client.connect()
    task = await client.tasks.create("nobody does this")
    waiting = asyncio.create_task(client.tasks.wait(task.id))
    await client.tasks.get(task.id)
    await client.close()
    with pytest.raises(MeshError) as raised:
        await waiting
    assert raised.value.kind == Kind.CANCELLED


async def test_waiting_for_very_many_tasks_leaves_room_for_other_requests(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant, timeout_s=8) as client:
        made = await client.tasks.create_distributed("all", [{"title": f"part {number}"} for number in range(400)])
        waiting = asyncio.gather(*(client.tasks.wait(part.id) for part in made.subtasks))
        assert (await client.tasks.get(made.task.id)).status == "running"
        await client.tasks.cancel(made.task.id)
        assert {task.status for task in await asyncio.wait_for(waiting, 30)} == {"cancelled"}


async def test_a_task_is_waited_for_through_an_outage(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as client:
        disturbed = Disturbed(client)
        disturbed.refuse(
            "task.wait", MeshError(Kind.TIMEOUT, "no answer"), MeshError(Kind.UNAVAILABLE, "the database is away")
        )
        task = await client.tasks.create("patience")
        waiting = asyncio.create_task(Tasks(disturbed).wait(task.id, timeout_s=20))
        await eventually(lambda: disturbed.asked["task.wait"] >= 3, "it goes on waiting")
        await client.tasks.cancel(task.id)
        assert (await waiting).status == "cancelled"
        disturbed.refuse("task.wait", *[MeshError(Kind.UNAVAILABLE, "the database is away")] * 100)
        with pytest.raises(MeshError, match=r"has not ended within 0\.5 s"):
            await Tasks(disturbed).wait(task.id, timeout_s=0.5)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_a_number_that_json_has_not_is_refused(mesh: Mesh, tenant: str, codec: CodecName) -> None:
    async with Client(mesh.ws_url, tenant, codec=codec) as client:
        for number in ("nan", "inf", "-inf"):
            payload = {"none": None, "large": 1 << 63, "a": [float(number)]}
            with pytest.raises(MeshError) as refused:
                await client.call("job.enqueue", type="t", payload=payload)
            assert refused.value.kind == Kind.INVALID_PARAMS
            assert refused.value.message == f"the parameters hold {number}, which is no number in JSON"
        well = {"none": None, "floats": [1.5, 1.7e308], "says": "null \u02ff\u02bf"}
        assert (await client.call("job.enqueue", type="t", payload=well))["job"]["payload"] == well
