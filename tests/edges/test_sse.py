"""Events over plain HTTP: the same as on the other wires, resumed by their ids, and never cut off without a word."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn

from devmesh.core.errors import unavailable
from devmesh.edges import sse
from devmesh.edges.http_guard import guarded
from tests.edges.rest import Rest, connected, new_key, new_task, problem_of
from tests.harness import Mesh, eventually
from tests.wire import Wire

EVENTS = "/api/v1/events"
GIVEN_UP = "devmesh_consumers_given_up_total"


class Message(NamedTuple):
    id: str | None
    event: str
    data: dict[str, Any]


class Stream:
    """An open stream of server-sent events, read as the standard says."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()

    async def next(self, within_s: float = 10.0) -> Message | None:
        """The next message, or None when the stream has ended."""
        async with asyncio.timeout(within_s):
            fields: dict[str, str] = {}
            async for line in self._lines:
                name, _, value = line.partition(":")
                if line and name:
                    fields[name] = value.removeprefix(" ")
                elif not line and "data" in fields:
                    return Message(fields.get("id"), fields["event"], json.loads(fields["data"]))
            return None

    async def events(self, count: int) -> list[Message]:
        found = [await self.next() for _ in range(count)]
        assert all(message is not None and message.event.startswith("task.") for message in found), found
        return [message for message in found if message is not None]


@asynccontextmanager
async def streaming(rest: Rest, key: str, query: str = "", **headers: str) -> AsyncIterator[Stream]:
    credential = {"Authorization": f"Bearer {key}"}
    async with rest.http.stream("GET", f"{EVENTS}{query}", headers=credential | headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"] == "text/event-stream"
        yield Stream(answer)


async def begun(stream: Stream) -> Message:
    message = await stream.next()
    assert message is not None
    assert message.event == "subscribed"
    assert message.id == message.data["cursor"]
    return message


async def test_events_come_as_they_happen(rest: Rest, tenant: str) -> None:
    async with streaming(rest, tenant) as stream:
        assert (await begun(stream)).data["recovered"] is True
        task = await new_task(rest, tenant, parameters={"text": "two\nlines"})
        [created] = await stream.events(1)
        assert (created.event, created.data["type"]) == ("task.created", "task.created")
        assert created.data["topic"] == f"task:{task['id']}"
        assert created.data["data"]["task"] == task
        await rest.call("POST", f"/tasks/{task['id']}/cancel", tenant)
        [cancelled] = await stream.events(1)
        assert cancelled.data["data"]["task"]["status"] == "cancelled"


async def test_json_with_line_breaks_stays_one_message(rest: Rest, tenant: str) -> None:
    body = b'{"title":"x","assign":"pull","parameters":{\r\n "a":\n1,\r"b": "c"}}'
    async with streaming(rest, tenant) as stream:
        await begun(stream)
        await rest.call("POST", "/tasks", tenant, content=body, headers={"Content-Type": "application/json"})
        [created] = await stream.events(1)
        assert created.data["data"]["task"]["parameters"] == {"a": 1, "b": "c"}


@pytest.mark.parametrize("how", ["Last-Event-ID", "since"])
async def test_a_stream_goes_on_where_the_last_one_was(rest: Rest, tenant: str, how: str) -> None:
    async with streaming(rest, tenant) as stream:
        await begun(stream)
        made = [(await new_task(rest, tenant))["id"]]
        [last] = await stream.events(1)
    made += [(await new_task(rest, tenant))["id"] for _ in range(5)]
    query, headers = ("", {how: last.id}) if how == "Last-Event-ID" else (f"?since={last.id}", {})
    async with streaming(rest, tenant, query, **{name: value or "" for name, value in headers.items()}) as stream:
        first = await begun(stream)
        assert (first.data["cursor"], first.data["recovered"]) == (last.id, True)
        made.append((await new_task(rest, tenant))["id"])
        seen = await stream.events(6)
    assert [message.data["data"]["task"]["id"] for message in seen] == made[1:]
    assert [message.id for message in seen] == sorted({message.id or "" for message in seen})


async def test_the_id_of_the_last_message_counts_before_since(rest: Rest, tenant: str) -> None:
    await new_task(rest, tenant)
    page = await rest.call("GET", "/events/list", tenant)
    beginning, end = "0" * 7 + "1" + "0" * 16, page["cursor"]
    async with streaming(rest, tenant, f"?since={beginning}", **{"Last-Event-ID": end}) as stream:
        assert (await begun(stream)).data["cursor"] == end


async def test_a_stream_holds_what_its_topics_hold(rest: Rest, tenant: str) -> None:
    one, other = await new_task(rest, tenant), await new_task(rest, tenant)
    async with streaming(rest, tenant, f"?topics=task:{one['id']}&topics=queue:a,queue:b") as stream:
        await begun(stream)
        for task in (other, one):
            await rest.call("POST", f"/tasks/{task['id']}/cancel", tenant)
        [event] = await stream.events(1)
        assert event.data["topic"] == f"task:{one['id']}"


async def test_e02_a_cursor_of_another_history_is_said_to_be(rest: Rest, tenant: str) -> None:
    foreign = "00000063" + "0" * 15 + "1"
    async with streaming(rest, tenant, f"?since={foreign}") as stream:
        assert (await begun(stream)).data["recovered"] is False
    assert (await rest.call("GET", f"/events/list?since={foreign}", tenant))["recovered"] is False


@pytest.mark.parametrize(
    ("query", "field"),
    [("?topics=weather", "topics"), ("?topics=", "topics"), ("?since=x", "cursor"), ("?limit=1", "limit")],
)
async def test_a_wrong_wish_is_answered_before_the_stream(rest: Rest, tenant: str, query: str, field: str) -> None:
    problem = await rest.problem("GET", f"/events{query}", tenant)
    assert (problem["status"], problem["kind"], problem["field"]) == (400, "invalid_params", field)


async def test_a_stream_needs_a_key_with_the_scope(rest: Rest, tenant: str) -> None:
    writer = (await new_key(rest, tenant, scopes=["write"]))["secret"]
    assert (await rest.problem("GET", "/events", writer))["status"] == 403
    assert (await rest.problem("GET", "/events", None))["status"] == 401
    head = await rest.ask("HEAD", "/events", tenant)
    assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream")


async def test_another_tenant_s_events_do_not_come(rest: Rest, mesh: Mesh, tenant: str) -> None:
    stranger = await asyncio.to_thread(mesh.new_tenant)
    async with streaming(rest, tenant) as stream:
        await begun(stream)
        await new_task(rest, stranger)
        task = await new_task(rest, tenant)
        [event] = await stream.events(1)
        assert event.data["topic"] == f"task:{task['id']}"
    assert len((await rest.call("GET", "/events/list", stranger))["events"]) == 1


async def test_e07_every_wire_shows_the_same_events(rest: Rest, mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire, streaming(rest, tenant) as stream:
        await wire.call("subscribe", topics=["tenant"])
        await begun(stream)
        for _ in range(3):
            task = await new_task(rest, tenant, parameters={"a": [1, "ä", None]})
            await rest.call("POST", f"/tasks/{task['id']}/cancel", tenant)
        streamed = [message.data for message in await stream.events(6)]
        listed = await rest.call("GET", "/events/list", tenant)
        assert streamed == listed["events"] == await wire.until_events(6)
        assert listed["cursor"] == streamed[-1]["cursor"]


async def test_events_are_listed_in_pages(rest: Rest, tenant: str) -> None:
    made = [(await new_task(rest, tenant))["id"] for _ in range(5)]
    seen, since = [], ""
    for expected in (2, 2, 1, 0):
        page = await rest.call("GET", f"/events/list?limit=2{since}", tenant)
        assert len(page["events"]) == expected
        seen += [event["data"]["task"]["id"] for event in page["events"]]
        since = f"&since={page['cursor']}"
    assert seen == made
    only = await rest.call("GET", f"/events/list?topics=task:{made[3]}", tenant)
    assert [event["topic"] for event in only["events"]] == [f"task:{made[3]}"]


async def test_what_is_large_is_listed_and_read_a_few_at_a_time(rest: Rest, mesh: Mesh, tenant: str) -> None:
    """Be it stored small or not: a page holds 1 MiB at most."""
    begin = (await rest.call("GET", "/events/list", tenant))["cursor"]
    parent = (await new_task(rest, tenant))["id"]
    texts = ["x" * 400_000, secrets.token_urlsafe(300_000)] * 2
    made = [(await new_task(rest, tenant, parent_id=parent, parameters={"large": text}))["id"] for text in texts]
    seen, since = [], begin
    for expected in (3, 2, 0):
        page = await rest.call("GET", f"/events/list?since={since}", tenant)
        assert len(page["events"]) == expected
        seen += [event["data"]["task"]["id"] for event in page["events"]]
        since = page["cursor"]
    assert seen == [parent, *made]
    all_of_them = [*reversed(made), parent]
    for query, newest_first in (
        ("limit=9", all_of_them),
        ("status=pending", all_of_them),
        (f"parent_id={parent}", made[::-1]),
    ):
        first = await rest.call("GET", f"/tasks?{query}", tenant)
        last = await rest.call("GET", f"/tasks?{query}&cursor={first['next_cursor']}", tenant)
        assert (len(first["tasks"]), last["next_cursor"]) == (2, None)
        assert [task["id"] for task in first["tasks"] + last["tasks"]] == newest_first
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        await wire.call("subscribe", topics=["tenant"], since=begin)
        assert [event["data"]["task"]["id"] for event in await wire.until_events(5)] == seen


async def test_w08_a_revoked_key_ends_its_stream(rest: Rest, tenant: str) -> None:
    key = await new_key(rest, tenant)
    async with streaming(rest, key["secret"]) as stream, streaming(rest, tenant) as other:
        await begun(stream)
        await begun(other)
        await rest.call("POST", f"/keys/{key['key']['id']}/revoke", tenant)
        last = await stream.next(within_s=5.0)
        assert last is not None
        assert (last.event, last.data["kind"], last.id) == ("error", "unauthenticated", None)
        assert await stream.next() is None
        await new_task(rest, tenant)
        assert len(await other.events(1)) == 1


async def test_e04_who_does_not_read_is_told_to_resume_and_misses_nothing(own_mesh: Callable[..., Mesh]) -> None:
    mesh = await asyncio.to_thread(own_mesh, "rest-api", DEVMESH_OUTBOX_BYTES_MAX="65536")
    [server], key = mesh.of("rest-api"), mesh.admin_key
    filling = "x" * 100_000
    async with connected(mesh.rest_url) as rest, connected(mesh.rest_url) as slow:
        async with streaming(slow, key) as stream:
            first = await begun(stream)
            made = []
            many = [{"title": "a task", "assign": "pull", "parameters": {"filling": filling}}] * 9
            for _ in range(17):
                result = await rest.call("POST", "/tasks/batch", key, json={"tasks": many})
                made += [task["id"] for task in result["tasks"]]
            await eventually(lambda: asyncio.to_thread(server.metric, GIVEN_UP), "it is given up")
            seen, place = [], first.id
            while (message := await stream.next()) is not None and message.event != "error":
                seen.append(message.data["data"]["task"]["id"])
                place = message.id
            assert message is not None
            assert (message.data["kind"], message.data["retryable"]) == ("unavailable", True)
            assert await stream.next() is None
        assert len(seen) < len(made)
        async with streaming(slow, key, **{"Last-Event-ID": place or ""}) as stream:
            assert (await begun(stream)).data["recovered"] is True
            seen += [message.data["data"]["task"]["id"] for message in await stream.events(len(made) - len(seen))]
    assert seen == made


async def test_a_server_that_goes_says_so(own_mesh: Callable[..., Mesh]) -> None:
    mesh = await asyncio.to_thread(own_mesh, "rest-api")
    [server] = mesh.of("rest-api")
    async with connected(mesh.rest_url) as rest, streaming(rest, mesh.admin_key) as stream:
        await begun(stream)
        server.signal(signal.SIGTERM)
        last = await stream.next()
        assert last is not None
        assert (last.event, last.data["kind"], last.data["retryable"]) == ("error", "unavailable", True)
        assert await stream.next() is None
    assert await asyncio.to_thread(server.wait) == 0


async def test_a_refused_stream_is_a_problem(rest: Rest) -> None:
    answer = await rest.http.get(EVENTS, headers={"Accept": "text/event-stream"})
    assert problem_of(answer)["kind"] == "unauthenticated"


@asynccontextmanager
async def stalled() -> AsyncIterator[sse.EventStream]:
    """A stream that has more to send than its peer takes, which reads nothing; and the server of that."""
    streams: Any = SimpleNamespace(outbox_bytes_max=1 << 25, streams=set(), connections=SimpleNamespace(close=print))
    caller: Any = SimpleNamespace(tenant_id=None)
    stream = sse.EventStream(streams, caller)
    subscriber: Any = SimpleNamespace(close=lambda: None)
    stream.begin(subscriber, "0", recovered=True)
    stream.outbox.put(b"x" * (1 << 24))
    stream.outbox.put(b"y")
    config = uvicorn.Config(stream, http=guarded(60, 60), lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        _, writer = await asyncio.open_connection(*listener.getsockname(), limit=1)
        try:
            writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            await eventually(lambda: stream.outbox.taken == 3, "it sends what it can")
            yield stream
        finally:
            writer.transport.abort()
            server.should_exit = True
            await serving


@pytest.mark.parametrize("is_overflowed", [True, False])
async def test_a_stream_that_is_not_read_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, is_overflowed: bool
) -> None:
    monkeypatch.setattr(sse, "LAST_WORDS_LIMIT_S", 0.1)
    async with stalled() as stream:
        if is_overflowed:
            stream.outbox.overflow()
        else:
            stream.end(unavailable("its key was revoked"))
        await asyncio.wait_for(stream.ended.wait(), 10)
    assert "ASGI" not in caplog.text
