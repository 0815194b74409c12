"""How parameters come over HTTP: in the path, the query, a header or the body, each named when it is wrong."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import unquote

import pytest

from tests.edges.rest import Rest, new_agent, new_task

NOBODY = "00000000-0000-7000-8000-000000000000"


@pytest.mark.parametrize(
    "query",
    ["status=pending&status=running", "status=pending,running", "status=running,pending&status=cancelled"],
)
async def test_a_list_is_repeated_or_has_commas(rest: Rest, tenant: str, query: str) -> None:
    task = await new_task(rest, tenant)
    found = await rest.call("GET", f"/tasks?{query}", tenant)
    assert [found["id"] for found in found["tasks"]] == [task["id"]]
    assert (await rest.call("GET", "/tasks?status=completed,failed", tenant))["tasks"] == []


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/tasks?limit=abc", "limit"),
        ("/tasks?limit=", "limit"),
        ("/tasks?limit=0", "limit"),
        ("/tasks?limit=201", "limit"),
        ("/tasks?limit=99999999999999999999999999", "limit"),
        ("/tasks?limit=1.5", "limit"),
        ("/tasks?limit=3&limit=4", "limit"),
        ("/tasks?parent_id=null", "parent_id"),
        ("/tasks?parent_id=17", "parent_id"),
        ("/tasks?status=sleeping", "status[0]"),
        ("/tasks?status=pending,", "status[1]"),
        ("/tasks?cursor=here", "cursor"),
        ("/tasks?type=%00", "type"),
        ("/tasks?tag=a%0A", "tag"),
        ("/tasks?nonsense=1", "nonsense"),
        ("/tasks?idempotency_key=1", "idempotency_key"),
        ("/tasks/17", "task_id"),
        ("/tasks/%FF", "task_id"),
        ("/tasks/17/wait?timeout_ms=0", "task_id"),
        (f"/tasks/{NOBODY}/wait?timeout_ms=60001", "timeout_ms"),
        ("/tasks/stats?since=yesterday", "since"),
        ("/tasks/stats?since=17.5", "since"),
        ("/tasks/stats?since=2026-01-31T12:00:00", "since"),
        ("/events/list?since=MS4x", "cursor"),
        ("/events/list?topics=tenant,weather", "topics"),
    ],
)
async def test_what_is_wrong_in_a_url_is_named(rest: Rest, tenant: str, path: str, field: str) -> None:
    problem = await rest.problem("GET", path, tenant)
    assert (problem["kind"], problem["field"]) == ("invalid_params", field), problem


@pytest.mark.parametrize("text", ["NaN", "nan", "Infinity", "-inf"])
async def test_what_is_no_number_in_json_is_none_in_a_url(rest: Rest, tenant: str, text: str) -> None:
    problem = await rest.problem("GET", f"/workers/optimal?min_health={text}", tenant)
    assert (problem["field"], problem["detail"]) == ("min_health", "min_health: Expected `float`, got `str`")


async def test_an_inbox_is_an_agents(rest: Rest, tenant: str) -> None:
    for path in ("/events/list?topics=inbox", "/events?topics=inbox"):
        problem = await rest.problem("GET", path, tenant)
        assert (problem["kind"], problem["reason"]) == ("conflict", "session.no_agent"), problem


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "title"),
        ({"title": None}, "title"),
        ({"title": 17}, "title"),
        ({"title": ""}, "title"),
        ({"title": "a\n"}, "title"),
        ({"title": "x" * 201}, "title"),
        ({"title": "x", "priority": 6}, "priority"),
        ({"title": "x", "priority": "3"}, "priority"),
        ({"title": "x", "tags": "one"}, "tags"),
        ({"title": "x", "tags": ["one", "two words"]}, "tags[1]"),
        ({"title": "x", "parameters": []}, "parameters"),
        ({"title": "x", "deadline": "2026-01-31T12:00:00"}, "deadline"),
        ({"title": "x", "assign": "somebody"}, "assign"),
        ({"title": "x", "nonsense": 1}, "nonsense"),
        ({"title": "x", "idempotency_key": ""}, "idempotency_key"),
    ],
)
async def test_what_is_wrong_in_a_body_is_named(rest: Rest, tenant: str, body: dict[str, Any], field: str) -> None:
    problem = await rest.problem("POST", "/tasks", tenant, json=body)
    assert (problem["kind"], problem["field"]) == ("invalid_params", field), problem
    assert (await rest.call("GET", "/tasks", tenant))["tasks"] == []


async def test_a_body_takes_no_parameters_from_the_query(rest: Rest, tenant: str) -> None:
    problem = await rest.problem("POST", "/tasks?priority=5", tenant, json={"title": "x"})
    assert (problem["kind"], problem["field"]) == ("invalid_params", "priority")


async def test_what_stands_in_path_and_body_must_say_the_same(rest: Rest, tenant: str) -> None:
    task = await new_task(rest, tenant)
    path = f"/tasks/{task['id']}/cancel"
    problem = await rest.problem("POST", path, tenant, json={"task_id": NOBODY})
    assert (problem["kind"], problem["field"]) == ("invalid_params", "task_id")
    cancelled = await rest.call("POST", path, tenant, json={"task_id": task["id"]})
    assert cancelled["task"]["status"] == "cancelled"


@pytest.mark.parametrize(
    "written",
    [
        "eu/images",
        "eu%2Fimages",
        "a/b%2Fc",
        "eu/pause",
        "pause%2Fpause",
        "eu/",
        "a%2F..%2Fb",
        "a//b",
        "a%2F%2Fb",
        "plain",
    ],
)
async def test_a_queue_s_name_may_hold_slashes_and_even_a_verb(rest: Rest, tenant: str, written: str) -> None:
    path, queue = f"/queues/{written}", unquote(written)
    paused = await rest.call("POST", f"{path}/pause", tenant, json={"reason": "deploy"})
    assert (paused["queue"]["queue"], paused["queue"]["reason"]) == (queue, "deploy")
    assert (await rest.call("POST", f"{path}/limit", tenant, json={"rate_per_s": 5}))["queue"]["rate_per_s"] == 5
    assert (await rest.call("POST", f"{path}/resume", tenant))["queue"]["paused_at"] is None
    assert (await rest.call("POST", f"{path}/purge", tenant))["purged"] == 0
    named = [each["queue"] for each in (await rest.call("GET", "/jobs/stats", tenant))["queues"]]
    assert named == [queue]


async def test_below_a_queue_there_are_only_its_verbs(rest: Rest, tenant: str) -> None:
    assert (await rest.problem("POST", "/queues/eu/images", tenant))["kind"] == "unknown_method"
    assert (await rest.problem("POST", "/queues/pause", tenant))["kind"] == "unknown_method"
    nameless = await rest.problem("POST", "/queues//pause", tenant)
    assert (nameless["kind"], nameless["field"]) == ("invalid_params", "queue")


async def test_an_empty_body_is_an_empty_object(rest: Rest, tenant: str) -> None:
    task = await new_task(rest, tenant)
    cancelled = await rest.call("POST", f"/tasks/{task['id']}/cancel", tenant, content=b"")
    assert cancelled["task"]["status"] == "cancelled"


async def test_patch_and_delete(rest: Rest, tenant: str) -> None:
    agent = await new_agent(rest, tenant, capabilities=["sing"])
    changed = await rest.call("PATCH", f"/agents/{agent['id']}", tenant, json={"concurrency": 7})
    assert (changed["agent"]["concurrency"], changed["agent"]["capabilities"]) == (7, ["sing"])
    gone = await rest.call("DELETE", f"/agents/{agent['id']}", tenant)
    assert gone["agent"]["status"] == "offline"
    assert (await rest.call("GET", "/agents?capability=sing", tenant))["agents"] == []


async def test_pages_show_everything_once_newest_first(rest: Rest, tenant: str) -> None:
    made = [(await new_task(rest, tenant))["id"] for _ in range(7)]
    seen: list[str] = []
    sizes = []
    page: dict[str, Any] = {"next_cursor": None}
    while True:
        cursor = f"&cursor={page['next_cursor']}" if page["next_cursor"] else ""
        page = await rest.call("GET", f"/tasks?limit=3{cursor}", tenant)
        sizes.append(len(page["tasks"]))
        seen += [task["id"] for task in page["tasks"]]
        if page["next_cursor"] is None:
            break
    assert seen == made[::-1]
    assert sizes == [3, 3, 1]


async def test_an_idempotency_key_is_a_header(rest: Rest, tenant: str) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    first = await rest.ask("POST", "/tasks", tenant, json={"title": "once"}, headers=headers)
    again = await rest.ask("POST", "/tasks", tenant, json={"title": "once"}, headers=headers)
    assert first.status_code == again.status_code == 201
    assert first.content == again.content
    assert len((await rest.call("GET", "/tasks", tenant))["tasks"]) == 1
    other = await rest.problem("POST", "/tasks", tenant, json={"title": "other"}, headers=headers)
    assert (other["status"], other["kind"]) == (422, "idempotency_mismatch")


async def test_an_idempotency_key_said_twice_must_be_the_same(rest: Rest, tenant: str) -> None:
    body = {"title": "once", "idempotency_key": "a"}
    problem = await rest.problem("POST", "/tasks", tenant, json=body, headers={"Idempotency-Key": "b"})
    assert (problem["kind"], problem["field"]) == ("invalid_params", "idempotency_key")
    await rest.call("POST", "/tasks", tenant, json=body, headers={"Idempotency-Key": "a"})


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_an_idempotency_key_has_bounds(rest: Rest, tenant: str, key: str) -> None:
    problem = await rest.problem("POST", "/tasks", tenant, json={"title": "x"}, headers={"Idempotency-Key": key})
    assert (problem["kind"], problem["field"]) == ("invalid_params", "idempotency_key")


async def test_a_deletion_takes_an_idempotency_key_too(rest: Rest, tenant: str) -> None:
    agent = await new_agent(rest, tenant)
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    first = await rest.ask("DELETE", f"/agents/{agent['id']}", tenant, headers=headers)
    again = await rest.ask("DELETE", f"/agents/{agent['id']}", tenant, headers=headers)
    assert first.status_code == again.status_code == 200
    assert first.content == again.content


async def test_what_creates_says_so(rest: Rest, tenant: str) -> None:
    for path, body, status in [
        ("/tasks", {"title": "x"}, 201),
        ("/tasks/batch", {"tasks": [{"title": "x"}]}, 201),
        ("/tasks/distributed", {"title": "x", "subtasks": [{"title": "y"}]}, 201),
        ("/keys", {"kind": "user"}, 201),
        ("/agents", {"name": "a"}, 200),
        ("/agents/discover", {"capabilities": []}, 200),
    ]:
        assert (await rest.ask("POST", path, tenant, json=body)).status_code == status, path
