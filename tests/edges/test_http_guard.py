"""What comes before a request is one: slowly, endlessly or not at all. It costs its sender the connection, and nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from devmesh.edges.http_guard import HEAD_BYTES_MAX
from tests.harness import Mesh
from tests.wire import Wire

HEAD_LIMIT_S, BODY_LIMIT_S = 0.5, 1.0
SLACK_S = 5.0  # on a busy machine


class Line:
    """A connection that sends what it is told, byte by byte if need be."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """The status, the headers and what is in the body."""
        async with asyncio.timeout(SLACK_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(status.split()[1]), headers, json.loads(body) if body else None

    async def refused(self) -> tuple[int, str | None]:
        """The status and reason of a problem, after which the connection ends."""
        status, headers, problem = await self.answer()
        assert headers["content-type"] == "application/problem+json"
        assert (headers["connection"], problem["status"], problem["kind"]) == ("close", status, "invalid_request")
        await self.ended()
        return status, problem.get("reason")

    async def ended(self) -> None:
        async with asyncio.timeout(SLACK_S):
            with contextlib.suppress(ConnectionError):
                assert await self.reader.read() == b""


@pytest.fixture(scope="module")
def hurried(create_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Services that do not wait for long."""
    limits = {
        "DEVMESH_REQUEST_HEAD_TIMEOUT_S": str(HEAD_LIMIT_S),
        "DEVMESH_REQUEST_BODY_TIMEOUT_S": str(BODY_LIMIT_S),
    }
    mesh = Mesh(create_database(), tmp_path_factory.mktemp("hurried"), limits)
    mesh.start("rest-api", "mcp-server")
    yield mesh
    mesh.end()


@pytest.fixture
async def connect(hurried: Mesh) -> AsyncIterator[Callable[..., Any]]:
    lines: list[Line] = []

    async def connect(service: str = "rest-api") -> Line:
        line = Line(*await asyncio.open_connection("127.0.0.1", hurried.of(service)[0].port))
        lines.append(line)
        return line

    yield connect
    for line in lines:
        line.writer.close()
    line = await connect()
    await line.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await line.answer())[0] == 200, "whoever comes next is served as ever"
    line.writer.close()


@pytest.mark.parametrize("service", ["rest-api", "mcp-server"])
async def test_whoever_says_nothing_is_sent_away(connect: Callable[..., Any], service: str) -> None:
    for line in [await connect(service) for _ in range(50)]:
        await line.ended()


@pytest.mark.parametrize("service", ["rest-api", "mcp-server"])
async def test_a_head_that_does_not_end_is_too_slow(connect: Callable[..., Any], service: str) -> None:
    line = await connect(service)
    await line.send(b"GET /ws HTTP/1.1\r\nHost: x\r\n")

    async def drip() -> None:
        while True:
            await line.send(b"X-A: b\r\n")
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    assert await line.refused() == (408, "http.slow")
    dripping.cancel()
    await asyncio.wait([dripping])


async def test_a_second_request_has_its_time_as_well(connect: Callable[..., Any]) -> None:
    line = await connect()
    await line.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await line.answer())[0] == 200
    await asyncio.sleep(2 * HEAD_LIMIT_S)  # between requests nothing is due
    await line.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await line.answer())[0] == 200
    await line.send(b"GET /healthz HTTP/1.1\r\nHos")
    assert await line.refused() == (408, "http.slow")


async def test_a_body_that_does_not_come_is_too_slow(connect: Callable[..., Any], hurried: Mesh) -> None:
    line = await connect()
    head = f"POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\nX-API-Key: {hurried.admin_key}\r\nContent-Length: 100\r\n\r\n"
    await line.send(head.encode() + b'{"title":')
    assert await line.refused() == (408, "http.slow")


async def test_a_claim_may_wait_for_longer(connect: Callable[..., Any], hurried: Mesh) -> None:
    """It has come whole; what takes its time is the answer."""
    async with await Wire.connect(hurried.ws_url, hurried.admin_key) as wire:
        agent = (await wire.call("agent.register", name="patient"))["agent"]
    body = json.dumps({"agent_id": agent["id"], "wait_ms": int(BODY_LIMIT_S * 2000)})
    head = f"POST /api/v1/tasks/claim HTTP/1.1\r\nHost: x\r\nX-API-Key: {hurried.admin_key}\r\n"
    line = await connect()
    await line.send(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    status, _, found = await line.answer()
    assert (status, found) == (200, {"tasks": []})


async def test_a_websocket_stays_when_its_head_has_come(hurried: Mesh) -> None:
    async with await Wire.connect(hurried.ws_url, hurried.admin_key) as wire:
        await asyncio.sleep(HEAD_LIMIT_S + BODY_LIMIT_S + 0.5)
        assert (await wire.call("ping"))["pong"] is True


@pytest.mark.parametrize("service", ["rest-api", "mcp-server"])
@pytest.mark.parametrize("piece", [b"a" * 1000, b"a\r\nX-B: "])
async def test_a_head_without_an_end_is_too_long(connect: Callable[..., Any], service: str, piece: bytes) -> None:
    line = await connect(service)
    await line.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ")
    sent = 0
    try:
        while sent < 100 * HEAD_BYTES_MAX and not line.reader.at_eof():
            await line.send(piece * 10)
            sent += 10 * len(piece)
    except ConnectionError:
        pass
    assert sent < 100 * HEAD_BYTES_MAX
    line = await connect(service)  # where the answer is not overtaken by what was sent in vain
    await line.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * HEAD_BYTES_MAX)
    assert await line.refused() == (431, "http.head")


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # of TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: \x00\r\n\r\n",
        b"GET /healthz HTTP/1.1\nHost: x\n\n",
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    ],
)
async def test_what_is_no_http_gets_a_problem(connect: Callable[..., Any], sent: bytes) -> None:
    """Above all what two servers in a row may understand in two ways."""
    line = await connect()
    await line.send(sent)
    assert await line.refused() == (400, None)
