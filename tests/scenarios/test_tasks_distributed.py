"""T14: a task that consists of subtasks is spread in every way, ends by every rule, and leaves no subtask behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.fleet import Agent, Task, get, refusal, wait
from tests.harness import Mesh
from tests.wire import Wire


@contextlib.asynccontextmanager
async def worker(mesh: Mesh, key: str) -> AsyncIterator[Agent]:
    async with await Agent.join(mesh, key, "worker", "part", concurrency=20) as agent:
        yield agent


def parts(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"title": str(n), "required_capabilities": ["part"], "max_retries": 0, **fields} for n in range(count)]


async def distribute(wire: Wire, **fields: Any) -> tuple[Task, list[Task]]:
    made = await wire.call("task.create_distributed", title="the whole", **fields)
    return made["task"], made["subtasks"]


async def given(agent: Agent, count: int) -> dict[str, Task]:
    """Its next tasks, by title."""
    return {task["title"]: task for task in [await agent.next_task() for _ in range(count)]}


async def statuses(wire: Wire, tasks: list[Task]) -> list[str]:
    return [(await get(wire, task))["status"] for task in tasks]


async def test_t14_parallel_all_gives_the_results_in_order(mesh: Mesh, tenant: str) -> None:
    async with worker(mesh, tenant) as agent:
        parent, children = await distribute(agent.wire, subtasks=parts(4))
        assert [child["parent_id"] for child in children] == [parent["id"]] * 4
        tasks = await given(agent, 4)
        for title in ("2", "0", "3"):
            await agent.complete(tasks[title], {"part": title})
        assert (await get(agent.wire, parent))["status"] == "running"
        await agent.complete(tasks["1"], {"part": "1"})
        ended = await wait(agent.wire, parent)
        assert ended["result"] == {"results": [{"part": str(n)} for n in range(4)], "completed": 4, "subtasks": 4}
        listed = await agent.wire.call("task.list", parent_id=parent["id"])
        assert [task["title"] for task in listed["tasks"]] == ["3", "2", "1", "0"]


async def test_t14_all_fails_as_soon_as_one_does_and_cancels_the_rest(mesh: Mesh, tenant: str) -> None:
    async with worker(mesh, tenant) as agent:
        parent, children = await distribute(agent.wire, subtasks=parts(3))
        tasks = await given(agent, 3)
        await agent.complete(tasks["0"])
        await agent.say("fail", tasks["1"], error="broken")
        ended = await wait(agent.wire, parent)
        assert ended["status"] == "failed"
        assert ended["error"]["children"] == [children[1]["id"]]
        assert await statuses(agent.wire, children) == ["completed", "failed", "cancelled"]
        assert await agent.refused("complete", tasks["2"]) == "task.state"


async def test_t14_any_takes_the_first_and_spares_the_rest(mesh: Mesh, tenant: str) -> None:
    async with worker(mesh, tenant) as agent:
        parent, children = await distribute(agent.wire, subtasks=parts(3), completion="any")
        tasks = await given(agent, 3)
        await agent.say("fail", tasks["0"])
        await agent.complete(tasks["2"], "quickest")
        ended = await wait(agent.wire, parent)
        assert ended["result"] == {"task_id": children[2]["id"], "position": 2, "result": "quickest"}
        assert await statuses(agent.wire, children) == ["failed", "cancelled", "completed"]


@pytest.mark.parametrize(
    ("fields", "needed"), [({"completion": "majority"}, 3), ({"completion": "threshold", "threshold": 2}, 2)]
)
async def test_t14_enough_are_enough_and_too_few_are_a_failure(
    mesh: Mesh, tenant: str, fields: dict[str, Any], needed: int
) -> None:
    async with worker(mesh, tenant) as agent:
        parent, children = await distribute(agent.wire, subtasks=parts(5), **fields)
        tasks = await given(agent, 5)
        for number in range(needed):
            assert (await get(agent.wire, parent))["status"] == "running"
            await agent.complete(tasks[str(number)], number)
        ended = await wait(agent.wire, parent)
        results = [number if number < needed else None for number in range(5)]
        assert ended["result"] == {"results": results, "completed": needed, "subtasks": 5}
        assert (await statuses(agent.wire, children))[needed:] == ["cancelled"] * (5 - needed)
        parent, children = await distribute(agent.wire, subtasks=parts(5), **fields)
        tasks = await given(agent, 5)
        for number in range(5 - needed + 1):
            assert (await get(agent.wire, parent))["status"] == "running"
            await agent.say("fail", tasks[str(number)])
        assert (await wait(agent.wire, parent))["status"] == "failed"
        assert (await statuses(agent.wire, children))[5 - needed + 1 :] == ["cancelled"] * (needed - 1)


async def test_t14_best_of_takes_the_highest(mesh: Mesh, tenant: str) -> None:
    async with worker(mesh, tenant) as agent:
        parent, children = await distribute(
            agent.wire, subtasks=parts(3), completion="best_of", best_of_field="quality"
        )
        tasks = await given(agent, 3)
        for title, quality in (("0", 0.5), ("1", 0.9), ("2", 0.7)):
            await agent.complete(tasks[title], {"quality": quality})
        assert (await wait(agent.wire, parent))["result"] == {
            "task_id": children[1]["id"], "position": 1, "result": {"quality": 0.9},
        }  # fmt: skip


async def test_t14_sequential_goes_one_after_another(mesh: Mesh, tenant: str) -> None:
    async with worker(mesh, tenant) as agent:
        parent, children = await distribute(agent.wire, subtasks=parts(3), distribution="sequential")
        for number in range(3):
            waiting = [child["blocked"] for child in [await get(agent.wire, child) for child in children]]
            assert waiting == [place > number for place in range(3)]
            task = await agent.next_task()
            assert (task["title"], task["parameters"]) == (str(number), {})
            await agent.complete(task, number)
        assert (await wait(agent.wire, parent))["result"]["results"] == [0, 1, 2]


async def test_t14_a_step_that_fails_ends_the_sequence(mesh: Mesh, tenant: str) -> None:
    async with worker(mesh, tenant) as agent:
        parent, children = await distribute(agent.wire, subtasks=parts(3), distribution="sequential")
        await agent.say("fail", await agent.next_task())
        assert (await wait(agent.wire, parent))["status"] == "failed"
        assert await statuses(agent.wire, children) == ["failed", "cancelled", "cancelled"]


async def test_t14_a_pipeline_hands_each_result_on(mesh: Mesh, tenant: str) -> None:
    async with worker(mesh, tenant) as agent:
        steps = parts(3, parameters={"own": True})
        parent, _ = await distribute(agent.wire, subtasks=steps, distribution="pipeline")
        expected: dict[str, Any] = {"own": True}
        for number in range(3):
            task = await agent.next_task()
            assert task["parameters"] == expected
            expected = {"own": True, "input": {"made by": number}}
            await agent.complete(task, {"made by": number})
        assert (await wait(agent.wire, parent))["result"] == {"made by": 2}


async def test_t14_map_reduce_reduces_what_the_maps_made(mesh: Mesh, tenant: str) -> None:
    async with worker(mesh, tenant) as agent:
        parent, children = await distribute(
            agent.wire, subtasks=parts(3), distribution="map_reduce", reduce=parts(1, parameters={"sum": "it"})[0]
        )
        assert [child["blocked"] for child in children] == [False, False, False, True]
        tasks = await given(agent, 3)
        for title in ("1", "2", "0"):
            await agent.complete(tasks[title], int(title) + 1)
        reduce = await agent.next_task()
        assert (reduce["id"], reduce["parameters"]) == (children[3]["id"], {"sum": "it", "inputs": [1, 2, 3]})
        await agent.complete(reduce, 6)
        assert (await wait(agent.wire, parent))["result"] == 6


async def test_t14_the_reduce_begins_when_enough_maps_are_there_and_spares_the_rest(mesh: Mesh, tenant: str) -> None:
    async with worker(mesh, tenant) as agent:
        parent, children = await distribute(
            agent.wire, subtasks=parts(3), distribution="map_reduce", completion="majority", reduce=parts(1)[0]
        )
        tasks = await given(agent, 3)
        await agent.complete(tasks["2"], "two")
        await agent.complete(tasks["0"], "zero")
        reduce = await agent.next_task()
        assert reduce["parameters"] == {"inputs": ["zero", "two"]}
        assert await statuses(agent.wire, children) == ["completed", "cancelled", "completed", "assigned"]
        await agent.say("fail", reduce)
        assert (await wait(agent.wire, parent))["status"] == "failed"


async def test_t14_a_distributed_task_times_out_and_is_cancelled_as_a_whole(mesh: Mesh, tenant: str) -> None:
    async with worker(mesh, tenant) as agent:
        late, late_children = await distribute(agent.wire, subtasks=parts(2), timeout_s=0.3)
        assert (await wait(agent.wire, late, within_s=5))["status"] == "timed_out"
        assert await statuses(agent.wire, late_children) == ["cancelled"] * 2
        parent, children = await distribute(agent.wire, subtasks=parts(3), distribution="pipeline")
        await agent.wire.call("task.cancel", task_id=parent["id"])
        assert await statuses(agent.wire, [parent, *children]) == ["cancelled"] * 4


async def test_t14_a_subtask_is_retried_like_any_task(mesh: Mesh, tenant: str) -> None:
    async with worker(mesh, tenant) as agent:
        parent, _ = await distribute(agent.wire, subtasks=parts(2, max_retries=1))
        tasks = await given(agent, 2)
        await agent.say("fail", tasks["0"])
        await agent.complete(tasks["1"], "one")
        assert (await get(agent.wire, parent))["status"] == "running"
        again = await agent.next_task()
        assert (again["title"], again["attempt"]) == ("0", 2)
        await agent.complete(again, "zero")
        assert (await wait(agent.wire, parent))["result"]["results"] == ["zero", "one"]
        assert (await refusal(agent.wire, "task.retry", task_id=parent["id"])).reason == "task.state"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"completion": "threshold"}, "threshold"),
        ({"completion": "threshold", "threshold": 4}, "threshold"),
        ({"threshold": 2}, "threshold"),
        ({"distribution": "map_reduce"}, "reduce"),
        ({"reduce": {"title": "r"}}, "reduce"),
        ({"distribution": "pipeline", "completion": "any"}, "completion"),
        ({"distribution": "map_reduce", "reduce": {"title": "r"}, "completion": "best_of"}, "completion"),
        ({"required_capabilities": ["part"]}, "required_capabilities"),
        ({"assign": "pull"}, "assign"),
        ({"subtasks": []}, "subtasks"),
    ],
)
async def test_t14_senseless_combinations_are_refused_and_leave_nothing(
    mesh: Mesh, tenant: str, fields: dict[str, Any], field: str
) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        refused = await refusal(
            wire, "task.create_distributed", **{"title": "senseless", "subtasks": parts(3), **fields}
        )
        assert (refused.kind, refused.data["field"]) == ("invalid_params", field)
        assert (await wire.call("task.stats"))["total"] == 0


async def test_t14_a_hundred_subtasks_that_end_at_once_end_their_parent_once(mesh: Mesh, tenant: str) -> None:
    async with await Agent.join(mesh, tenant, "wide", "part", concurrency=100) as agent:
        parent, _ = await distribute(agent.wire, subtasks=parts(100))
        tasks = await given(agent, 100)
        beats = [agent.wire.call("task.heartbeat", task_id=t["id"], attempt=1) for t in tasks.values()]
        ends = [agent.complete(task, int(title)) for title, task in tasks.items()]
        said = await asyncio.gather(
            *(call for pair in zip(beats, ends, strict=True) for call in pair), return_exceptions=True
        )
        assert not [answer for answer in said[1::2] if isinstance(answer, BaseException)]
        ended = await wait(agent.wire, parent)
        assert ended["result"]["results"] == list(range(100))
        history = await agent.wire.call("task.history", task_id=parent["id"])
        assert [event["type"] for event in history["events"]] == ["task.created", "task.completed"]
