"""Jobs that have waited for long are promoted past those that came later, wherever they wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from tests.conftest import QUICK
from tests.harness import Mesh, eventually, running_mesh
from tests.scenarios.jobs import Bench, held, register
from tests.wire import Wire


@pytest.fixture(scope="module")
def impatient_mesh(create_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh that promotes jobs after a moment."""
    settings = {
        **QUICK,
        "DEVMESH_PROMOTER_INTERVAL_S": "0.1",
        "DEVMESH_PROMOTE_LOW_AFTER_S": "0.3",
        "DEVMESH_PROMOTE_MEDIUM_AFTER_S": "1",
    }
    directory = tmp_path_factory.mktemp("impatient")
    with running_mesh(create_database(), directory, "rest-api", "mcp-server", "worker", settings=settings) as running:
        yield running


@pytest_asyncio.fixture
async def impatient(impatient_mesh: Mesh) -> Any:
    async with await Wire.connect(impatient_mesh.ws_url, impatient_mesh.admin_key) as wire:
        yield Bench(wire, await register(wire))


async def test_a_job_that_has_waited_for_long_is_promoted(impatient: Bench) -> None:
    await impatient.wire.call("subscribe", topics=[f"queue:{impatient.queue}"])
    low, medium, high = [await impatient.enqueue(priority=priority) for priority in (1, 3, 5)]
    steps: list[tuple[str, int]] = []
    while len(steps) < 3:
        promoted = await impatient.wire.next_event("job.promoted")
        steps += [(job["id"], job["priority"]) for job in promoted["data"]["jobs"]]
    assert steps[0] == (low["id"], 2)
    assert sorted(steps[1:]) == sorted([(low["id"], 4), (medium["id"], 4)])
    assert [(await impatient.get(job))["priority"] for job in (low, medium, high)] == [4, 4, 5]
    assert [job["id"] for job in await impatient.claim()] == [high["id"], low["id"], medium["id"]]


async def test_a_promoted_job_is_shown_with_its_priority_until_it_is_over_and_as_a_dead_letter(
    impatient: Bench,
) -> None:
    jobs = [await impatient.enqueue(priority=1, max_retries=0) for _ in range(2)]

    async def shown() -> list[int]:
        return [(await impatient.get(job))["priority"] for job in jobs]

    async def are_promoted() -> bool:
        return await shown() == [4, 4]

    await eventually(are_promoted, "they are promoted")
    done, failed = await impatient.claim()
    assert ([done["priority"], failed["priority"]], await shown()) == ([4, 4], [4, 4])
    await impatient.wire.call("job.complete", jobs=[held(done)])
    await impatient.wire.call("job.fail", jobs=[held(failed, error="no")])
    assert await shown() == [1, 4]


async def test_a_job_is_promoted_though_hundreds_that_came_later_wait_above_it(impatient: Bench) -> None:
    jobs = [await impatient.enqueue(priority=priority) for priority in (1, 3)]
    fresh = [{"type": "t", "queue": impatient.queue, "priority": priority} for priority in (2, 4)] * 500
    await impatient.wire.call("job.enqueue_many", jobs=fresh)

    async def are_promoted() -> bool:
        return [(await impatient.get(job))["priority"] for job in jobs] == [4, 4]

    await eventually(are_promoted, "they are promoted")


async def test_a_job_that_waits_for_a_place_for_long_is_promoted_past_those_that_come_later(impatient: Bench) -> None:
    limited = {"concurrency_key": "one", "concurrency_limit": 1}
    await impatient.enqueue(**limited)
    [first] = await impatient.claim()
    low = await impatient.enqueue(priority=1, **limited)

    async def is_promoted() -> bool:
        return bool((await impatient.get(low))["priority"] == 4)

    await eventually(is_promoted, "what waits for a place is promoted")
    await impatient.enqueue(priority=3, **limited)
    await impatient.wire.call("job.complete", jobs=[held(first)])
    assert [job["id"] for job in await impatient.claim()] == [low["id"]]
