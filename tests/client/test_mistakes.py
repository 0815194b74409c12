"""Mistakes that are easily made with the client: each is told at once, and as what it is."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from devmesh.client import BlockingJobContext, BlockingTaskContext, Client, JobContext, MeshError, TaskContext
from devmesh.client import Mesh as Agents
from tests.client.agents import at_work
from tests.harness import Mesh, eventually

WITHIN_S = 20.0


def plain(_: object) -> None: ...


def yields(_: object) -> Any:
    yield 1


async def answer() -> str:
    return "an answer"


DECLARATIONS: dict[str, tuple[Callable[[Agents], object], str]] = {
    "no call": (lambda agents: agents.agent(plain), r"name: expected one, as in @mesh.agent\('summarizer'\), and not"),  # type: ignore[arg-type]
    "no name": (lambda agents: agents.agent(""), "name: expected 1 to 200 characters on one line"),
    "capability": (lambda agents: agents.agent("x", capabilities=["a b"]), "capabilities: expected 1 to 100 letters"),
    "number": (lambda agents: agents.agent("x", capabilities=[5]), r"capabilities: expected a name, as in \['summ"),  # type: ignore[list-item]
    "none at once": (lambda agents: agents.agent("x", concurrency=0), "concurrency: expected a whole number from 1 to"),
    "kind": (lambda agents: agents.agent("x", kind="robot"), "kind: expected one of llm, tool, human, worker, custom"),  # type: ignore[arg-type]
    "class": (lambda agents: agents.agent("x")(dict), "agent 'x': expected a function, and not a class"),
    "yields": (lambda agents: agents.agent("x")(yields), "agent 'x': a function that yields has no result"),
    "takes nothing": (lambda agents: agents.agent("x")(lambda: 1), "is called with the task and nothing else"),
    "codec": (lambda _: Agents(codec="xml"), "codec: expected one of json, msgpack, and not 'xml'"),  # type: ignore[arg-type]
    "client's codec": (lambda _: Client(codec="xml"), "codec: expected one of json, msgpack, and not 'xml'"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("declare", "said"), DECLARATIONS.values(), ids=DECLARATIONS.keys())
def test_what_can_be_no_agent_is_refused_where_it_is_declared(declare: Callable[[Agents], object], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        declare(Agents("ws://nowhere/ws", "dm_key"))


def test_capabilities_may_come_from_whatever_gives_them_once() -> None:
    agents = Agents("ws://nowhere/ws", "dm_key")
    agents.agent("x", capabilities=iter(["a", "b"]))(plain)  # type: ignore[arg-type]
    assert agents._declared["x"].registration["capabilities"] == ["a", "b"]


SCRIPT = """
from devmesh.client import Mesh
mesh = Mesh("ws://127.0.0.1:1/ws", "dm_key")

@mesh.job("own")
def own(job): pass

import handlers
if __name__ == "__main__":
    mesh.run()
"""
HANDLERS = """
from script import mesh

@mesh.job("far")
def far(job): pass
"""


def test_a_script_that_its_handlers_import_says_what_nobody_would_run(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "handlers.py").write_text(HANDLERS)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=WITHIN_S)
    said = (
        "ValueError: script.py is here twice, as the script and as the module script, whose mesh has far and is not run"
    )
    assert (done.returncode, said in done.stderr) == (1, True), done.stderr


SEVERAL = """
from devmesh.client import Mesh
one, other = Mesh("ws://127.0.0.1:1/ws", "dm_key"), Mesh("ws://127.0.0.1:1/ws", "dm_key")
one.job("one")(lambda job: None)
other.job("other")(lambda job: None)

if __name__ == "__main__":
    import several
    print(one._declared_elsewhere())
"""


def test_a_script_that_is_imported_as_well_may_run_one_of_several_meshes(tmp_path: Path) -> None:
    (tmp_path / "several.py").write_text(SEVERAL)
    done = subprocess.run(
        [sys.executable, "several.py"], cwd=tmp_path, capture_output=True, text=True, timeout=WITHIN_S
    )
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stdout + done.stderr


async def test_a_client_that_nobody_has_connected_says_so_at_once() -> None:
    client, began_s = Client("ws://nowhere/ws", "dm_key"), time.monotonic()
    with pytest.raises(MeshError, match="not connected: use `async with Client") as raised:
        await client.call("task.list")
    assert (raised.value.kind, raised.value.retryable) == ("invalid_request", False)
    assert time.monotonic() - began_s < client.timeout_s / 2


async def error_of(client: Client, job_id: str) -> dict[str, str]:
    """What a job has failed with, once it has."""
    seen: dict[str, Any] = {}

    async def has_failed() -> bool:
        seen.update((await client.call("job.get", job_id=job_id))["job"])
        return bool(seen["status"] == "FAILED")

    await eventually(has_failed, "it has failed")
    error: dict[str, str] = seen["error"]
    return error


async def test_a_result_for_which_nobody_has_waited_is_told_as_that(mesh: Mesh, tenant: str) -> None:
    queue = f"q{uuid.uuid4().hex}"
    agents = Agents(mesh.ws_url, tenant, worker=queue)

    @agents.job("coroutine", queue=queue)
    async def coroutine(_: JobContext) -> Awaitable[str]:
        return answer()

    @agents.job("plain", queue=queue)
    def called(_: BlockingJobContext) -> Awaitable[str]:
        return answer()

    @agents.agent("forgetful", capabilities=["forget"])
    def forgetful(_: BlockingTaskContext) -> Awaitable[str]:
        return answer()

    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        for job_type in ("coroutine", "plain"):
            job_id = (await client.call("job.enqueue", type=job_type, queue=queue))["job"]["id"]
            error = await error_of(client, job_id)
            assert error["type"] == "UnusableResult"
            assert "it is a coroutine, for which nobody has waited: await it" in error["message"]
        task = await client.tasks.create("forget it", required_capabilities=["forget"])
        ended = await client.tasks.wait(task.id, timeout_s=WITHIN_S)
        assert (ended.status, ended.attempt, ended.error["type"]) == ("failed", 1, "UnusableResult")
        assert "await it" in ended.error["message"]


async def test_a_handler_whose_call_is_a_coroutine_runs_in_the_loop(mesh: Mesh, tenant: str) -> None:
    class Handler:
        async def __call__(self, task: TaskContext) -> str:
            asyncio.get_running_loop()  # raises outside of one
            return task.title

    agents = Agents(mesh.ws_url, tenant)
    agents.agent("object", capabilities=["call"])(Handler())
    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        task = await client.tasks.create("called", required_capabilities=["call"])
        assert (await client.tasks.wait(task.id, timeout_s=WITHIN_S)).result == "called"


async def test_a_handler_sees_of_its_job_what_decides_on_it(mesh: Mesh, tenant: str) -> None:
    queue = f"q{uuid.uuid4().hex}"
    agents, seen = Agents(mesh.ws_url, tenant, worker=queue), list[tuple[str, int, int]]()

    @agents.job("look", queue=queue)
    def look(job: BlockingJobContext) -> None:
        seen.append((job.queue, job.priority, job.max_retries))

    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        await client.call("job.enqueue", type="look", queue=queue, priority=5, max_retries=7)
        await eventually(lambda: seen == [(queue, 5, 7)], "it has looked")
