"""What HTTP answers with: problems of every kind, methods, conditions, ids of requests, and the end of a caller's patience."""

from __future__ import annotations

import asyncio
import uuid

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from structlog.testing import capture_logs

from devmesh.edges.boundary import Resource, application
from tests.edges.rest import PREFIX, Rest, new_agent, new_key, new_task, problem_of

NOBODY = "00000000-0000-7000-8000-000000000000"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "credential.missing"),
        ({"Authorization": "Bearer"}, "credential.missing"),
        ({"Authorization": "Bearer nonsense"}, "credential.malformed"),
        ({"Authorization": "Basic dXNlcjpwYXNz"}, "credential.malformed"),
        ({"X-API-Key": "dm_" + "x" * 43}, "credential.unknown"),
    ],
)
async def test_w01_a_refused_credential_says_why(rest: Rest, headers: dict[str, str], reason: str) -> None:
    answer = await rest.ask("GET", "/tasks", None, headers=headers)
    problem = problem_of(answer)
    assert (problem["status"], problem["kind"], problem["reason"]) == (401, "unauthenticated", reason)
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_both_headers_carry_a_key(rest: Rest, tenant: str) -> None:
    for headers in ({"X-API-Key": tenant}, {"Authorization": f"bearer {tenant}"}):
        assert (await rest.ask("GET", "/tasks", None, headers=headers)).status_code == 200


async def test_a_key_without_the_scope_is_forbidden(rest: Rest, tenant: str) -> None:
    reader = (await new_key(rest, tenant, scopes=["read"]))["secret"]
    problem = await rest.problem("POST", "/tasks", reader, json={"title": "x"})
    assert (problem["status"], problem["kind"]) == (403, "forbidden")


async def test_a_thing_that_is_not_there_is_not_found(rest: Rest, tenant: str) -> None:
    problem = await rest.problem("GET", f"/tasks/{NOBODY}", tenant)
    assert (problem["status"], problem["kind"]) == (404, "not_found")


async def test_a_move_that_is_not_legal_is_a_conflict(rest: Rest, tenant: str) -> None:
    task = await new_task(rest, tenant)
    problem = await rest.problem("POST", f"/tasks/{task['id']}/retry", tenant)
    assert (problem["status"], problem["kind"], problem["reason"]) == (409, "conflict", "task.state")


@pytest.mark.parametrize(
    "path",
    ["/api/v1/nothing", "/api/v1/tasks/", "/api/v1", "/nothing", f"/api/v1/tasks/{NOBODY}/nothing", "/%00"],
)
async def test_a_path_that_is_not_there_is_a_problem_too(rest: Rest, path: str) -> None:
    problem = problem_of(await rest.http.get(path))
    assert (problem["status"], problem["kind"]) == (404, "unknown_method")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/v1/tasks", "GET, HEAD, OPTIONS, POST"),
        ("DELETE", "/api/v1/tasks/stats", "GET, HEAD, OPTIONS"),
        ("GET", "/api/v1/tasks/claim", "OPTIONS, POST"),
        ("TRACE", f"/api/v1/tasks/{NOBODY}", "GET, HEAD, OPTIONS"),
        ("PATCH", "/openapi.json", "GET, HEAD, OPTIONS"),
        ("PROPFIND", "/docs", "GET, HEAD, OPTIONS"),
        ("POST", "/readyz", "GET, HEAD, OPTIONS"),
    ],
)
async def test_a_method_that_a_path_does_not_have(rest: Rest, method: str, path: str, allowed: str) -> None:
    answer = await rest.http.request(method, path)
    problem = problem_of(answer)
    assert (problem["status"], problem["reason"]) == (405, "http.method")
    assert answer.headers["allow"] == allowed


async def test_options_says_what_there_is_and_head_leaves_the_body_out(rest: Rest, tenant: str) -> None:
    options = await rest.http.request("OPTIONS", f"{PREFIX}/tasks")
    assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
    task = await new_task(rest, tenant)
    whole = await rest.ask("GET", f"/tasks/{task['id']}", tenant)
    head = await rest.ask("HEAD", f"/tasks/{task['id']}", tenant)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    assert head.headers["etag"] == whole.headers["etag"]


async def test_a_request_keeps_its_id(rest: Rest) -> None:
    answer = await rest.http.get("/healthz", headers={"X-Request-Id": "my-own/17"})
    assert answer.headers["x-request-id"] == "my-own/17"
    for nonsense in ("", "two words", "x" * 129):
        made = (await rest.http.get("/healthz", headers={"X-Request-Id": nonsense})).headers["x-request-id"]
        assert str(uuid.UUID(made)) == made


async def test_an_unchanged_thing_is_not_sent_again(rest: Rest, tenant: str) -> None:
    task = await new_task(rest, tenant)
    path = f"/tasks/{task['id']}"
    first = await rest.ask("GET", path, tenant)
    tag = first.headers["etag"]
    assert tag.startswith('"1-')
    for given in (tag, f'"other", W/{tag}', "*"):
        unchanged = await rest.ask("GET", path, tenant, headers={"If-None-Match": given})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", tag)
    await rest.call("POST", f"{path}/cancel", tenant)
    changed = await rest.ask("GET", path, tenant, headers={"If-None-Match": tag})
    assert (changed.status_code, changed.json()["task"]["status"]) == (200, "cancelled")
    assert changed.headers["etag"].startswith('"2-')


async def test_a_change_without_a_version_is_a_change(rest: Rest, tenant: str) -> None:
    """Work that an agent is given makes no new version of the agent, but it is shown with it."""
    agent = await new_agent(rest, tenant)
    path = f"/agents/{agent['id']}"
    before = await rest.ask("GET", path, tenant)
    await new_task(rest, tenant)
    claimed = await rest.call("POST", "/tasks/claim", tenant, json={"agent_id": agent["id"]})
    assert len(claimed["tasks"]) == 1
    after = await rest.ask("GET", path, tenant, headers={"If-None-Match": before.headers["etag"]})
    assert (after.status_code, after.json()["agent"]["active_tasks"]) == (200, 1)


async def test_a_claim_ends_with_its_caller(rest: Rest, tenant: str) -> None:
    """A client that leaves while it waits must not be given a task that it will never hear of."""
    gone, here = await new_agent(rest, tenant, "gone"), await new_agent(rest, tenant, "here")
    body = {"agent_id": gone["id"], "wait_ms": 30_000}
    with pytest.raises(httpx.ReadTimeout):
        await rest.ask("POST", "/tasks/claim", tenant, json=body, timeout=httpx.Timeout(10.0, read=0.5))
    waiting = asyncio.create_task(
        rest.call("POST", "/tasks/claim", tenant, json={"agent_id": here["id"], "wait_ms": 20_000})
    )
    task = await new_task(rest, tenant)
    assert [claimed["id"] for claimed in (await waiting)["tasks"]] == [task["id"]]
    assert (await rest.call("GET", f"/tasks/{task['id']}", tenant))["task"]["assigned_to"] == here["id"]


async def test_what_nobody_foresaw_is_an_id_to_quote_and_nothing_of_the_inside() -> None:
    async def fail(_: Request) -> Response:
        raise RuntimeError("the password is tiger")

    inside = application([Route("/fails", Resource({"GET": fail}))])
    transport = httpx.ASGITransport(app=inside)
    with capture_logs() as logged:
        async with httpx.AsyncClient(transport=transport, base_url="http://tests") as http:
            answer = await http.get("/fails")
    problem = problem_of(answer)
    assert (problem["status"], problem["kind"], problem["retryable"]) == (500, "internal", False)
    assert "tiger" not in answer.text
    assert [line["error_id"] for line in logged if "error_id" in line] == [problem["error_id"]]
