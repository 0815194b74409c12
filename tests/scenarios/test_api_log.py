"""The log of answered calls: what is in it, how it is looked up, and that no call waits for it or fails with it."""

from __future__ import annotations

import datetime
import signal
import time
from collections.abc import Callable
from typing import Any

import asyncpg
import httpx
import pytest

from tests.conftest import run_sql
from tests.harness import Child, Mesh, eventually, wait_until
from tests.wire import Wire, WireError

NOBODY = "00000000-0000-7000-8000-000000000000"


async def entries(wire: Wire, **filters: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await wire.call("api_log.list", **filters))["entries"]
    return found


async def fail(wire: Wire, count: int = 1) -> None:
    for _ in range(count):
        with pytest.raises(WireError):
            await wire.call("task.get", task_id=NOBODY)


async def test_errors_of_both_wires_are_logged_with_who_what_and_how_long(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        await wire.call("task.create", title="well", assign="pull")
        await fail(wire)
        with pytest.raises(WireError):
            await wire.call("no.such_operation\0")
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(
                f"{mesh.rest_url}/api/v1/tasks/{NOBODY}",
                headers={"Authorization": f"Bearer {tenant}", "X-Request-Id": "quoted-by-a-user"},
            )
            assert answer.status_code == 404

        async def are_there() -> bool:
            return len(await entries(wire)) == 3

        await eventually(are_there, "three errors are logged")
        [rest] = [entry for entry in await entries(wire) if entry["wire"] == "rest"]
        assert rest["request_id"] == "quoted-by-a-user"
        assert (rest["operation"], rest["outcome"], rest["address"]) == ("task.get", "not_found", "127.0.0.1")
        assert rest["duration_ms"] > 0
        unknown, known = [entry for entry in await entries(wire) if entry["wire"] == "websocket"]
        assert (unknown["operation"], unknown["outcome"]) == ("(unknown)", "unknown_method")
        assert known["key_id"] == rest["key_id"]
        assert known["request_id"] is None
        assert unknown["at"] > known["at"]
    async with await Wire.connect(mesh.ws_url, mesh.new_tenant()) as stranger:
        assert await entries(stranger) == []


async def test_it_is_filtered_and_paged_newest_first(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        other = await wire.call("key.create", kind="user")
        await fail(wire, 5)
        middle = datetime.datetime.now(datetime.UTC).isoformat()
        async with await Wire.connect(mesh.ws_url, other["secret"]) as another:
            await fail(another, 2)
            with pytest.raises(WireError):
                await another.call("key.list")

        async def are_there() -> bool:
            return len(await entries(wire)) == 8

        await eventually(are_there, "all are logged")
        whole = await entries(wire)
        assert [entry["id"] for entry in whole] == sorted((entry["id"] for entry in whole), reverse=True)
        assert await entries(wire, key_id=other["key"]["id"]) == whole[:3]
        assert await entries(wire, since=middle) == whole[:3]
        assert await entries(wire, until=middle) == whole[3:]
        assert await entries(wire, since=middle, until=middle) == []
        assert await entries(wire, since="0002-01-01T00:00:00Z", until="9998-12-31T23:59:59.999999Z") == whole
        assert await entries(wire, outcome="forbidden") == [
            entry for entry in whole if entry["operation"] == "key.list"
        ]
        assert await entries(wire, operation="key.list") == await entries(wire, outcome="forbidden")
        paged: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while len(paged) < len(whole) + 1:
            page = await wire.call("api_log.list", limit=3, operation="task.get", **cursor)
            paged += page["entries"]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert paged == [entry for entry in whole if entry["operation"] == "task.get"]
        for wrong in ({"outcome": "odd"}, {"key_id": NOBODY}, {"cursor": "x"}, {"since": "yesterday"}):
            with pytest.raises(WireError):
                await wire.call("api_log.list", **wrong)


async def test_a_filter_looks_at_a_bounded_part_and_goes_on_from_there(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        await fail(wire)

        async def is_there() -> bool:
            return len(await entries(wire)) == 1

        await eventually(is_there, "it is logged")
        tenant_id = wire.initialized["tenant_id"]
        run_sql(
            mesh.dsn,
            "insert into mcp.api_logs (tenant_id, api_log_id, at, operation, wire, outcome, duration_ms, key_id, address)"
            f" select '{tenant_id}', ('f0000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, now(), 'task.list', 'rest',"
            f" 'ok', 1, '{tenant_id}', '' from generate_series(1, 10000) n",
        )
        first = await wire.call("api_log.list", outcome="not_found")
        assert first["entries"] == []
        second = await wire.call("api_log.list", outcome="not_found", cursor=first["next_cursor"])
        assert [entry["operation"] for entry in second["entries"]] == ["task.get"]
        assert second["next_cursor"] is None


@pytest.mark.parametrize(("which", "operations"), [("all", {"task.list", "task.get"}), ("off", set())])
async def test_what_is_logged_is_a_setting_and_is_written_before_the_end(
    own_mesh: Callable[..., Mesh], which: str, operations: set[str]
) -> None:
    mesh = own_mesh("rest-api", "mcp-server", DEVMESH_API_LOG=which)
    async with await Wire.connect(mesh.ws_url, mesh.admin_key) as wire:
        await wire.call("task.list")
        await fail(wire)
        [gateway] = mesh.of("mcp-server")
        gateway.signal(signal.SIGTERM)
        assert gateway.wait() == 0
    assert set(run_sql(mesh.dsn, "select operation from mcp.api_logs").split()) == operations


async def test_no_call_waits_for_the_log_or_fails_with_it(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api", "mcp-server")
    async with await Wire.connect(mesh.ws_url, mesh.admin_key) as wire:
        locker = await asyncpg.connect(mesh.dsn)
        async with locker.transaction():
            await locker.execute("lock table mcp.api_logs in access exclusive mode")
            began = time.monotonic()
            await fail(wire, 20)
            assert time.monotonic() - began < 5.0
        await locker.close()
        count = "select count(*) from mcp.api_logs"
        wait_until(lambda: run_sql(mesh.dsn, count) == "20", "they are logged when that is possible", 20.0)
        run_sql(mesh.dsn, "alter table mcp.api_logs rename to hidden")
        await fail(wire, 20)
        await wire.call("task.create", title="goes on", assign="pull")
        [gateway] = mesh.of("mcp-server")
        wait_until(lambda: state_of_the_log(gateway) == "degraded", "health says that it cannot be written")
        run_sql(mesh.dsn, "alter table mcp.hidden rename to api_logs")
        wait_until(lambda: run_sql(mesh.dsn, count) == "40", "they are logged when that is possible again", 20.0)


def state_of_the_log(child: Child) -> str:
    answer = httpx.get(f"http://127.0.0.1:{child.port}/health", timeout=5.0, trust_env=False)
    status: str = answer.json()["components"]["api-log"]["status"]
    return status
