"""`If-Match` and `if_version`: a change for a thing as its caller has seen it is not made to a later one."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from devmesh import operations
from devmesh.operations.registry import REGISTRY
from tests.edges.rest import PREFIX, Rest, new_agent, new_task
from tests.harness import Mesh
from tests.wire import Wire, WireError

operations.load_all()
CHANGES = sorted(name for name, operation in REGISTRY.items() if "if_version" in operation.params.__struct_fields__)


def if_match(tag: str) -> dict[str, str]:
    return {"If-Match": tag}


async def tag_of(rest: Rest, path: str, key: str) -> str:
    return (await rest.ask("GET", path, key)).headers["etag"]


async def test_of_two_changes_to_what_both_have_seen_one_is_made(rest: Rest, tenant: str) -> None:
    agent = await new_agent(rest, tenant)
    path = f"/agents/{agent['id']}"
    seen = await tag_of(rest, path, tenant)
    answers = await asyncio.gather(
        *(
            rest.ask("PATCH", path, tenant, json={"concurrency": wanted}, headers=if_match(seen))
            for wanted in range(2, 12)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [200, *[412] * 9]
    [made] = [answer for answer in answers if answer.status_code == 200]
    shown = await rest.call("GET", path, tenant)
    assert shown["agent"]["concurrency"] == made.json()["agent"]["concurrency"]
    assert shown["agent"]["version"] == agent["version"] + 1
    again = await rest.ask("PATCH", path, tenant, json={"concurrency": 20}, headers=if_match(made.headers["etag"]))
    assert (again.status_code, again.json()["agent"]["concurrency"]) == (200, 20)


async def test_a_change_that_comes_too_late_is_told_with_the_version(rest: Rest, tenant: str) -> None:
    task = await new_task(rest, tenant)
    await rest.call("POST", f"/tasks/{task['id']}/cancel", tenant)
    problem = await rest.problem("POST", f"/tasks/{task['id']}/retry", tenant, headers=if_match('"1-00000000"'))
    assert (problem["status"], problem["title"]) == (412, "Precondition Failed")
    assert (problem["kind"], problem["reason"], problem["field"]) == ("conflict", "task.version", "If-Match")
    assert "version 2" in problem["detail"]
    assert (await rest.call("GET", f"/tasks/{task['id']}", tenant))["task"]["status"] == "cancelled"


async def test_what_changes_without_a_version_does_not_count(rest: Rest, tenant: str) -> None:
    agent = await new_agent(rest, tenant)
    path = f"/agents/{agent['id']}"
    seen = await tag_of(rest, path, tenant)
    await rest.call("POST", f"{path}/heartbeat", tenant, json={"load": 0.5})
    assert await tag_of(rest, path, tenant) != seen
    assert (await rest.ask("POST", f"{path}/drain", tenant, headers=if_match(seen))).status_code == 200


@pytest.mark.parametrize(
    "tag", ["*", '"1"', '"1-00000000"', '"7", "1-00000000"', 'W/"2", "other","1" , "3"', '"a,\\", "1"']
)
async def test_tags_that_match(rest: Rest, tenant: str, tag: str) -> None:
    task = await new_task(rest, tenant)
    path = f"/tasks/{task['id']}"
    assert (await rest.ask("GET", path, tenant, headers=if_match(tag))).status_code == 200
    answer = await rest.ask("POST", f"{path}/cancel", tenant, headers=if_match(tag))
    assert (answer.status_code, answer.json()["task"]["status"]) == (200, "cancelled")


@pytest.mark.parametrize(
    "tag",
    [
        'W/"1-00000000"', 'W/"1"', '"2"', '"0"', '"01"', '"99999999999"', '"other"', '""', '"-1"', '"2", "3"',
        'W/"1", "2", "3"', "", "1", "1-00000000", '"1', "**", '"1-0000000"', '"ü"',
    ],
)  # fmt: skip
async def test_tags_that_do_not(rest: Rest, tenant: str, tag: str) -> None:
    task = await new_task(rest, tenant)
    path = f"/tasks/{task['id']}"
    for method, place in (("POST", f"{path}/cancel"), ("GET", path)):
        problem = await rest.problem(method, place, tenant, headers={b"If-Match": tag.encode()})
        assert (problem["status"], problem["reason"]) == (412, "task.version")
        assert ("no ETag" in problem["detail"]) == ("2" not in tag)
    assert (await rest.call("GET", path, tenant))["task"]["status"] == "pending"


async def test_tags_may_come_in_several_headers(rest: Rest, tenant: str) -> None:
    path = f"{PREFIX}/tasks/{(await new_task(rest, tenant))['id']}/cancel"
    wrong = [("X-API-Key", tenant), ("If-Match", '"7"'), ("If-Match", '"8"')]
    assert (await rest.http.post(path, headers=wrong)).status_code == 412
    right = [("X-API-Key", tenant), ("If-Match", '"7"'), ("If-Match", '"1"')]
    assert (await rest.http.post(path, headers=right)).status_code == 200


async def test_what_is_shown_may_be_asked_for_in_one_version(rest: Rest, tenant: str) -> None:
    agent = await new_agent(rest, tenant)
    path = f"/agents/{agent['id']}"
    for tag in ("*", await tag_of(rest, path, tenant)):
        answer = await rest.ask("GET", path, tenant, headers=if_match(tag))
        assert (answer.status_code, answer.json()["agent"]["id"]) == (200, agent["id"])
        assert (await rest.ask("HEAD", path, tenant, headers=if_match(tag))).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/tasks"),
        ("POST", "/tasks"),
        ("POST", "/agents"),
        ("POST", f"/tasks/{uuid.UUID(int=0)}/heartbeat"),
        ("POST", f"/agents/{uuid.UUID(int=0)}/heartbeat"),
        ("POST", "/keys"),
    ],
)
async def test_a_condition_that_cannot_be_honoured_is_refused(rest: Rest, tenant: str, method: str, path: str) -> None:
    problem = await rest.problem(method, path, tenant, json={}, headers=if_match('"1"'))
    assert (problem["status"], problem["field"]) == (400, "If-Match")


async def test_what_is_not_there_is_not_found_whatever_the_condition(rest: Rest, tenant: str) -> None:
    for tag in ("*", '"1"', '"1", "2"'):
        for path in (f"/tasks/{uuid.uuid4()}/cancel", f"/agents/{uuid.uuid4()}/suspend"):
            problem = await rest.problem("POST", path, tenant, headers=if_match(tag))
            assert (problem["status"], problem["kind"]) == (404, "not_found")


async def test_a_body_and_a_header_say_the_same_or_are_refused(rest: Rest, tenant: str) -> None:
    task = await new_task(rest, tenant)
    path = f"/tasks/{task['id']}/cancel"
    problem = await rest.problem("POST", path, tenant, json={"if_version": 2}, headers=if_match('"1"'))
    assert (problem["status"], problem["field"]) == (400, "if_version")
    without = await rest.problem("POST", path, tenant, json={"if_version": 2})
    assert (without["status"], without["kind"], without["reason"]) == (409, "conflict", "task.version")
    assert (await rest.ask("POST", path, tenant, json={"if_version": 1}, headers=if_match('"1"'))).status_code == 200


async def test_a_repeated_change_gets_its_answer_although_its_version_is_past(rest: Rest, tenant: str) -> None:
    agent = await new_agent(rest, tenant)
    headers = {**if_match(f'"{agent["version"]}"'), "Idempotency-Key": "once"}
    first, second = [
        await rest.ask("PATCH", f"/agents/{agent['id']}", tenant, json={"concurrency": 3}, headers=headers)
        for _ in range(2)
    ]
    assert (first.status_code, second.status_code, second.content) == (200, 200, first.content)


@pytest.mark.parametrize("name", CHANGES)
async def test_every_change_of_a_version_is_refused_for_another(rest: Rest, mesh: Mesh, tenant: str, name: str) -> None:
    """Over the WebSocket, where it is a parameter like any other; then with the right one."""
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        agent = (await wire.call("agent.register", name="holder"))["agent"]
        other = (await wire.call("agent.register", name="other"))["agent"]
        task = (await wire.call("task.create", title="a task", assign="pull"))["task"]
        if name == "task.retry":
            task = (await wire.call("task.cancel", task_id=task["id"]))["task"]
        elif name == "task.accept":
            task = (await wire.call("task.reassign", task_id=task["id"], to_agent=agent["id"]))["task"]
        elif name not in ("task.cancel", "task.reassign"):
            [task] = (await wire.call("task.claim", agent_id=agent["id"]))["tasks"]
        asked: dict[str, Any] = {"agent_id": agent["id"]} if name.startswith("agent.") else {"task_id": task["id"]}
        more: dict[str, dict[str, Any]] = {
            "task.delegate": {"to_agent": other["id"]},
            "task.progress": {"progress": 0.5},
            "agent.update": {"description": "another"},
        }
        asked |= more.get(name, {})
        if "attempt" in REGISTRY[name].params.__struct_fields__:
            asked["attempt"] = task["attempt"]
        noun = name.partition(".")[0]
        version = {"agent": agent, "task": task}[noun]["version"]
        for wrong in (0, version - 1, version + 1):
            with pytest.raises(WireError) as refused:
                await wire.call(name, **asked, if_version=wrong)
            assert (refused.value.kind, refused.value.reason) == ("conflict", f"{noun}.version")
        changed = (await wire.call(name, **asked, if_version=version))[noun]
        assert changed["version"] > version
