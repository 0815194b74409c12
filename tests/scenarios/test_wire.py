"""W1, W2, W6, W9 and the limits of the WebSocket: every wrong input gets its own error and hurts nobody else."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import json
import resource
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import websockets

from tests.harness import Mesh, eventually
from tests.wire import MSGPACK, Wire, WireError


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def refusal(url: str, key: str | None, **initialize: Any) -> tuple[str, str | None, int]:
    """The kind and the reason of the error that `initialize` gets, and the code that the connection is closed with."""
    wire = await Wire.bare(url, key)
    with pytest.raises(WireError) as refused:
        await wire.call("initialize", **initialize)
    return refused.value.kind, refused.value.reason, await wire.closed()


async def test_w01_each_bad_credential_has_its_own_error(mesh: Mesh, tenant: str) -> None:
    url = mesh.ws_url
    assert await refusal(url, None) == ("unauthenticated", "credential.missing", 4001)
    assert await refusal(url, "nonsense") == ("unauthenticated", "credential.malformed", 4001)
    assert await refusal(url, "dm_" + "A" * 43) == ("unauthenticated", "credential.unknown", 4001)
    async with await Wire.connect(url, tenant) as admin:
        revoked = await admin.call("key.create", kind="user")
        await admin.call("key.revoke", key_id=revoked["key"]["id"])
        assert await refusal(url, revoked["secret"]) == ("unauthenticated", "credential.revoked", 4001)
        soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=0.3)
        brief = await admin.call("key.create", kind="user", expires_at=soon.isoformat())

        async def has_expired() -> bool:
            answer = await admin.call("key.list", limit=1)
            key = answer["keys"][0]
            assert key["id"] == brief["key"]["id"]
            return datetime.datetime.now(datetime.UTC) > datetime.datetime.fromisoformat(key["expires_at"])

        await eventually(has_expired, "the key expires")
        assert await refusal(url, brief["secret"]) == ("unauthenticated", "credential.expired", 4001)
    assert await refusal(url, None, token="dm_" + "B" * 43) == ("unauthenticated", "credential.unknown", 4001)
    async with await Wire.connect(url, None, token=tenant) as wire:
        assert wire.initialized["tenant_id"]


async def test_w01_five_failures_lock_an_address_out(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api", "mcp-server", DEVMESH_AUTH_FAILURES_PER_MINUTE_MAX="5")
    for number in range(5):
        assert (await refusal(mesh.ws_url, "dm_" + str(number) * 43))[0] == "unauthenticated"
    kind, reason, _ = await refusal(mesh.ws_url, "dm_" + "9" * 43)
    assert (kind, reason) == ("rate_limited", "credential.locked_out")
    answer = httpx.get(f"{mesh.rest_url}/api/v1/tasks", headers=bearer(mesh.admin_key), trust_env=False)
    assert answer.status_code == 429
    assert 800 < int(answer.headers["retry-after"]) <= 901


async def test_w01_who_called_is_what_a_trusted_proxy_says_and_nobody_else(own_mesh: Callable[..., Mesh]) -> None:
    def status(mesh: Mesh, secret: str, said: str) -> int:
        headers = {**bearer(secret), "X-Forwarded-For": said}
        return httpx.get(f"{mesh.rest_url}/api/v1/tasks", headers=headers, trust_env=False).status_code

    wrong = "dm_" + "A" * 43
    mesh = own_mesh("rest-api", "mcp-server", DEVMESH_AUTH_FAILURES_PER_MINUTE_MAX="5")
    assert [status(mesh, wrong, f"192.0.2.{number}") for number in range(5)] == [401] * 5
    assert status(mesh, mesh.admin_key, "192.0.2.9") == 429, "all of them came from here, whatever they said"
    behind = {"DEVMESH_AUTH_FAILURES_PER_MINUTE_MAX": "5", "DEVMESH_TRUSTED_PROXIES": "127.0.0.0/8"}
    trusting = mesh.add("rest-api", **behind)
    trusting.start()
    await asyncio.to_thread(trusting.wait_ready)
    url = f"http://127.0.0.1:{trusting.port}/api/v1/tasks"
    for said, secret, expected in (
        *(("192.0.2.7", wrong, 401) for _ in range(5)),
        ("192.0.2.7", mesh.admin_key, 429),
        ("192.0.2.8", mesh.admin_key, 200),
        ("x" * 4_000, mesh.admin_key, 200),
    ):
        headers = {**bearer(secret), "X-Forwarded-For": said}
        assert httpx.get(url, headers=headers, trust_env=False).status_code == expected, said[:20]


async def test_denials_beyond_many_a_minute_are_counted_and_not_written(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as admin:
        made = await admin.call("key.create", kind="user", scopes=["read"])
        async with await Wire.connect(mesh.ws_url, made["secret"]) as wire:
            answers = []
            for _ in range(20):
                answers += await asyncio.gather(*(wire.ask("key.create", {"kind": "user"}) for _ in range(20)))
        assert {answer["error"]["data"]["kind"] for answer in answers} == {"forbidden"}
        entries = []
        cursor = None
        while True:
            page = await admin.call("audit.list", limit=200, **({"cursor": cursor} if cursor else {}))
            entries += page["entries"]
            if (cursor := page["next_cursor"]) is None:
                break
    written = sum(entry["outcome"] == "denied" for entry in entries)
    assert 300 <= written <= 600, "of a minute, or of two if one has just begun"
    if written < 400:
        [gateway] = mesh.of("mcp-server")
        assert gateway.metric("devmesh_denials_unwritten_total") >= 400 - written


async def test_w08_a_revoked_key_closes_its_open_connections(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as admin:
        made = await admin.call("key.create", kind="agent")
        doomed = await Wire.connect(mesh.ws_url, made["secret"])
        await admin.call("key.revoke", key_id=made["key"]["id"])
        assert await doomed.closed(within_s=5) == 4001
        assert (await admin.call("ping"))["pong"] is True


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("{", "parse_error"),
        ("nonsense", "parse_error"),
        ("", "parse_error"),
        ("null", "invalid_request"),
        ("7", "invalid_request"),
        ("{}", "invalid_request"),
        ("[]", "invalid_request"),
        ('{"jsonrpc":"1.0","id":1,"method":"ping"}', "invalid_request"),
        ('{"jsonrpc":"2.0","id":1}', "invalid_request"),
        ('{"jsonrpc":"2.0","id":{"a":1},"method":"ping"}', "invalid_request"),
        ('{"jsonrpc":"2.0","id":1,"method":7}', "invalid_request"),
        ("[" * 100_000, "parse_error"),
        # Deeper than any Python that is supported can follow: from 3.12 on its own depth does not count here.
        ('{"jsonrpc":"2.0","id":1,"method":"ping","params":' + "[" * 50_000 + "]" * 50_000 + "}", "parse_error"),
    ],
)
async def test_w02_what_is_no_request_gets_an_error_without_an_id(
    mesh: Mesh, tenant: str, message: str, kind: str
) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        await wire.send(message)
        answer = await wire.answer(None)
        assert answer["error"]["data"]["kind"] == kind
        assert (await wire.call("ping"))["pong"] is True


@pytest.mark.parametrize(
    ("method", "params", "kind", "field"),
    [
        ("task.nothing", {}, "unknown_method", None),
        ("task.create", {}, "invalid_params", "title"),
        ("task.create", {"title": None}, "invalid_params", "title"),
        ("task.create", {"title": 7}, "invalid_params", "title"),
        ("task.create", {"title": ""}, "invalid_params", "title"),
        ("task.create", {"title": "a\u0000b"}, "invalid_params", "title"),
        ("task.create", {"title": "x", "description": "a\u0000b"}, "invalid_params", "description"),
        ("task.create", {"title": "x" * 201}, "invalid_params", "title"),
        ("task.create", {"title": "x", "colour": "red"}, "invalid_params", "colour"),
        ("task.create", {"title": "x", "priority": 6}, "invalid_params", "priority"),
        ("task.create", {"title": "x", "priority": 10**30}, "invalid_params", "priority"),
        ("task.create", {"title": "x", "parameters": [1]}, "invalid_params", "parameters"),
        ("task.create", {"title": "x", "deadline": "soon"}, "invalid_params", "deadline"),
        ("task.create", {"title": "x", "deadline": "2026-01-01T00:00:00"}, "invalid_params", "deadline"),
        ("task.create", {"title": "x", "assign": "nobody"}, "invalid_params", "assign"),
        ("task.create", [], "invalid_params", None),
        ("task.create", "title", "invalid_params", None),
        ("task.get", {"task_id": "1"}, "invalid_params", "task_id"),
        ("task.get", {"task_id": "00000000-0000-0000-0000-000000000000"}, "not_found", None),
        ("task.list", {"limit": 201}, "invalid_params", "limit"),
        ("job.enqueue", {"type": "of two words"}, "invalid_params", "type"),
        ("task.list", {"cursor": "x"}, "invalid_params", "cursor"),
        ("subscribe", {}, "invalid_params", "topics"),
        ("initialize", {}, "invalid_request", None),
    ],
)
async def test_w02_wrong_parameters_are_named(
    mesh: Mesh, tenant: str, method: str, params: Any, kind: str, field: str | None
) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        answer = await wire.ask(method, params)
        assert answer["error"]["data"]["kind"] == kind, answer
        assert answer["error"]["data"].get("field") == field, answer


async def test_w02_too_long_too_deep_and_too_many(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        await wire.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": "y" * (2 << 20)}}))
        assert (await wire.answer(None))["error"]["data"]["kind"] == "too_large"
        deep: dict[str, Any] = {}
        for _ in range(100):
            deep = {"d": deep}
        answer = await wire.ask("task.create", {"title": "deep", "parameters": deep})
        assert answer["error"]["data"]["kind"] == "invalid_params"
        await wire.send([{"jsonrpc": "2.0", "id": n, "method": "ping"} for n in range(500, 601)])
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        await wire.send([{"jsonrpc": "2.0", "id": n, "method": "ping"} for n in range(500, 601)])
        assert (await wire.answer(None))["error"]["data"]["kind"] == "too_large"


async def test_w02_invalid_utf8_and_half_frames_end_only_their_connection(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as well:
        broken = await Wire.bare(mesh.ws_url, tenant)
        await broken.connection.send(b"\xff\xfe\xfd", text=True)
        assert await broken.closed() == 1007
        half = await Wire.bare(mesh.ws_url, tenant)
        half.connection.transport.write(b"\x81\xfe")  # a frame's head that promises more
        half.connection.transport.abort()
        port = mesh.of("mcp-server")[0].port
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(b"\x00\x01nonsense\r\n\r\n")
            raw.settimeout(5)
            assert raw.recv(100).startswith(b"HTTP/1.1 400")
        assert (await well.call("ping"))["pong"] is True


async def test_w02_a_binary_frame_of_nonsense_is_answered(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant, subprotocol=MSGPACK) as wire:
        for message in (b"", b"\xc1", b"\x93\x01", b"\xff" * 100, b"\x81\xa1a"):
            await wire.connection.send(message)
        await eventually(lambda: sum("error" in frame for frame in wire.frames) == 5, "five errors")
        kinds = {frame["error"]["data"]["kind"] for frame in wire.frames if "error" in frame}
        assert kinds <= {"parse_error", "invalid_request"}
        assert (await wire.call("task.create", title="fine", parameters={"x": [1, None]}))["task"]["parameters"] == {
            "x": [1, None]
        }


async def test_a_batch_is_answered_whole_and_notifications_are_not(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        await wire.send(
            [
                {"jsonrpc": "2.0", "id": "a", "method": "task.create", "params": {"title": "one"}},
                {"jsonrpc": "2.0", "method": "task.create", "params": {"title": "unanswered"}},
                {"jsonrpc": "2.0", "id": "b", "method": "task.create", "params": {"title": ""}},
                {"jsonrpc": "2.0", "id": "c", "method": "nothing"},
            ]
        )
        await wire.answer("c")
        [batch] = [frame for frame in wire.frames if isinstance(frame, list)]
        kinds = {part["id"]: part.get("error", {}).get("data", {}).get("kind") for part in batch}
        assert kinds == {"a": None, "b": "invalid_params", "c": "unknown_method"}


async def test_who_does_not_initialize_is_closed(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api", "mcp-server", DEVMESH_INITIALIZE_TIMEOUT_S="0.3")
    silent = await Wire.bare(mesh.ws_url, mesh.admin_key)
    hasty = await Wire.bare(mesh.ws_url, mesh.admin_key)
    with pytest.raises(WireError) as refused:
        await hasty.call("task.list")
    assert refused.value.kind == "invalid_request"
    assert await silent.closed() == 4002
    assert await hasty.closed() == 4002


async def test_more_requests_in_flight_than_allowed_are_refused_each(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api", "mcp-server", DEVMESH_REQUESTS_IN_FLIGHT_MAX="10")
    async with await Wire.connect(mesh.ws_url, mesh.admin_key) as wire:
        task = (await wire.call("task.create", title="never", assign="pull"))["task"]
        waits = [
            asyncio.create_task(wire.ask("task.wait", {"task_id": task["id"], "timeout_ms": 20_000})) for _ in range(15)
        ]
        for first in itertools.islice(asyncio.as_completed(waits), 5):  # who waits need not wait for them
            assert "error" in await first
        async with await Wire.connect(mesh.ws_url, mesh.admin_key) as other:
            await other.call("task.cancel", task_id=task["id"])
        answers = await asyncio.gather(*waits)
        refused = [answer["error"]["data"] for answer in answers if "error" in answer]
        assert len(refused) == 5
        assert all(error["kind"] == "rate_limited" and error["retry_after_ms"] > 0 for error in refused)


async def test_requests_of_one_connection_do_not_wait_for_each_other(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        task = (await wire.call("task.create", title="slow", assign="pull"))["task"]
        slow = asyncio.create_task(wire.call("task.wait", task_id=task["id"], timeout_ms=20_000))
        assert (await wire.call("ping"))["pong"] is True
        await wire.call("task.cancel", task_id=task["id"])
        assert (await slow)["task"]["status"] == "cancelled"


async def test_another_key_of_the_tenant_takes_a_session_over(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as admin:
        first = await admin.call("key.create", kind="agent")
        wire = await Wire.connect(mesh.ws_url, first["secret"])
        agent = (await wire.call("agent.register", name="rotating"))["agent"]
        second = await admin.call("key.rotate", key_id=first["key"]["id"])
        await wire.call("session.refresh", token=second["secret"])
        await admin.call("key.confirm", key_id=second["key"]["id"])
        assert (await wire.call("agent.heartbeat"))["agent"]["id"] == agent["id"]
        with pytest.raises(WireError) as refused:
            await wire.call("session.refresh", token=mesh.new_tenant())
        assert refused.value.kind == "forbidden"
        await wire.close()


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_w09_ten_thousand_idle_connections_stay(mesh: Mesh, tenant: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wires: list[Wire] = []
    for _ in range(100):
        wires += await asyncio.gather(*(Wire.connect(mesh.ws_url, tenant) for _ in range(100)))
    ends = [asyncio.ensure_future(wire.connection.wait_closed()) for wire in wires]
    ended, _ = await asyncio.wait(ends, timeout=120, return_when="FIRST_COMPLETED")
    assert not ended
    assert all(wire.connection.state is websockets.State.OPEN for wire in wires)
    for begin in range(0, len(wires), 500):
        await asyncio.gather(*(wire.close() for wire in wires[begin : begin + 500]))


async def test_a_bound_key_makes_its_agent_present_without_naming_it(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as admin:
        agent = (await admin.call("agent.register", name="bound", capabilities=["b"]))["agent"]
        await admin.call("agent.drain")  # the administrator's own session stands for it as well
        bound = await admin.call("key.create", kind="agent", agent=agent["id"])
        before = (await admin.call("agent.get", agent_id=agent["id"]))["agent"]["sessions"]
        async with await Wire.connect(mesh.ws_url, bound["secret"]) as wire:
            assert wire.initialized["agent_id"] == agent["id"]
            assert (await wire.call("subscriptions.list")) == {"topics": [f"agent:{agent['id']}"]}
            assert (await admin.call("agent.get", agent_id=agent["id"]))["agent"]["sessions"] == before + 1

        async def has_left() -> bool:
            sessions: int = (await admin.call("agent.get", agent_id=agent["id"]))["agent"]["sessions"]
            return bool(sessions == before)

        await eventually(has_left, "its session ends with its connection")


async def test_denied_acts_of_a_session_are_in_the_audit_log(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as admin:
        await admin.call("agent.register", name="not yours")
        writer = await admin.call("key.create", kind="user", scopes=["write"])
        async with await Wire.connect(mesh.ws_url, writer["secret"]) as wire:
            with pytest.raises(WireError) as refused:
                await wire.call("subscribe", topics=["tenant"])
            assert refused.value.kind == "forbidden"
        other = await Wire.bare(mesh.ws_url, writer["secret"])
        assert (await other.ask("initialize", {"agent": "not yours"}))["error"]["data"]["kind"] == "forbidden"
        await other.close()
        entries = (await admin.call("audit.list"))["entries"]
        denied = {entry["operation"] for entry in entries if entry["key_id"] == writer["key"]["id"]}
        assert denied == {"subscribe", "initialize"}
