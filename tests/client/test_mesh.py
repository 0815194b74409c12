"""Agents made with decorators: what becomes of results, exceptions and refusals."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from devmesh.client import BlockingTaskContext, Client, Fail, LeaseLost, MeshError, Reject, Task, TaskContext
from devmesh.client import Mesh as Agents
from tests.client.agents import at_work
from tests.harness import Mesh, eventually

WITHIN_S = 20.0


async def ended(client: Client, title: str = "a task", **details: Any) -> Task:
    """A task, created and waited for."""
    task = await client.tasks.create(title, **details)
    return await client.tasks.wait(task.id, timeout_s=WITHIN_S)


async def outcomes(client: Client, task: Task) -> list[str]:
    return [attempt.outcome.value for attempt in (await client.tasks.history(task.id)).attempts]


async def test_handlers_of_both_kinds_get_the_whole_task_and_their_results_come_back(mesh: Mesh, tenant: str) -> None:
    agents = Agents(mesh.ws_url, tenant)
    threads = []

    @agents.agent("coroutine", capabilities=["a"], concurrency=4, kind="llm", metadata={"model": "none"})
    async def coroutine(task: TaskContext) -> dict[str, Any]:
        await task.progress(0.5, "half")
        return {"sum": sum(task.parameters["numbers"]), "attempt": task.attempt, "priority": task.priority}

    @agents.agent("plain", capabilities=["b"])
    def plain(task: BlockingTaskContext) -> str:
        threads.append(threading.current_thread())
        task.progress(0.5, "half")
        subtask = task.create_subtask("below", assign="pull")
        return f"{task.title} {task.type} {task.tags} {task.required_capabilities} {subtask.parent_id == task.id}"

    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        task = await ended(client, parameters={"numbers": [1, 2, 3]}, required_capabilities=["a"], priority=4)
        assert task.result == {"sum": 6, "attempt": 1, "priority": 4}
        history = await client.tasks.history(task.id)
        assert [event.type.partition(".")[2] for event in history.events] == [
            "created", "assigned", "accepted", "progress", "completed",
        ]  # fmt: skip
        task = await ended(client, "count", type="words", tags=["x"], required_capabilities=["b"])
        assert task.result == "count words ['x'] ['b'] True"
        assert threads[0] is not threading.main_thread()
        found = {agent.name: agent async for agent in client.agents.each()}
        assert (found["coroutine"].kind, found["coroutine"].metadata) == ("llm", {"model": "none"})
        assert found["coroutine"].concurrency == 4


async def test_concurrency_is_what_was_declared(mesh: Mesh, tenant: str) -> None:
    agents = Agents(mesh.ws_url, tenant)
    running, most = 0, 0
    three = asyncio.Barrier(3)

    @agents.agent("three at once", concurrency=3)
    async def work(task: TaskContext) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await three.wait()
        running -= 1

    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        tasks = await client.tasks.create_many([{"title": f"task {number}"} for number in range(9)])
        for task in tasks:
            assert (await client.tasks.wait(task.id, timeout_s=WITHIN_S)).status == "completed"
    assert most == 3


async def test_an_exception_is_a_failed_attempt_and_another_follows(mesh: Mesh, tenant: str) -> None:
    agents = Agents(mesh.ws_url, tenant)

    @agents.agent("clumsy")
    async def work(task: TaskContext) -> int:
        if task.attempt == 1:
            raise KeyError("missing")
        return task.attempt

    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        task = await ended(client, max_retries=1)
        assert (task.status, task.result, task.retry_count) == ("completed", 2, 1)
        history = await client.tasks.history(task.id)
        assert history.attempts[0].error == {"type": "KeyError", "message": "'missing'"}
        task = await ended(client, max_retries=0)
        assert (task.status, task.error) == ("failed", {"type": "KeyError", "message": "'missing'"})


async def test_fail_says_what_and_whether_to_retry(mesh: Mesh, tenant: str) -> None:
    agents = Agents(mesh.ws_url, tenant)

    @agents.agent("strict")
    def work(task: BlockingTaskContext) -> None:
        raise Fail({"code": 7, "path": "a.txt"}, retryable=False)

    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        task = await ended(client, max_retries=5)
        assert (task.status, task.error, task.attempt) == ("failed", {"code": 7, "path": "a.txt"}, 1)


async def test_reject_leaves_the_task_to_another_agent(mesh: Mesh, tenant: str) -> None:
    agents = Agents(mesh.ws_url, tenant)
    refused = []

    @agents.agent("picky", capabilities=["a", "b"])  # round_robin gives it the first
    async def picky(task: TaskContext) -> None:
        refused.append(task.id)
        raise Reject("not mine")

    @agents.agent("willing", capabilities=["a"])
    async def willing(task: TaskContext) -> str:
        return "willing"

    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        tasks = [await ended(client, required_capabilities=["a"], strategy="round_robin") for _ in range(3)]
        assert [task.result for task in tasks] == ["willing"] * 3
        assert len(refused) == len(set(refused)) >= 1
        [first] = [task for task in tasks if task.id == refused[0]]
        assert await outcomes(client, first) == ["rejected", "completed"]


async def test_reject_after_progress_comes_too_late_and_is_a_failed_attempt(mesh: Mesh, tenant: str) -> None:
    agents = Agents(mesh.ws_url, tenant)

    @agents.agent("late")
    async def work(task: TaskContext) -> str:
        await task.progress(0.1)
        if task.attempt == 1:
            raise Reject("only now I see")
        return "after all"

    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        task = await ended(client)
        assert (task.result, await outcomes(client, task)) == ("after all", ["failed", "completed"])


@pytest.mark.parametrize(
    ("result", "why"),
    [({"it": object()}, "cannot be encoded"), ("x" * 2_000_000, "at the most")],
)
async def test_a_result_that_cannot_be_sent_fails_the_task_for_good_and_says_why(
    mesh: Mesh, tenant: str, result: object, why: str
) -> None:
    agents = Agents(mesh.ws_url, tenant)

    @agents.agent("odd")
    async def work(task: TaskContext) -> object:
        return result

    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        task = await ended(client, max_retries=3)
        assert (task.status, task.attempt, task.error["type"]) == ("failed", 1, "UnusableResult")
        assert why in task.error["message"]


@pytest.mark.parametrize(("retryable", "attempts"), [(True, 2), (False, 1)])
async def test_an_error_that_cannot_be_sent_is_told_in_other_words(
    mesh: Mesh, tenant: str, *, retryable: bool, attempts: int
) -> None:
    agents = Agents(mesh.ws_url, tenant)

    @agents.agent("odd")
    async def work(task: TaskContext) -> None:
        raise Fail(object(), retryable=retryable)

    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        task = await ended(client, max_retries=1)
        assert (task.status, task.attempt, task.error["type"]) == ("failed", attempts, "UnusableError")


class HalfMade(Fail):
    def __init__(self) -> None: ...


class Wordless(Exception):
    def __str__(self) -> str:
        raise KeyError("no words")


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (Wordless(), {"type": "Wordless", "message": "(its words cannot be had: KeyError)"}),
        (ValueError("no file \udc80"), {"type": "ValueError", "message": "no file ?"}),
        (SystemExit(2), {"type": "SystemExit", "message": "2"}),
        (KeyboardInterrupt(), {"type": "KeyboardInterrupt", "message": ""}),
        (HalfMade(), {"type": "AttributeError", "message": "'HalfMade' object has no attribute 'error'"}),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("is_blocking", [True, False])
async def test_whatever_a_handler_raises_is_a_failed_attempt_and_no_more(
    mesh: Mesh,
    tenant: str,
    caplog: pytest.LogCaptureFixture,
    raised: BaseException,
    told: dict[str, str],
    *,
    is_blocking: bool,
) -> None:
    caplog.set_level(logging.CRITICAL, "devmesh.client")  # pytest cannot carry such words to where it shows them
    agents = Agents(mesh.ws_url, tenant)

    def work(task: BlockingTaskContext | TaskContext) -> int:
        if task.attempt == 1:
            raise raised
        return task.attempt

    async def work_in_the_loop(task: TaskContext) -> int:
        return work(task)

    agents.agent("odd")(work if is_blocking else work_in_the_loop)
    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        task = await ended(client, max_retries=1)
        assert (task.status, task.result) == ("completed", 2)
        [first, _] = (await client.tasks.history(task.id)).attempts
        assert first.error == told


async def test_a_handler_may_hand_its_task_on(mesh: Mesh, tenant: str) -> None:
    agents = Agents(mesh.ws_url, tenant)

    @agents.agent("generalist", capabilities=["any"])
    async def generalist(task: TaskContext) -> str:
        await task.delegate(capabilities=["special"], reason="too hard for me")
        with pytest.raises(LeaseLost):
            await task.progress(0.5)
        return "this does not count"

    @agents.agent("specialist", capabilities=["special"])
    async def specialist(task: TaskContext) -> str:
        return "special"

    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        task = await ended(client, required_capabilities=["any"])
        assert (task.result, task.delegation_depth) == ("special", 1)
        history = await client.tasks.history(task.id)
        assert history.delegations[0]["reason"] == "too hard for me"


async def test_a_parent_may_wait_for_its_subtasks(mesh: Mesh, tenant: str) -> None:
    agents = Agents(mesh.ws_url, tenant)

    @agents.agent("parent", capabilities=["split"])
    async def parent(task: TaskContext) -> list[Any]:
        parts = [
            await task.create_subtask("part", required_capabilities=["double"], parameters={"n": number})
            for number in range(4)
        ]
        return [(await task.client.tasks.wait(part.id)).result for part in parts]

    @agents.agent("child", capabilities=["double"], concurrency=2)
    async def child(task: TaskContext) -> int:
        number: int = task.parameters["n"]
        return number * 2

    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        assert (await ended(client, required_capabilities=["split"])).result == [0, 2, 4, 6]


async def test_two_processes_of_one_name_run_each_task_once(mesh: Mesh, tenant: str) -> None:
    runs: list[tuple[int, Any]] = []

    def twin(number: int) -> Agents:
        agents = Agents(mesh.ws_url, tenant)

        @agents.agent("twin", concurrency=4)
        async def work(task: TaskContext) -> int:
            runs.append((number, task.id))
            return number

        return agents

    async with at_work(twin(1), twin(2)), Client(mesh.ws_url, tenant) as client:
        tasks = await client.tasks.create_many([{"title": f"task {number}"} for number in range(60)])
        for task in tasks:
            found = await client.tasks.wait(task.id, timeout_s=WITHIN_S)
            assert (found.status, found.attempt) == ("completed", 1)
    assert sorted(task_id for _, task_id in runs) == sorted(task.id for task in tasks)


async def test_tasks_that_wait_for_an_agent_are_done_when_it_comes_back(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as client:
        async with Client(
            mesh.ws_url, tenant
        ) as before:  # the agent's first life: it gets a task and never looks at it
            await before.agents.register("returning", concurrency=5)
            task = await client.tasks.create("waiting", lease_s=600)
            await eventually(lambda: _is_assigned(client, task), "the task is assigned")
        agents = Agents(mesh.ws_url, tenant)

        @agents.agent("returning", concurrency=5)
        async def work(task: TaskContext) -> int:
            return task.attempt

        async with at_work(agents):
            assert (await client.tasks.wait(task.id, timeout_s=WITHIN_S)).result == 1


async def _is_assigned(client: Client, task: Task) -> bool:
    return (await client.tasks.get(task.id)).status == "assigned"


async def test_what_cannot_go_on_is_raised(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as admin:
        await admin.agents.register("taken")
        other = await admin.call("key.create", kind="agent")
        agents = Agents(mesh.ws_url, other["secret"])

        @agents.agent("taken")
        async def work(task: TaskContext) -> None: ...

        with pytest.raises(MeshError) as raised:
            await asyncio.wait_for(agents.serve(), 10)
        assert raised.value.reason == "agent.name"


async def test_a_key_that_is_revoked_ends_the_mesh(mesh: Mesh, tenant: str) -> None:
    async with Client(mesh.ws_url, tenant) as admin:
        made = await admin.call("key.create", kind="agent")
        agents = Agents(mesh.ws_url, made["secret"])
        begun = asyncio.Event()

        @agents.agent("revoked")
        async def work(task: TaskContext) -> None:
            begun.set()
            await asyncio.Event().wait()

        serving = asyncio.create_task(agents.serve())
        await admin.tasks.create("endless")
        await asyncio.wait_for(begun.wait(), WITHIN_S)
        await admin.call("key.revoke", key_id=made["key"]["id"])
        with pytest.raises(MeshError) as raised:
            await asyncio.wait_for(serving, 15)
        assert raised.value.kind == "unauthenticated"


def test_mistakes_in_a_declaration_are_said_where_they_are_made() -> None:
    agents = Agents("ws://nowhere/ws", "dm_key")
    with pytest.raises(TypeError, match="expected a list"):
        agents.agent("x", capabilities="summarize")
    with pytest.raises(ValueError, match="has no agent"):
        asyncio.run(agents.serve())

    @agents.agent("x")
    def work(task: BlockingTaskContext) -> None: ...

    with pytest.raises(ValueError, match="declared twice"):
        agents.agent("x")

    async def runs_in_a_loop() -> None:
        agents.run()

    with pytest.raises(RuntimeError, match="await mesh"):
        asyncio.run(runs_in_a_loop())
