"""A JSON-RPC client of the tests' own, so that the wire is judged by somebody else than the product's client."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any, Self

import msgspec
import websockets
from websockets.asyncio.client import ClientConnection

ANSWER_LIMIT_S = 30.0
JSON, MSGPACK = "devmesh.v1.json", "devmesh.v1.msgpack"


class WireError(Exception):
    """The server answered with an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['data']['kind']}: {error['message']}")
        self.code: int = error["code"]
        self.message: str = error["message"]
        self.data: dict[str, Any] = error["data"]
        self.kind: str = self.data["kind"]
        self.reason: str | None = self.data.get("reason")


class Wire:
    """One connection. Events gather in `events`, in the order in which they came."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.events: list[dict[str, Any]] = []
        self.frames: list[Any] = []  # every message that came, decoded
        self.cursor: str | None = None  # of the last frame with events
        self.initialized: dict[str, Any] = {}
        self._ids = itertools.count(1)
        self._waiting: dict[object, asyncio.Future[dict[str, Any]]] = {}
        self._news = asyncio.Condition()
        self._seen = 0
        self._reader = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def connect(cls, url: str, key: str | None, *, subprotocol: str | None = JSON, **initialize: Any) -> Self:
        """Connects and initializes."""
        wire = await cls.bare(url, key, subprotocol=subprotocol)
        wire.initialized = await wire.call("initialize", client={"name": "tests", "version": "1"}, **initialize)
        return wire

    @classmethod
    async def bare(cls, url: str, key: str | None, *, subprotocol: str | None = JSON) -> Self:
        """Connects and says nothing yet."""
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        protocols = [websockets.Subprotocol(subprotocol)] if subprotocol else None
        connection = await websockets.connect(
            url, subprotocols=protocols, additional_headers=headers, max_size=None, compression=None, proxy=None
        )
        return cls(connection)

    @property
    def is_msgpack(self) -> bool:
        return self.connection.subprotocol == MSGPACK

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result, or WireError."""
        return result_of(await self.ask(method, params))

    async def ask(self, method: str, params: Any) -> dict[str, Any]:
        """The whole answer, whatever it is."""
        request_id = next(self._ids)
        await self.send({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
        return await self.answer(request_id)

    async def answer(self, request_id: object) -> dict[str, Any]:
        future = self._waiting.setdefault(request_id, asyncio.get_running_loop().create_future())
        async with asyncio.timeout(ANSWER_LIMIT_S):
            return await future

    async def send(self, message: Any) -> None:
        if isinstance(message, str | bytes):
            await self.connection.send(message)
        elif self.is_msgpack:
            await self.connection.send(msgspec.msgpack.encode(message))
        else:
            await self.connection.send(json.dumps(message))

    async def next_event(
        self,
        event_type: str | None = None,
        within_s: float = 20.0,
        where: Callable[[dict[str, Any]], bool] | None = None,
    ) -> dict[str, Any]:
        """The next event that came after the last one that was returned here, of a type and kind."""

        def found() -> dict[str, Any] | None:
            for place in range(self._seen, len(self.events)):
                event = self.events[place]
                if (event_type is None or event["type"] == event_type) and (where is None or where(event)):
                    self._seen = place + 1
                    return event
            return None

        try:
            async with asyncio.timeout(within_s), self._news:
                while (event := found()) is None:
                    await self._news.wait()
                return event
        except TimeoutError:
            seen = [event["type"] for event in self.events[self._seen :]]
            raise AssertionError(f"no {event_type or 'event'} within {within_s} s; since then: {seen}") from None

    async def until_events(self, count: int, within_s: float = 30.0) -> list[dict[str, Any]]:
        """Every event, once there are as many."""
        try:
            async with asyncio.timeout(within_s), self._news:
                while len(self.events) < count:
                    await self._news.wait()
        except TimeoutError:
            state = f"the connection is {self.connection.state.name}, close code {self.connection.close_code}"
            raise AssertionError(f"{len(self.events)} of {count} events within {within_s} s; {state}") from None
        return self.events

    async def closed(self, within_s: float = 15.0) -> int:
        """The close code, once the server has closed."""
        async with asyncio.timeout(within_s):
            await self.connection.wait_closed()
        assert self.connection.close_code is not None
        return self.connection.close_code

    async def close(self) -> None:
        await self.connection.close()
        await asyncio.wait([self._reader])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _read(self) -> None:
        try:
            async for data in self.connection:
                message = msgspec.msgpack.decode(data) if isinstance(data, bytes) else json.loads(data)
                self.frames.append(message)
                for part in message if isinstance(message, list) else [message]:
                    await self._take(part)
        except websockets.ConnectionClosed:
            pass
        finally:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ConnectionError("the connection ended before the answer"))
                    future.exception()

    async def _take(self, message: dict[str, Any]) -> None:
        if message.get("method") == "events":
            async with self._news:
                self.cursor = message["params"]["cursor"]
                self.events += message["params"]["events"]
                self._news.notify_all()
            return
        future = self._waiting.setdefault(message["id"], asyncio.get_running_loop().create_future())
        if not future.done():
            future.set_result(message)


def result_of(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise WireError(answer["error"])
    result: dict[str, Any] = answer["result"]
    return result
