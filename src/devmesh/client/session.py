"""A connection that is always there: lost ones are replaced, and what was asked is asked again until it has its answer.

A request that changes something carries an idempotency key of its own, so asking twice never does twice. What a fresh
connection must say before it can be used (who we are, what we listen to) is its owner's `greet`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import websockets

from devmesh.client.address import Address
from devmesh.client.codecs import Codec
from devmesh.client.connection import Connection, Deliver, Loss
from devmesh.client.errors import ConnectionLost, MeshError
from devmesh.core.errors import Kind

T = TypeVar("T")
log = logging.getLogger("devmesh.client")

BACKOFF_BASE_S, BACKOFF_MAX_S = 0.1, 10.0
LAST_TRY_S = 1.0  # before a request's time is up
STABLE_S = 1.0  # a connection that lasted so long was a good one: the next back-off begins anew
CLOSE_UNAUTHENTICATED, CLOSE_RESUME = 4001, 4008
# There is no DevMesh here, and waiting does not help. A proxy answers some of these, too, while what is behind it starts again.
# DevMesh's own services answer 403 wherever their WebSocket is not.
HTTP_MEANS_ELSEWHERE = frozenset({400, 401, 403, 404, 405, 410, 426})
HTTP_UNAUTHORIZED = 401
HTTP_MEANS_ANOTHER_PLACE = frozenset({403, 404})
READS = frozenset({
    "get", "list", "discover", "health", "wait", "history", "explain", "stats", "refresh", "executions", "predict", "anomalies",
    "optimal", "alerts", "jobs", "search", "policy",
})  # fmt: skip
NOT_CONNECTED = "this client is not connected: use `async with Client() as client`, or `await client.connect()` first"
REPEATABLE = frozenset({"heartbeat"})  # it changes something, but twice is as good as once


def takes_key(method: str) -> bool:
    """Whether a method changes something, so that it must not be done twice. Methods without a noun are the session's."""
    noun, _, verb = method.rpartition(".")
    return bool(noun) and verb not in READS and verb not in REPEATABLE


class Backoff:
    """Pauses that double with each failure, jittered so that many clients do not come back in step."""

    def __init__(self) -> None:
        self._failures = 0

    def next_s(self, retry_after_ms: int | None = None) -> float:
        """Not before the time that the server has named, which it may have named to many."""
        pause_s = min(BACKOFF_BASE_S * 2.0 ** min(self._failures, 30), BACKOFF_MAX_S)
        self._failures += 1
        after_s = (retry_after_ms or 0) / 1000
        return max(pause_s * random.uniform(0.5, 1.0), after_s * random.uniform(1.0, 1.25))  # noqa: S311  jitter

    def reset(self) -> None:
        self._failures = 0


class Session:
    def __init__(
        self, address: Address, codec: Codec, greet: Callable[[Connection], Awaitable[None]], deliver: Deliver
    ) -> None:
        """`greet` makes a fresh connection ours; `deliver` takes events, and the connection waits for it."""
        self.address, self._codec, self._greet, self._deliver = address, codec, greet, deliver
        self.connection: Connection | None = None  # the one in use
        self.ended: MeshError | None = None  # why there will never be another one
        self._trouble: MeshError | None = None  # why there is none at the moment
        self._was_connected = False
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def start(self, limit_s: float | None, on_end: Callable[[], None] = lambda: None) -> None:
        """Connects, and keeps connected. Raises MeshError when that cannot be, or is not within the limit.

        `on_end` is called when the session has ended for good.
        """
        self._keeper = asyncio.create_task(self._stay_connected(), name="devmesh session")
        self._keeper.add_done_callback(lambda keeper: self._kept(keeper, on_end))
        try:
            async with asyncio.timeout(limit_s):
                await self._connected()
        except TimeoutError:
            trouble = self._trouble or MeshError(Kind.UNAVAILABLE, f"no answer from {self.address.url}")
            await self.close()
            raise trouble from None
        except BaseException:
            await self.close()
            raise

    async def wait_ended(self) -> MeshError:
        """Waits until there will never be a connection again, and says why."""
        while self.ended is None:
            self._changed.clear()
            await self._changed.wait()
        return self.ended

    async def close(self) -> None:
        """Ends the session; who waits for an answer gets an error."""
        self._end(MeshError(Kind.CANCELLED, "the client was closed"))
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self.connection is not None:
            connection, self.connection = self.connection, None
            await connection.close()

    async def request(self, method: str, params: Mapping[str, Any], shape: type[T], timeout_s: float | None) -> T:
        """The result, whatever happens to connections in between. Raises MeshError; `timeout` when time is up."""
        if self._keeper is None and self.ended is None:
            raise MeshError(Kind.INVALID_REQUEST, NOT_CONNECTED)
        if takes_key(method) and "idempotency_key" not in params:
            params = {**params, "idempotency_key": uuid.uuid4().hex}
        ends_at = None if timeout_s is None else time.monotonic() + timeout_s
        backoff, refusal = Backoff(), None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    connection = await self._connected()
                    try:
                        return await connection.request(method, params, shape)
                    except ConnectionLost:
                        await connection.ended()
                    except MeshError as error:
                        refusal = error
                        if not error.retryable:
                            raise
                        await asyncio.sleep(pause_s(error, backoff, ends_at))
        except TimeoutError:
            raise refusal or self._late(method, timeout_s) from None

    def _late(self, method: str, timeout_s: float | None) -> MeshError:
        trouble = f"; {self._trouble.message}" if self._trouble is not None else ""
        return MeshError(Kind.TIMEOUT, f"no answer to {method} within {timeout_s:g} s{trouble}")

    async def _connected(self) -> Connection:
        """The connection in use, once there is one. Raises MeshError when there will be none."""
        while self.connection is None:
            if self.ended is not None:
                raise self.ended
            self._changed.clear()
            await self._changed.wait()
        return self.connection

    async def _stay_connected(self) -> None:
        backoff = Backoff()
        while self.ended is None:
            try:
                connection = await self._connect()
            except MeshError as error:
                if not error.retryable and error.retry_after_ms is None:  # a quota may have room again
                    self._end(error)
                    return
                (log.debug if self._trouble else log.warning)("no connection yet: %s", error.message)
                self._trouble = error
                await asyncio.sleep(backoff.next_s(error.retry_after_ms))
                continue
            began = time.monotonic()
            self._use(connection)
            loss = await connection.ended()
            self._use(None)
            if loss.code == CLOSE_UNAUTHENTICATED:
                self._end(unauthenticated(loss))
                return
            log.info("the connection was lost (%d %s); connecting again", *loss)
            is_stable = time.monotonic() - began >= STABLE_S
            if is_stable:
                backoff.reset()
            if not (is_stable and loss.code == CLOSE_RESUME):
                await asyncio.sleep(backoff.next_s())

    async def _connect(self) -> Connection:
        """A fresh connection, greeted. Raises MeshError, retryable when trying again may help."""
        try:
            connection = await Connection.open(self.address, self._codec, self._deliver)
        except (websockets.InvalidURI, ValueError) as error:  # a port or a name that cannot be
            raise MeshError(Kind.INVALID_PARAMS, f"{self.address.url} is no address: {error}") from None
        except websockets.InvalidStatus as error:
            status = error.response.status_code
            is_known = self._was_connected and status != HTTP_UNAUTHORIZED  # to be a DevMesh, which will be back
            kind = Kind.NOT_FOUND if status in HTTP_MEANS_ELSEWHERE and not is_known else Kind.UNAVAILABLE
            hint = "; the address is that of mcp-server, and ends in /ws" if status in HTTP_MEANS_ANOTHER_PLACE else ""
            raise MeshError(kind, f"no WebSocket at {self.address.url} (HTTP {status}){hint}") from None
        except (OSError, TimeoutError, websockets.WebSocketException) as error:
            why = str(error) or type(error).__name__
            raise MeshError(Kind.UNAVAILABLE, f"{self.address.url} cannot be reached: {why}") from None
        try:
            await self._greet(connection)
        except ConnectionLost:
            loss = await connection.ended()
            if loss.code == CLOSE_UNAUTHENTICATED:
                raise unauthenticated(loss) from None
            raise MeshError(Kind.UNAVAILABLE, f"the connection was lost at once ({loss.code} {loss.reason})") from None
        except BaseException:
            await connection.close()
            raise
        return connection

    def _kept(self, keeper: asyncio.Task[None], on_end: Callable[[], None]) -> None:
        """Nobody keeps the session any more. It must say so, whatever the cause, or its callers would wait for nothing."""
        if not keeper.cancelled() and (fault := keeper.exception()) is not None:
            log.error("the session ended by a fault of its own", exc_info=fault)
            self._end(MeshError(Kind.INTERNAL, f"the session ended by a fault of its own: {fault!r}"))
        on_end()

    def _use(self, connection: Connection | None) -> None:
        self.connection = connection
        if connection is not None:
            self._trouble, self._was_connected = None, True
        self._changed.set()

    def _end(self, error: MeshError) -> None:
        self.ended = self.ended or error
        self._changed.set()


def pause_s(error: MeshError, backoff: Backoff, ends_at: float | None) -> float:
    """How long to wait before a request is asked again. Raises the error when its time is up before that."""
    wanted_s, after_s = backoff.next_s(error.retry_after_ms), (error.retry_after_ms or 0) / 1000
    left_s = math.inf if ends_at is None else ends_at - time.monotonic()
    if wanted_s < left_s:
        return wanted_s
    if after_s < left_s and left_s > LAST_TRY_S:  # a last try, rather than none for having been refused often
        return max(after_s, left_s - LAST_TRY_S)
    raise error


def unauthenticated(loss: Loss) -> MeshError:
    return MeshError(Kind.UNAUTHENTICATED, f"the server does not take this key any more: {loss.reason}")
