"""The OpenAPI document and the page that shows it: whole, true, and in need of nobody else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from devmesh import operations
from devmesh.operations.registry import REGISTRY
from tests.edges.rest import Rest

operations.load_all()


@pytest.fixture
def document(rest: Rest) -> dict[str, Any]:
    return rest.document


def described(document: dict[str, Any], name: str) -> dict[str, Any]:
    operation = REGISTRY[name]
    found: dict[str, Any] = document["paths"][f"/api/v1{operation.path}"][operation.method.lower()]
    return found


def everything_in(thing: Any) -> Iterator[dict[str, Any]]:
    """Every object of a document."""
    if isinstance(thing, dict):
        yield thing
    for inner in thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list) else ():
        yield from everything_in(inner)


async def test_every_reference_leads_somewhere_and_nothing_is_left_over(rest: Rest, document: dict[str, Any]) -> None:
    references = {found["$ref"] for found in everything_in(document) if "$ref" in found}
    for reference in references:
        assert rest.resolve({"$ref": reference})
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert schemas <= references
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in document["components"]["schemas"])


@pytest.mark.parametrize("name", sorted(REGISTRY))
async def test_every_operation_is_described(rest: Rest, document: dict[str, Any], name: str) -> None:
    operation, found = REGISTRY[name], described(document, name)
    assert (found["operationId"], found["summary"]) == (name, operation.summary)
    assert found["security"] == [{"bearer": [operation.scope]}, {"apiKey": [operation.scope]}]
    parameters = [rest.resolve(parameter) for parameter in found["parameters"]]
    assert [parameter["name"] for parameter in parameters if parameter["in"] == "path"] == operation.path_fields
    assert all(parameter["required"] for parameter in parameters if parameter["in"] == "path")
    bodies = [
        body["content"]["application/json"]["schema"]["properties"] for body in [found.get("requestBody")] if body
    ]
    in_query = [parameter["name"] for parameter in parameters if parameter["in"] == "query"]
    fields = {field for properties in bodies for field in properties} | set(in_query) | set(operation.path_fields)
    in_headers = {"idempotency_key", "if_version"}
    assert fields | in_headers == set(operation.params.__struct_fields__) | in_headers
    assert not fields & in_headers
    is_versioned = "if_version" in operation.params.__struct_fields__ or "304" in found["responses"]
    assert is_versioned == ("If-Match" in [parameter["name"] for parameter in parameters])
    assert is_versioned == ("412" in found["responses"])
    assert operation.mutates == ("Idempotency-Key" in [parameter["name"] for parameter in parameters])
    for status, response in found["responses"].items():
        [media_type] = rest.resolve(response).get("content") or [None]
        expected = {"2": "application/json", "3": None}.get(status[0], "application/problem+json")
        assert media_type == expected
        assert "X-Request-Id" in rest.resolve(response)["headers"]


async def test_bounds_are_part_of_it(document: dict[str, Any]) -> None:
    [limit] = [p["schema"] for p in described(document, "task.list")["parameters"] if p.get("name") == "limit"]
    assert limit == {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}
    create = described(document, "task.create")["requestBody"]
    assert create["required"] is True
    body = create["content"]["application/json"]["schema"]
    assert body["required"] == ["title"]
    assert body["additionalProperties"] is False
    assert body["properties"]["priority"] == {"type": "integer", "minimum": 1, "maximum": 5, "default": 3}
    assert body["properties"]["deadline"]["anyOf"][0]["format"] == "date-time"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("job.enqueue", ()),
        ("job.enqueue_many", ("properties", "jobs", "items")),
        ("schedule.create", ("properties", "job")),
    ],
)
async def test_what_goes_together_is_part_of_it_wherever_a_job_stands(
    rest: Rest, document: dict[str, Any], name: str, path: tuple[str, ...]
) -> None:
    schema = described(document, name)["requestBody"]["content"]["application/json"]["schema"]
    for step in path:
        schema = schema[step]
    keys = [key for rule in rest.resolve(schema)["allOf"] for key in rule.get("anyOf", [{}])[-1].get("required", [])]
    assert keys == ["unique_key", "concurrency_key"]


async def test_every_text_says_which_characters_it_takes(document: dict[str, Any]) -> None:
    """Or a program would learn only by its refusal that PostgreSQL stores no NUL."""
    bounded = {"pattern", "enum", "format", "const"}
    headers = {"If-Match", "If-None-Match"}  # where whatever is no tag matches nothing
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        for place in (*operation["parameters"], operation.get("requestBody", {})):
            texts = [found for found in everything_in(place) if found.get("type") == "string"]
            assert place.get("name") in headers or all(bounded & text.keys() for text in texts), place


async def test_results_are_what_is_answered(rest: Rest, document: dict[str, Any], tenant: str) -> None:
    """The fields of a task, as they are declared and as they come."""
    schema = described(document, "task.create")["responses"]["201"]["content"]["application/json"]["schema"]
    task_schema = rest.resolve(rest.resolve(schema)["properties"]["task"])
    task = (await rest.call("POST", "/tasks", tenant, json={"title": "x"}))["task"]
    assert set(task) == set(task_schema["properties"]) == set(task_schema["required"])


async def test_the_reference_page_needs_nobody_else(rest: Rest) -> None:
    page = await rest.http.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r"https?://", page.text)
    assert not re.search(r"<(script|link)[^>]+(src|href)=\"(?!data:)", page.text)
    assert 'fetch("/openapi.json")' in page.text
    front = await rest.http.get("/")
    assert (front.status_code, front.headers["location"]) == (307, "/docs")
