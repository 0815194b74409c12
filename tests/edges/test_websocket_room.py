"""A connection that does not take its answers has no more of them made than it may have requests in flight."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from devmesh.edges.codecs import JSON
from devmesh.edges.websocket import Connection
from tests.harness import eventually

IN_FLIGHT_MAX = 5
ANSWER = msgspec.Raw(json.dumps({"is": "x" * 10_000}).encode())


class Peer:
    """Who has connected: it sends, and takes nothing before it is told to."""

    def __init__(self) -> None:
        self.takes = asyncio.Event()
        self.got: list[dict[str, Any]] = []
        self.served = 0
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        settings = SimpleNamespace(
            outbox_bytes_max=15_000, message_bytes_max=1 << 20, request_batch_max=10,
            requests_in_flight_max=IN_FLIGHT_MAX, initialize_timeout_s=60,
        )  # fmt: skip
        admission = SimpleNamespace(enter=lambda *_, **__: None, leave=lambda _: None)
        parts = SimpleNamespace(settings=settings, corridor=SimpleNamespace(admission=admission))
        gateway: Any = SimpleNamespace(parts=parts, requests=set(), is_leaving=False)
        self.connection = Connection(gateway, JSON, "here", None, self._take)
        self.connection.session = SimpleNamespace(caller="somebody", call=self._call)  # type: ignore[assignment]

    async def run(self) -> None:
        await self.connection.run(self._messages.get)

    def asks(self, *numbers: int) -> None:
        calls = [{"jsonrpc": "2.0", "id": number, "method": "anything"} for number in numbers]
        message = json.dumps(calls if len(calls) > 1 else calls[0])
        self._messages.put_nowait({"type": "websocket.receive", "text": message})

    @property
    def has_asked(self) -> bool:
        return self._messages.empty()

    async def has_served(self, count: int) -> None:
        await eventually(lambda: self.served == count, f"{count} are served")

    def refused(self) -> list[str]:
        return [answer["error"]["data"]["reason"] for answer in self.got if "error" in answer]

    async def _call(self, *_: object) -> msgspec.Raw:
        self.served += 1
        return ANSWER

    async def _take(self, message: Any) -> None:
        await self.takes.wait()
        answer = json.loads(message["text"])
        self.got += answer if isinstance(answer, list) else [answer]


@pytest.fixture
async def peer() -> Any:
    peer = Peer()
    running = asyncio.create_task(peer.run())
    yield peer
    running.cancel()


async def test_who_takes_nothing_has_no_more_answers_made(peer: Peer) -> None:
    for number in range(50):
        peer.asks(number)
    await eventually(lambda: peer.served >= IN_FLIGHT_MAX, "some are answered")
    for number in range(50, 60):
        peer.asks(number)
        await asyncio.sleep(0)
    assert peer.served <= IN_FLIGHT_MAX + 2, "those that are sent or in the outbox, and those that wait for room there"
    peer.takes.set()
    await eventually(lambda: len(peer.got) == 60, "each has its answer once it reads")
    assert peer.served == 60 - len(peer.refused())
    assert set(peer.refused()) == {"requests_in_flight"}


async def test_a_batch_counts_until_there_is_room_for_its_answers(peer: Peer) -> None:
    for number in range(
        3
    ):  # the answers of one are being sent, of one are in the outbox, and of one have no room there
        peer.asks(*range(100 * number, 100 * number + IN_FLIGHT_MAX))
        served = IN_FLIGHT_MAX * (number + 1)
        await peer.has_served(served)
        await asyncio.sleep(0)
    peer.asks(*range(300, 300 + IN_FLIGHT_MAX))
    await eventually(lambda: peer.has_asked, "all are read")
    assert peer.served == 3 * IN_FLIGHT_MAX
    peer.takes.set()
    await eventually(lambda: len(peer.got) == 4 * IN_FLIGHT_MAX, "each has its answer")
    assert peer.refused() == ["requests_in_flight"] * IN_FLIGHT_MAX
