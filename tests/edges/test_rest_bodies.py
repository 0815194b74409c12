"""Bodies that are no parameters: each gets its own error, and the next request is served as ever."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from tests.edges.rest import Rest, new_agent, new_task

MESSAGE_BYTES_MAX = 1 << 20
DEPTH_MAX = 64
JSON_TYPE = {"Content-Type": "application/json"}


def nested(levels: int) -> bytes:
    """A task whose whole body is nested as deeply."""
    inner = levels - 2
    return b'{"title":"x","parameters":{"a":' + b"[" * inner + b"]" * inner + b"}}"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", "parse_error"),
        (b'{"title":"x"', "parse_error"),
        (b'{"title":"x"} {}', "parse_error"),
        (b"   ", "parse_error"),
        (b"title=x", "parse_error"),
        (b'{"title":"x","parameters":{"a":NaN}}', "parse_error"),
        (b'{"title":"x","parameters":{"a":-Infinity}}', "parse_error"),
        (b"\xef\xbb\xbf{}", "parse_error"),
        (b'{"title":"\xff"}', "parse_error"),
        (b'{"title":"x","parameters":{"a":"\xff"}}', "parse_error"),
        (b'{"title":"\\ud800"}', "parse_error"),
        (b'{"title":"a\nb"}', "parse_error"),
        (b"[]", "invalid_params"),
        (b'"title"', "invalid_params"),
        (b"17", "invalid_params"),
        (b"null", "invalid_params"),
        (nested(DEPTH_MAX + 1), "invalid_params"),
        (nested(100_000), "invalid_params"),
        (b'{"title":"x","parameters":{"a":' + b"[" * 100_000 + b"}}", "parse_error"),
        (b'{"title":' * 100_000, "parse_error"),
        (b'{"title":"a\\u0000"}', "invalid_params"),
        (b'{"title":"x","parameters":{"a":"\\u0000"}}', "invalid_params"),
    ],
)
async def test_w02_a_body_that_is_no_parameters(rest: Rest, tenant: str, body: bytes, kind: str) -> None:
    problem = await rest.problem("POST", "/tasks", tenant, content=body, headers=JSON_TYPE)
    assert (problem["status"], problem["kind"]) == (400, kind)
    await new_task(rest, tenant)


@pytest.mark.parametrize("number", [b"1" * 5_000, b"18446744073709551616", b"-9223372036854775809", b"1e999"])
async def test_w02_a_number_that_not_every_codec_can_carry_is_refused(rest: Rest, tenant: str, number: bytes) -> None:
    for headers in (JSON_TYPE, {**JSON_TYPE, "Idempotency-Key": "strange"}):
        body = b'{"title":"x","parameters":{"a":[%b]}}' % number
        problem = await rest.problem("POST", "/tasks", tenant, content=body, headers=headers)
        assert problem["kind"] == "invalid_params"


@pytest.mark.parametrize(
    "value",
    [
        b"18446744073709551615",
        b"-9223372036854775808",
        b"1e308",
        b"-0.0",
        b"0.1000000000000000055511151231257827",
        b'"\\ud83d\\ude00"',
        b"[[], {}, null, true]",
    ],
)
async def test_w02_strange_values_are_kept_as_they_came(rest: Rest, tenant: str, value: bytes) -> None:
    for headers in (JSON_TYPE, {**JSON_TYPE, "Idempotency-Key": "strange"}):
        body = b'{"title":"x","assign":"pull","parameters":{"a":%b}}' % value
        answer = await rest.ask("POST", "/tasks", tenant, content=body, headers=headers)
        assert answer.status_code == 201, answer.text
        assert value in answer.content
        assert value in (await rest.ask("GET", f"/tasks/{answer.json()['task']['id']}", tenant)).content


@pytest.mark.parametrize("body", [b'{"session_id":null}', b"{}", b"{not json", b" ", b"a" * (2 * MESSAGE_BYTES_MAX)])
@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_body_is_refused_where_parameters_belong_into_the_query(
    rest: Rest, tenant: str, body: bytes, is_announced: bool
) -> None:
    """Whoever thinks that something is protected by what it says there learns that nobody listens."""
    agent = await new_agent(rest, tenant)
    for method, path in [("DELETE", f"/agents/{agent['id']}"), ("GET", "/agents"), ("GET", "/events")]:
        content = body if is_announced else in_pieces(body)
        problem = await rest.problem(method, path, tenant, content=content, headers=JSON_TYPE)
        assert (problem["kind"], problem["status"]) == ("invalid_params", 400)
        assert problem["detail"] == f"parameters of {method} belong into the query; send no body"
    assert (await rest.call("GET", f"/agents/{agent['id']}", tenant))["agent"] == agent
    assert (await rest.call("DELETE", f"/agents/{agent['id']}", tenant, content=b""))["agent"]["status"] == "offline"


async def test_of_a_key_that_comes_twice_the_last_counts(rest: Rest, tenant: str) -> None:
    answer = await rest.call("POST", "/tasks", tenant, content=b'{"title":"a","title":"b"}', headers=JSON_TYPE)
    assert answer["task"]["title"] == "b"


async def test_nesting_up_to_the_limit_is_taken(rest: Rest, tenant: str) -> None:
    await rest.call("POST", "/tasks", tenant, content=nested(DEPTH_MAX), headers=JSON_TYPE)


def task_of(size_bytes: int) -> bytes:
    """A body of exactly this size."""
    frame = b'{"title":"x","parameters":{"a":"%b"}}'
    return frame % (b"a" * (size_bytes - len(frame) + 2))


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    """Sent chunked: its length is not announced."""
    for start in range(0, len(body), 100_000):
        yield body[start : start + 100_000]


@pytest.mark.parametrize("is_announced", [True, False])
async def test_w02_a_body_may_be_as_long_as_the_limit_and_no_longer(
    rest: Rest, tenant: str, is_announced: bool
) -> None:
    for size_bytes, status in [(MESSAGE_BYTES_MAX, 201), (MESSAGE_BYTES_MAX + 1, 413), (2 * MESSAGE_BYTES_MAX, 413)]:
        body = task_of(size_bytes)
        assert len(body) == size_bytes
        content = body if is_announced else in_pieces(body)
        answer = await rest.ask("POST", "/tasks", tenant, content=content, headers=JSON_TYPE)
        assert answer.status_code == status, answer.text[:500]
        assert status == 201 or answer.json()["kind"] == "too_large"
    await new_task(rest, tenant)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {"Content-Type": ""},
    ],
)
async def test_a_body_of_another_type_is_refused(rest: Rest, tenant: str, headers: dict[str, str]) -> None:
    problem = await rest.problem("POST", "/tasks", tenant, content=b'{"title":"x"}', headers=headers)
    assert (problem["status"], problem["kind"]) == (415, "invalid_request")


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=UTF-8", "application/vnd.tasks+json"]
)
async def test_json_by_any_of_its_names_is_taken(rest: Rest, tenant: str, content_type: str) -> None:
    content = json.dumps({"title": "x"}).encode()
    await rest.call("POST", "/tasks", tenant, content=content, headers={"Content-Type": content_type})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("2510-07-14T01:18:04+17:26", "2510-07-13T07:52:04Z"),
        ("9998-12-31T23:59:59.999999-23:59", "9999-01-01T23:58:59.999999Z"),
    ],
)
async def test_times_of_any_zone_are_taken_and_shown_in_utc(rest: Rest, tenant: str, given: str, kept: str) -> None:
    task = await new_task(rest, tenant, deadline=given)
    assert task["deadline"] == kept


@pytest.mark.parametrize("year", ["0001", "9999"])
async def test_times_at_the_edge_of_the_calendar_are_refused(rest: Rest, tenant: str, year: str) -> None:
    """In another zone they would be out of it."""
    body = {"tasks": [{"title": "x"}, {"title": "y", "deadline": f"{year}-06-01T12:00:00Z"}]}
    problem = await rest.problem("POST", "/tasks/batch", tenant, json=body)
    assert (problem["kind"], problem["field"]) == ("invalid_params", "tasks[1].deadline")
    problem = await rest.problem("GET", f"/tasks/stats?since={year}-06-01T12:00:00Z", tenant)
    assert (problem["kind"], problem["field"]) == ("invalid_params", "since")
    await new_task(rest, tenant, parameters={"since": f"{year}-06-01T12:00:00Z"})


@pytest.mark.parametrize("whole", [b"4.0", b"4e0", b"40e-1"])
async def test_a_whole_number_is_one_however_it_is_written(rest: Rest, tenant: str, whole: bytes) -> None:
    body = b'{"title":"x","assign":"pull","priority":%b,"parameters":{"a":1.0,"b":"2"}}' % whole
    answer = await rest.ask("POST", "/tasks", tenant, content=body, headers=JSON_TYPE)
    assert (answer.status_code, answer.json()["task"]["priority"]) == (201, 4)
    assert b'{"a":1.0,"b":"2"}' in answer.content.replace(b": ", b":").replace(b", ", b",")


@pytest.mark.parametrize(
    ("members", "field"),
    [
        (b'"priority":4.5', "priority"),
        (b'"priority":4.0,"max_retries":"2"', "max_retries"),
        (b'"priority":4.0,"max_retries":true', "max_retries"),
        (b'"priority":4.0,"deadline":4102444800', "deadline"),
        (b'"priority":4.0,"type":17', "type"),
        (b'"priority":4.0,"timeout_s":"null"', "timeout_s"),
        (b'"priority":9.0', "priority"),
    ],
)
async def test_nothing_else_is_taken_for_a_whole_number(rest: Rest, tenant: str, members: bytes, field: str) -> None:
    """Each beside a number that is written so, which must not open a door for it."""
    body = b'{"title":"x",%b}' % members
    problem = await rest.problem("POST", "/tasks", tenant, content=body, headers=JSON_TYPE)
    assert problem["kind"] == "invalid_params"
    assert problem["field"] in (field, "priority")
