"""What is said of workers besides their health: alerts that are raised and cleared, and what is refused of them."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.scenarios.jobs import Bench
from tests.wire import WireError


@pytest.mark.parametrize(
    "about",
    [
        {"stale_after_s": 10},
        {"heartbeat_interval_s": 5, "stale_after_s": 4.9},
        {"heartbeat_interval_s": 5, "stale_after_s": 5},
    ],
)
async def test_a_worker_that_would_be_given_up_between_its_heartbeats_is_refused(
    bench: Bench, about: dict[str, Any]
) -> None:
    name = f"w{uuid.uuid4().hex}"
    with pytest.raises(WireError, match="heartbeat_interval_s") as refused:
        await bench.wire.call("worker.register", name=name, **about)
    assert (refused.value.kind, refused.value.data["field"]) == ("invalid_params", "stale_after_s")
    enough = {**about, "stale_after_s": about.get("heartbeat_interval_s", 30) + 1}
    registered = (await bench.wire.call("worker.register", name=name, **enough))["worker"]
    assert registered["stale_after_s"] == enough["stale_after_s"]
