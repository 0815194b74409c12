"""J45: payloads that are no JSON, or hardly any. Each is refused with a clear error, or stored whole and comes back equal."""

from __future__ import annotations

import contextlib
import json
import math
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from websockets import ConnectionClosed
from websockets.frames import CloseCode

from devmesh.client import Client, JobContext
from devmesh.client import Mesh as Agents
from tests.client.agents import at_work
from tests.harness import Mesh, eventually
from tests.scenarios.jobs import Bench, held, register
from tests.wire import MSGPACK, Wire

NOT_JSON = {
    "a NUL as it is": b'"a\x00b"', "NaN": b"NaN", "infinity": b"-Infinity", "no UTF-8": b'"\xff\xfe"',
    "overlong UTF-8": b'"\xc0\x80"',
    "a surrogate as UTF-8": b'"\xed\xa0\x80"', "a lone high surrogate": rb'"\ud800"', "a lone low surrogate": rb'"\udc00x"',
    "a comma too many": b"[1,]", "an end too early": b'{"a": [1', "a hundred thousand levels": b"[" * 100_000 + b"]" * 100_000,
    "five thousand objects": b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "an integer of 65 bits": b"18446744073709551616",
    "an integer of 5,000 digits": b"9" * 5_000, "a number out of range": b"1e400",
}  # fmt: skip
JSON = {
    "a NUL written out": rb'"a\u0000b"', "a NUL as a name": rb'{"\u0000": 1}',
    "60 levels": b"[" * 60 + b"]" * 60,
    "900,000 characters": b'"' + b"x" * 900_000 + b'"', "an integer of 64 bits": b"18446744073709551615",
    "minus nothing": b"-0",
    "a fraction": b"0.1000000000000000055511151231257827", "next to nothing": b"1e-400", "no name": b'{"": {}}',
    "a name twice": b'{"a": 1, "a": 2}', "other planes": '"😀\u2028\ufeff"'.encode(),
    "a pair": rb'"\ud83d\ude00"', "nothing": b"null",
}  # fmt: skip
TOO_LONG = b'"' + b"x" * (10 << 20) + b'"'


def enqueue(payload: bytes, queue: str) -> bytes:
    return b'{"type": "t", "queue": "%s", "payload": %s}' % (queue.encode(), payload)


def message(payload: bytes, queue: str, request_id: int = 77) -> bytes:
    return b'{"jsonrpc": "2.0", "id": %d, "method": "job.enqueue", "params": %s}' % (
        request_id,
        enqueue(payload, queue),
    )


@pytest.fixture
def rest(mesh: Mesh, tenant: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {tenant}", "Content-Type": "application/json"}
    with httpx.Client(base_url=f"{mesh.rest_url}/api/v1", headers=headers, trust_env=False, timeout=20.0) as client:
        yield client


async def test_j45_what_is_no_json_is_refused_by_rest_with_what_is_wrong(rest: httpx.Client, bench: Bench) -> None:
    for name, payload in NOT_JSON.items():
        refused = rest.post("/jobs", content=enqueue(payload, bench.queue))
        assert refused.status_code == 400, name
        problem = refused.json()
        assert problem["kind"] in ("parse_error", "invalid_params"), name
        assert len(problem["detail"]) > 20, name
    too_long = rest.post("/jobs", content=enqueue(TOO_LONG, bench.queue))
    assert too_long.status_code == 413
    assert await bench.claim() == []


async def test_j45_what_is_no_json_is_refused_over_the_websocket_which_goes_on(
    mesh: Mesh, tenant: str, bench: Bench
) -> None:
    for name, payload in NOT_JSON.items():
        async with await Wire.connect(mesh.ws_url, tenant) as wire:
            await wire.connection.send(message(payload, bench.queue), text=True)
            if "UTF-8" in name:  # which the protocol itself forbids in a text
                assert await wire.closed() == CloseCode.INVALID_DATA, name
                continue
            await eventually(lambda: len(wire.frames) > 1, "it is answered")
            [answer] = wire.frames[1:]
            assert answer["error"]["data"]["kind"] in ("parse_error", "invalid_params"), name
            await wire.call("job.stats")
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        with contextlib.suppress(ConnectionClosed):  # it is turned away before it has ended
            await wire.connection.send(message(TOO_LONG, bench.queue), text=True)
        assert await wire.closed() == CloseCode.MESSAGE_TOO_BIG
    assert await bench.claim() == []


async def test_j45_what_is_no_utf8_in_a_binary_frame_is_told_so(mesh: Mesh, tenant: str, bench: Bench) -> None:
    """There the protocol does not forbid it, and the JSON codec reads such frames as well."""
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        broken = [payload for name, payload in NOT_JSON.items() if "UTF-8" in name]
        for payload in broken:
            await wire.connection.send(message(payload, bench.queue))
        await eventually(lambda: len(wire.frames) > len(broken), "each is answered")
        errors = [(frame["error"]["data"]["kind"], frame["error"]["message"]) for frame in wire.frames[1:]]
        assert errors == [("parse_error", "the message is not UTF-8")] * len(broken)
        await wire.connection.send(message(b'"plain"', bench.queue))
        assert (await wire.answer(77))["result"]["job"]["payload"] == "plain"


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (rb'"\ud800"', r"\ud800 is half of a character"),
        (rb'{"\uDC00": 1}', r"\uDC00 is half of a character"),
        (b"1e400", "payload: a number is larger than any that is kept"),
        (b"[18446744073709551616]", "payload: an integer does not fit into 64 bits"),
    ],
)
async def test_j45_what_is_wrong_with_it_is_told_on_every_wire(
    rest: httpx.Client, mesh: Mesh, tenant: str, bench: Bench, payload: bytes, told: str
) -> None:
    refused = rest.post("/jobs", content=enqueue(payload, bench.queue)).json()
    assert told in refused["detail"]
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        await wire.connection.send(message(payload, bench.queue), text=True)
        await eventually(lambda: len(wire.frames) > 1, "it is answered")
        error = wire.frames[1]["error"]
    assert told in error["message"]
    named = "payload" if told.startswith("payload") else None
    assert [each.get("field") for each in (refused, error["data"])] == [named, named]


async def test_j45_what_is_json_is_stored_whole_and_comes_back_equal(
    rest: httpx.Client, mesh: Mesh, tenant: str, bench: Bench
) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        worker = await register(wire, queues=[bench.queue])
        for number, (name, payload) in enumerate(JSON.items(), 1_000):
            made = rest.post("/jobs", content=enqueue(payload, bench.queue))
            assert made.status_code == 200, name
            await wire.send(message(payload, bench.queue, number).decode())
            assert "error" not in await wire.answer(number), name
            claimed = await bench.claim(worker_id=worker)
            expected = json.loads(payload)
            assert [job["payload"] for job in claimed] == [expected, expected], name
            results = [held(job, result=msgspec.Raw(payload)) for job in claimed]
            done = rest.post("/jobs/complete", content=msgspec.json.encode({"jobs": results}))
            if name == "900,000 characters":  # two of them are more than a message may have
                assert done.status_code == 413
                continue
            assert [job["status"] for job in done.json()["jobs"]] == ["COMPLETED"] * 2, name
            assert payload in rest.get(f"/jobs/{claimed[0]['id']}").content, name


async def test_j45_a_worker_survives_all_of_it(rest: httpx.Client, mesh: Mesh, tenant: str) -> None:
    queue = f"q{uuid.uuid4().hex}"
    agents, seen = Agents(mesh.ws_url, tenant, worker=queue, lease_s=2.0), dict[str, Any]()

    @agents.job("t", queue=queue)
    async def echo(job: JobContext) -> Any:
        seen[str(job.id)] = job.payload
        return job.payload

    made = {}
    for payload in JSON.values():
        made[rest.post("/jobs", content=enqueue(payload, queue)).json()["job"]["id"]] = json.loads(payload)
    async with Client(mesh.ws_url, tenant) as client, at_work(agents):

        async def have_ended() -> bool:
            stats = (await client.call("job.stats"))["queues"]
            return not [each for each in stats if each["queue"] == queue and each["waiting"] + each["processing"]]

        await eventually(have_ended, "all have ended")
        assert seen == made
        for job_id, payload in made.items():
            job = (await client.call("job.get", job_id=job_id))["job"]
            assert (job["status"], job["attempt"], job["result"]) == ("COMPLETED", 1, payload)


async def test_j45_messagepack_holds_what_json_cannot_and_that_is_refused(
    mesh: Mesh, tenant: str, bench: Bench
) -> None:
    async with await Wire.connect(mesh.ws_url, tenant, subprotocol=MSGPACK) as wire:
        for payload in (math.nan, math.inf, [{"a": [-math.inf]}]):
            asked = {"type": "t", "queue": bench.queue, "payload": payload}
            answer = await wire.ask("job.enqueue", asked)
            assert answer["error"]["data"]["kind"] == "invalid_params", payload
            assert "is no number in JSON" in answer["error"]["message"]
        assert await bench.claim() == []
        sound = [1.5, "ü", msgspec.msgpack.encode(math.nan).decode("latin-1"), None]
        await wire.call("job.enqueue", type="t", queue=bench.queue, payload=sound)
        assert [job["payload"] for job in await bench.claim()] == [sound]
