"""A REST client of the tests' own. Every answer is held against the served OpenAPI document: what is not declared fails."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

PREFIX = "/api/v1"


class Rest:
    def __init__(self, http: httpx.AsyncClient, document: dict[str, Any]) -> None:
        self.http, self.document = http, document

    async def ask(self, method: str, path: str, key: str | None, **request: Any) -> httpx.Response:
        """The answer, whatever it is. `path` is below /api/v1."""
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        headers |= request.pop("headers", {})
        answer = await self.http.request(method, PREFIX + path, headers=headers, **request)
        self._check(method, PREFIX + path, answer)
        return answer

    async def call(self, method: str, path: str, key: str, **request: Any) -> dict[str, Any]:
        """The result of a call that succeeds."""
        answer = await self.ask(method, path, key, **request)
        assert answer.status_code in (200, 201), answer.text
        result: dict[str, Any] = answer.json()
        return result

    async def problem(self, method: str, path: str, key: str | None, **request: Any) -> dict[str, Any]:
        """The problem that a call gets."""
        return problem_of(await self.ask(method, path, key, **request))

    def _check(self, method: str, path: str, answer: httpx.Response) -> None:
        """Whether the answer is one that the document declares for its operation."""
        assert answer.headers["x-request-id"]
        operation = self._operation("get" if method == "HEAD" else method.lower(), path.partition("?")[0])
        if operation is None:
            return
        declared = operation["responses"].get(str(answer.status_code))
        assert declared is not None, (
            f"{method} {path} answers {answer.status_code}, which is not declared: {answer.text}"
        )
        declared = self.resolve(declared)
        media_type = answer.headers.get("content-type", "").partition(";")[0]
        assert media_type in declared.get("content", {"": None}), f"{method} {path} answers {media_type}"
        named = {name.lower() for name in declared.get("headers", {})}
        for name in ("etag", "retry-after", "www-authenticate"):
            assert name not in answer.headers or name in named, f"{method} {path}: {name} is not declared"

    def _operation(self, method: str, path: str) -> dict[str, Any] | None:
        for template in sorted(self.document["paths"], key=lambda template: "{" in template):
            pattern = re.sub(r"{\w+}", "[^/]+", template)
            if re.fullmatch(pattern, path):
                found: dict[str, Any] | None = self.document["paths"][template].get(method)
                return found
        return None

    def resolve(self, thing: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in thing:
            place: Any = self.document
            for name in thing["$ref"].removeprefix("#/").split("/"):
                place = place[name]
            thing = place
        return thing


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Rest]:
    async with httpx.AsyncClient(base_url=url, timeout=30.0, trust_env=False) as http:
        document = (await http.get("/openapi.json")).json()
        yield Rest(http, document)


def problem_of(answer: httpx.Response) -> dict[str, Any]:
    """A problem that is whole and agrees with its answer."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["type"] == f"urn:devmesh:error:{problem['kind']}"
    assert problem["title"]
    assert problem["detail"]
    assert isinstance(problem["retryable"], bool)
    if "retry_after_ms" in problem:
        assert int(answer.headers["retry-after"]) * 1000 >= problem["retry_after_ms"]
    return problem


async def new_key(rest: Rest, admin: str, kind: str = "user", **asked: Any) -> dict[str, Any]:
    return await rest.call("POST", "/keys", admin, json={"kind": kind, **asked})


async def new_task(rest: Rest, key: str, **asked: Any) -> dict[str, Any]:
    result = await rest.call("POST", "/tasks", key, json={"title": "a task", "assign": "pull", **asked})
    task: dict[str, Any] = result["task"]
    return task


async def new_agent(rest: Rest, key: str, name: str = "worker", **asked: Any) -> dict[str, Any]:
    result = await rest.call("POST", "/agents", key, json={"name": name, **asked})
    agent: dict[str, Any] = result["agent"]
    return agent
