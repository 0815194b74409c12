"""What is said of workers besides their health: alerts that are raised and cleared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.conftest import run_sql
from tests.harness import Mesh, eventually
from tests.scenarios.jobs import Bench, register

SHOWN = ("id", "kind", "severity", "message", "raised_at", "cleared_at")


class Silent:
    """A worker that is not heard of, and is given up at once."""

    def __init__(self, bench: Bench, worker_id: str) -> None:
        self.bench, self.worker_id = bench, worker_id

    async def alerts(self, **about: Any) -> list[dict[str, Any]]:
        found = (await self.bench.wire.call("worker.alerts", **about))["alerts"]
        return [alert for alert in found if alert["worker_id"] == self.worker_id]

    async def told(self, event_type: str) -> list[dict[str, Any]]:
        """The alerts in the events of a type, as they were told."""
        page = await self.bench.wire.call("event.list", topics=[f"worker:{self.worker_id}"], limit=1_000)
        events = [event["data"] for event in page["events"] if event["type"] == event_type]
        assert all(data["worker"] == {"id": self.worker_id} for data in events)
        return [data["alert"] for data in events]

    async def is_cleared(self) -> bool:
        return not await self.alerts(only_open=True)


@pytest.fixture
async def silent(bench: Bench) -> Silent:
    silent = Silent(bench, await register(bench.wire, heartbeat_interval_s=0.1, stale_after_s=0.5))

    async def is_given_up() -> bool:
        return {alert["kind"] for alert in await silent.alerts()} == {"MISSED_HEARTBEAT", "WORKER_FAILED"}

    await eventually(is_given_up, "it is given up")
    return silent


async def test_what_is_wrong_is_told_by_the_alert_that_is_listed(silent: Silent) -> None:
    listed = {alert["id"]: alert for alert in await silent.alerts(only_open=True)}
    told = {alert["id"]: alert for alert in await silent.told("worker.alert")}  # the latest of each
    assert told == {key: {name: alert[name] for name in SHOWN[:4]} for key, alert in listed.items()}
    assert await silent.told("worker.alert_cleared") == []


async def heartbeat(silent: Silent, _: Mesh) -> None:
    await silent.bench.wire.call("worker.heartbeat", worker_id=silent.worker_id)


async def register_again(silent: Silent, _: Mesh) -> None:
    name = (await silent.bench.wire.call("worker.get", worker_id=silent.worker_id))["worker"]["name"]
    await silent.bench.wire.call("worker.register", name=name)


async def deregister(silent: Silent, _: Mesh) -> None:
    await silent.bench.wire.call("worker.deregister", worker_id=silent.worker_id)


async def be_gone_for_long(silent: Silent, mesh: Mesh) -> None:
    run_sql(
        mesh.dsn,
        "update mcp.workers set heartbeat_at = heartbeat_at - interval '400 days'"
        f" where worker_id = '{silent.worker_id}'",
    )

    async def is_removed() -> bool:
        answer = await silent.bench.wire.ask("worker.get", {"worker_id": silent.worker_id})
        return "error" in answer

    await eventually(is_removed, "a worker that has gone long ago is removed")


@pytest.mark.parametrize("end", [heartbeat, register_again, deregister, be_gone_for_long])
async def test_that_it_is_over_is_told_once(
    silent: Silent, mesh: Mesh, end: Callable[[Silent, Mesh], Awaitable[None]]
) -> None:
    opened = {alert["id"] for alert in await silent.alerts(only_open=True)}
    await end(silent, mesh)
    cleared = {alert["id"]: alert for alert in await silent.alerts() if alert["id"] in opened}
    assert all(alert["cleared_at"] is not None for alert in cleared.values())
    told = [alert for alert in await silent.told("worker.alert_cleared") if alert["id"] in opened]
    assert sorted(told, key=lambda alert: str(alert["id"])) == [
        {name: alert[name] for name in SHOWN} for _, alert in sorted(cleared.items())
    ]
    assert len(told) == len(opened) == 2


async def test_nothing_is_told_of_the_alerts_of_others(silent: Silent, bench: Bench) -> None:
    await bench.wire.call("worker.deregister", worker_id=bench.worker_id)
    assert len(await silent.alerts(only_open=True)) == 2
    assert await silent.told("worker.alert_cleared") == []
