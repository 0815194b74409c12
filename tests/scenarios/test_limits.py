"""W3 and W4: what may be asked for at once, and how often. Over a limit there is an error of its own, never a silent drop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import run_sql
from tests.harness import Mesh, eventually, running_mesh
from tests.wire import MSGPACK, Wire, WireError

BURST = 200
PER_S = 100
CONNECTIONS_MAX = 4


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def nodes(create_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Two nodes of either kind, and few connections for a tenant."""
    services = ("rest-api", "rest-api", "mcp-server", "mcp-server")
    settings = {"DEVMESH_CONNECTIONS_PER_TENANT_MAX": str(CONNECTIONS_MAX), "DEVMESH_PRESENCE_INTERVAL_S": "0.5"}
    with running_mesh(create_database(), tmp_path_factory.mktemp("nodes"), *services, settings=settings) as running:
        yield running


def ws_urls(mesh: Mesh) -> list[str]:
    return [f"ws://127.0.0.1:{child.port}/ws" for child in mesh.of("mcp-server")]


async def limited_key(admin: Wire, rate_per_s: float) -> dict[str, Any]:
    made = await admin.call("key.create", kind="user", rate_per_s=rate_per_s)
    assert made["key"]["rate_per_s"] == rate_per_s
    return made


def split(answers: list[dict[str, Any]]) -> tuple[int, list[dict[str, Any]]]:
    """How many were granted, and the errors of the others, each of which is a rate's."""
    refused = [answer["error"]["data"] for answer in answers if "error" in answer]
    assert {error["kind"] for error in refused} <= {"rate_limited"}
    assert all(error["retryable"] and error["retry_after_ms"] > 0 for error in refused)
    return len(answers) - len(refused), refused


async def rapidly(wire: Wire, count: int) -> tuple[int, list[dict[str, Any]], float]:
    """Many requests at once: how many were granted, the other's errors, and how long it took."""
    began = time.monotonic()
    answers = await asyncio.gather(*(wire.ask("task.list", {"limit": 1}) for _ in range(count)))
    return *split(answers), time.monotonic() - began


@pytest.mark.parametrize("subprotocol", ["devmesh.v1.json", MSGPACK])
async def test_w4_rapid_requests_over_a_limit(mesh: Mesh, tenant: str, subprotocol: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as admin:
        made = await limited_key(admin, PER_S)
        began = time.monotonic()
        async with await Wire.connect(mesh.ws_url, made["secret"], subprotocol=subprotocol) as wire:
            granted, refused, _ = await rapidly(wire, BURST)
            elapsed_s = time.monotonic() - began
            assert PER_S - 1 <= granted <= PER_S + elapsed_s * PER_S + 1  # `initialize` was one as well
            assert {error["reason"] for error in refused} == {"rate.key"}
            assert (await wire.call("ping"))["pong"] is True


async def test_w4_a_refused_request_succeeds_when_it_was_told_to_come_again(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as admin:
        made = await limited_key(admin, 5)
        async with await Wire.connect(mesh.ws_url, made["secret"]) as wire:
            granted, refused, elapsed_s = await rapidly(wire, 30)
            assert granted <= 5 + elapsed_s * 5
            told_s = [error["retry_after_ms"] / 1000 for error in refused]
            assert max(told_s) <= 1.5
            assert len(set(told_s)) > 1, "those who were refused together must not come again together"

            async def come_again(after_s: float) -> dict[str, Any]:
                await asyncio.sleep(after_s)  # what the server asked for
                return await wire.ask("task.list", {"limit": 1})

            answers = await asyncio.gather(*(come_again(after_s) for after_s in sorted(told_s)[:4]))
            assert split(answers) == (4, [])


async def test_w4_several_nodes_and_both_wires_keep_one_limit(nodes: Mesh) -> None:
    urls = ws_urls(nodes)
    rest_urls = [f"http://127.0.0.1:{child.port}/api/v1/tasks" for child in nodes.of("rest-api")]
    async with await Wire.connect(urls[0], nodes.new_tenant()) as admin:
        made = await limited_key(admin, PER_S)
    wires = [await Wire.connect(url, made["secret"]) for url in urls]
    limits = httpx.Limits(max_connections=BURST)
    async with httpx.AsyncClient(trust_env=False, timeout=20, headers=bearer(made["secret"]), limits=limits) as client:

        async def over_rest(number: int) -> dict[str, Any]:
            answer = await client.get(rest_urls[number % 2], params={"limit": 1})
            if answer.status_code != 429:
                assert answer.status_code == 200, answer.text
                return {"result": answer.json()}
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["reason"] == "rate.key"
            return {"error": {"data": answer.json()}}

        began = time.monotonic()
        answers = await asyncio.gather(
            *(wires[number % 2].ask("task.list", {"limit": 1}) for number in range(BURST)),
            *(over_rest(number) for number in range(BURST)),
        )
        elapsed_s = time.monotonic() - began
    granted, _ = split(answers)
    allowed = PER_S + elapsed_s * PER_S
    assert 0.9 * PER_S <= granted <= 1.1 * allowed, f"{granted} of {allowed:.0f}"
    for wire in wires:
        await wire.close()


async def test_w4_a_sustained_flood_gets_what_its_limit_allows(nodes: Mesh) -> None:
    urls = ws_urls(nodes)
    async with await Wire.connect(urls[0], nodes.new_tenant()) as admin:
        made = await limited_key(admin, PER_S)
    wires = [await Wire.connect(url, made["secret"]) for url in urls]
    began = asked_at = time.monotonic()
    granted, pause_s, lapsed_s, asked_until_s = 0, 0.0, 0.0, 0.0
    while asked_at - began < 5:
        asked_until_s = asked_at - began
        count = 25 + int(pause_s * PER_S)  # always more than has become free, however long the last answers took
        granted += sum(count for count, *_ in await asyncio.gather(*(rapidly(wire, count) for wire in wires)))
        last_s, pause_s = pause_s, time.monotonic() - asked_at
        asked_at += pause_s
        # Requests reach their node at any time until they are answered. What becomes free in a second is saved up, not more.
        lapsed_s += max(0.0, last_s + pause_s - 1)
    at_least, at_most = PER_S * (1 + asked_until_s - lapsed_s), PER_S * (1 + asked_at - began)
    assert 0.9 * at_least <= granted <= 1.1 * at_most, f"{granted} of {at_least:.0f} to {at_most:.0f}"
    for wire in wires:
        await wire.close()


async def test_w4_every_call_of_a_batch_counts_and_pings_do_not(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as admin:
        made = await limited_key(admin, 20)
        async with await Wire.connect(mesh.ws_url, made["secret"]) as wire:
            for _ in range(50):
                await wire.call("ping")
            began = time.monotonic()
            await wire.send([{"jsonrpc": "2.0", "id": n, "method": "task.list"} for n in range(1000, 1040)])
            granted, refused = split([await wire.answer(number) for number in range(1000, 1040)])
            assert 19 <= granted <= 20 + (time.monotonic() - began) * 20 + 1
            again, _ = split([await wire.ask("subscriptions.list", {}) for _ in range(40)])
            assert again < 40, "methods of the session count as well"
            assert refused


async def test_w4_a_request_that_its_key_may_not_make_does_not_cost_its_tenant(mesh: Mesh) -> None:
    async with await Wire.connect(mesh.ws_url, mesh.admin_key) as operator:
        made = await operator.call("tenant.create", name=f"limited-{time.time_ns()}", rate_per_s=PER_S)
        assert made["tenant"]["rate_per_s"] == PER_S
    async with await Wire.connect(mesh.ws_url, made["secret"]) as admin:
        slow, quick = await limited_key(admin, 5), await limited_key(admin, 10 * PER_S)
        async with (
            await Wire.connect(mesh.ws_url, slow["secret"]) as one,
            await Wire.connect(mesh.ws_url, quick["secret"]) as other,
        ):
            began = time.monotonic()
            of_slow, refused, _ = await rapidly(one, BURST)
            assert {error["reason"] for error in refused} == {"rate.key"}
            of_quick, refused, _ = await rapidly(other, BURST)
            assert {error["reason"] for error in refused} == {"rate.tenant"}
            assert of_slow <= 5 + 5 * (time.monotonic() - began)
            assert of_quick >= 0.8 * PER_S


async def test_w4_a_limit_changes_within_five_seconds(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as admin:
        made = await admin.call("key.create", kind="user")
        assert made["key"]["rate_per_s"] is None
        async with await Wire.connect(mesh.ws_url, made["secret"]) as wire:
            assert (await rapidly(wire, BURST))[0] == BURST
            limited = await admin.call("key.limit", key_id=made["key"]["id"], rate_per_s=2)
            assert limited["key"]["rate_per_s"] == 2

            async def is_limited() -> bool:
                return (await rapidly(wire, 20))[0] <= 4

            await eventually(is_limited, "the new limit holds", within_s=5)
            await admin.call("key.limit", key_id=made["key"]["id"], rate_per_s=None)

            async def is_free() -> bool:
                return (await rapidly(wire, 20))[0] == 20

            await eventually(is_free, "the limit is gone", within_s=5)
            successor = await admin.call("key.rotate", key_id=limited["key"]["id"])
            assert successor["key"]["rate_per_s"] is None
        audited = [entry["operation"] for entry in (await admin.call("audit.list"))["entries"]]
        assert audited.count("key.limit") == 2


@pytest.mark.parametrize("rate_per_s", [0, -1, 2_000_000, "many"])
async def test_w4_a_limit_is_a_number_in_bounds(mesh: Mesh, tenant: str, rate_per_s: object) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as admin:
        with pytest.raises(WireError) as refused:
            await admin.call("key.create", kind="user", rate_per_s=rate_per_s)
        assert (refused.value.kind, refused.value.data["field"]) == ("invalid_params", "rate_per_s")


async def test_w4_nobody_is_refused_because_rates_cannot_be_counted(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api", "mcp-server")
    async with await Wire.connect(mesh.ws_url, mesh.admin_key) as admin:
        made = await limited_key(admin, 5)
        run_sql(mesh.dsn, "alter table mcp.rate_buckets rename to rate_buckets_away")
        async with await Wire.connect(mesh.ws_url, made["secret"]) as wire:
            assert (await rapidly(wire, 50))[0] == 50
            run_sql(mesh.dsn, "alter table mcp.rate_buckets_away rename to rate_buckets")

            async def is_limited() -> bool:
                return (await rapidly(wire, 20))[0] <= 10

            await eventually(is_limited, "they are counted again", within_s=6)


async def test_w4_a_refusal_asks_the_database_nothing(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api", "mcp-server")
    async with await Wire.connect(mesh.ws_url, mesh.admin_key) as admin:
        over_rest, over_ws = await limited_key(admin, 0.01), await limited_key(admin, 0.01)
    wire = await Wire.connect(mesh.ws_url, over_ws["secret"])  # `initialize` is all that it may do
    async with httpx.AsyncClient(trust_env=False, timeout=20, headers=bearer(over_rest["secret"])) as client:
        url = f"{mesh.rest_url}/api/v1/tasks"
        assert (await client.get(url)).status_code == 200
        assert (await client.get(url)).status_code == 429
        assert (await rapidly(wire, 1))[0] == 0
        run_sql(mesh.dsn, "alter table mcp.api_keys rename to api_keys_away")  # whoever looks for a key fails
        assert [(await client.get(url)).status_code for _ in range(5)] == [429] * 5
        assert (await rapidly(wire, 20))[0] == 0
        stranger = await client.get(url, headers=bearer(mesh.admin_key))
        assert stranger.is_server_error
    await wire.close()


async def test_w3_one_id_twice_in_flight_is_two_requests(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        request = {"jsonrpc": "2.0", "id": "twice", "method": "task.create", "params": {"title": "twice"}}
        await asyncio.gather(wire.send(request), wire.send(request))

        def answers() -> list[dict[str, Any]]:
            return [frame for frame in wire.frames if frame.get("id") == "twice"]

        await eventually(lambda: len(answers()) == 2, "each request has an answer")
        assert len({answer["result"]["task"]["id"] for answer in answers()}) == 2
        assert (await wire.call("task.stats"))["total"] == 2


async def test_w3_one_idempotency_key_twice_in_flight_is_done_once(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        params = {"title": "once", "idempotency_key": "the same"}
        first, again, other = await asyncio.gather(
            wire.ask("task.create", params),
            wire.ask("task.create", params),
            wire.ask("task.create", {**params, "title": "another"}),
        )
        assert first == {**again, "id": first["id"]}
        refused = [answer["error"]["data"]["kind"] for answer in (first, other) if "error" in answer]
        assert refused == ["idempotency_mismatch"]  # of either: requests of one connection are served at the same time
        assert (await wire.call("task.stats"))["total"] == 1


async def is_stream_refused(client: httpx.AsyncClient, url: str) -> bool:
    async with client.stream("GET", f"{url}/api/v1/events") as stream:
        if stream.status_code == 200:
            return False
        await stream.aread()
        assert (stream.status_code, stream.json()["kind"]) == (429, "quota_exceeded")
        return True


async def test_connections_of_a_tenant_have_a_limit_on_all_nodes(nodes: Mesh) -> None:
    here, there = ws_urls(nodes)
    key, stranger = nodes.new_tenant(), nodes.new_tenant()
    wires = [await Wire.connect(here, key) for _ in range(CONNECTIONS_MAX - 1)]
    async with (
        httpx.AsyncClient(trust_env=False, timeout=20, headers=bearer(key)) as client,
        client.stream("GET", f"{nodes.rest_url}/api/v1/events") as stream,
    ):
        assert stream.status_code == 200

        async def is_refused(url: str) -> bool:
            wire = await Wire.bare(url, key)
            answer = await wire.ask("initialize", {})
            await wire.close()
            if "result" in answer:
                return False
            error = answer["error"]["data"]
            assert (error["kind"], error["reason"]) == ("quota_exceeded", "connections")
            return True

        await eventually(lambda: is_refused(here), "the node that is full hears of the stream")
        await eventually(lambda: is_refused(there), "the other node hears of both")
        await eventually(lambda: is_stream_refused(client, nodes.rest_url), "so does the REST service")
        async with await Wire.connect(there, stranger) as other:
            assert (await other.call("ping"))["pong"] is True
        assert (await wires[0].call("ping"))["pong"] is True
        await wires.pop().close()

        async def has_room() -> bool:
            return not await is_refused(there)

        await eventually(has_room, "there is room again")
    for wire in wires:
        await wire.close()


@pytest.mark.soak
async def test_connections_of_a_node_that_was_killed_are_not_counted_for_long(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api", "mcp-server", "mcp-server", DEVMESH_CONNECTIONS_PER_TENANT_MAX="2")
    doomed, lasting = mesh.of("mcp-server")
    wires = [await Wire.connect(f"ws://127.0.0.1:{doomed.port}/ws", mesh.admin_key) for _ in range(2)]

    async def connects() -> bool:
        wire = await Wire.bare(f"ws://127.0.0.1:{lasting.port}/ws", mesh.admin_key)
        answer = await wire.ask("initialize", {})
        await wire.close()
        return "result" in answer

    async def is_full() -> bool:
        return not await connects()

    await eventually(is_full, "the nodes have heard of each other")
    doomed.kill()
    await eventually(connects, "the dead node's connections are not counted any more", within_s=8)
    for wire in wires:
        await wire.close()
