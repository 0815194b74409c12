"""The carrier by Redis publish and subscribe, where one is configured: it takes the load of the bell off PostgreSQL.

Nothing depends on it. While it is away, NOTIFY carries the bell, from the first ring that fails on; the breaker says when Redis
is tried again. So it is degraded at the worst, and its failure is no noise: one line when it goes, one when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid

import msgspec
import redis.asyncio
import structlog
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from devmesh.core.components import Component, degraded
from devmesh.core.errors import unavailable
from devmesh.engine.breaker import Breaker
from devmesh.engine.carrier import KEEP_INTERVAL_S, Carrier

log = structlog.get_logger(__name__)

CHANNEL = "devmesh_bell"
READ_INTERVAL_S = 5.0  # a reader that hears nothing for so long looks whether it should go on
FAILURES = (RedisError, OSError)  # timeouts are among either


class RedisBell(Carrier):
    name = "redis"

    def __init__(self, url: str, timeout_s: float, breaker: Breaker) -> None:
        super().__init__()
        self._url, self._timeout_s, self._breaker = url, timeout_s, breaker
        self._own_mark = (
            uuid.uuid4().hex
        )  # before everything that this process sends, so that it need not listen to itself
        self._line: _Line | None = None
        self._was_up: bool | None = None  # when it was last told

    @property
    def is_up(self) -> bool:
        return self._line is not None

    async def run_once(self) -> bool:
        """Keeps the connections, or tries to have them when the breaker allows."""
        line = self._line
        try:
            if line is not None:
                await line.check()
                self._breaker.succeeded()
            elif self._breaker.allows(time.monotonic()):
                await self._connect()
        except FAILURES as error:
            await self._lose(line, error)
        return False

    async def send(self, payload: str) -> None:
        line = self._line
        assert line is not None
        try:
            await line.client.publish(CHANNEL, f"{self._own_mark}:{payload}")
        except FAILURES as error:
            await self._lose(line, error)
            raise unavailable("Redis is away") from error

    async def check(self, pass_s_max: float) -> Component:
        """Its latency is how long Redis took to answer."""
        latency_ms = self._line.latency_ms if self._line is not None else None
        return msgspec.structs.replace(self.state(pass_s_max), latency_ms=latency_ms)

    def state(self, pass_s_max: float) -> Component:
        found = super().state(pass_s_max)
        if found.status == "healthy" and self._line is not None:
            return found
        reason = found.message or self._breaker.failure or "it is being connected"
        return degraded(f"PostgreSQL carries the bell meanwhile: {reason}")

    async def stop(self, limit_s: float = 5.0) -> None:
        await super().stop(limit_s)
        await self._let_go()

    async def _connect(self) -> None:
        line = _Line(self._url, self._timeout_s)
        try:
            await line.open()
        except BaseException:
            await line.close()
            raise
        self._line = line
        line.reading = asyncio.get_running_loop().create_task(self._read(line), name="redis-bell-reader")
        self._breaker.succeeded()
        if self._was_up is not True:
            log.info("redis carries the bell")
        self._was_up = True
        self._came_up()

    async def _read(self, line: _Line) -> None:
        """Hears what others send, until the line is closed or broken."""
        try:
            while True:
                mark, _, payload = (await line.next()).partition(b":")
                if payload and mark.decode("ascii", "replace") != self._own_mark:
                    self._hear(payload.decode("ascii", "replace"))
        except FAILURES as error:
            await self._lose(line, error)

    async def _lose(self, line: _Line | None, error: Exception) -> None:
        """Once, whoever notices first: whatever else is under way on the connections fails with them."""
        if line is not self._line:
            return
        failure = str(error) or type(error).__name__
        self._breaker.failed(time.monotonic(), failure)
        if self._was_up is not False:
            log.warning("redis is away; PostgreSQL carries the bell", reason=failure)
        self._was_up = False
        await self._let_go()

    async def _let_go(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            await line.close()


class _Line:
    """Two connections to Redis: one to send on and one to listen on. It is used once, until either breaks."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),  # whether to try again is the breaker's to say
            protocol=2,
        )
        self._pubsub: PubSub = self.client.pubsub()
        self.reading: asyncio.Task[None] | None = None
        self._heard_at = 0.0
        self.latency_ms: float | None = None

    async def open(self) -> None:
        await self._pubsub.subscribe(CHANNEL)
        self._heard_at = time.monotonic()
        await self.check()

    async def check(self) -> None:
        """Whether both connections answer. Raises one of FAILURES."""
        began = time.monotonic()
        await self.client.ping()
        self.latency_ms = round((time.monotonic() - began) * 1000, 3)
        if time.monotonic() - self._heard_at > 3 * KEEP_INTERVAL_S + self._timeout_s:
            raise RedisError("the connection to listen on does not answer")
        await self._pubsub.ping()  # the answer comes to whoever reads

    async def next(self) -> bytes:
        """What was sent; nothing, when what came is no message or none came in a while. Raises one of FAILURES."""
        message = await self._pubsub.get_message(timeout=READ_INTERVAL_S)
        if message is None:
            return b""
        self._heard_at = time.monotonic()
        return bytes(message["data"]) if message["type"] == "message" else b""

    async def close(self) -> None:
        if self.reading is not None and self.reading is not asyncio.current_task():
            self.reading.cancel()
            await asyncio.wait([self.reading])
        with contextlib.suppress(*FAILURES):
            await self._pubsub.aclose()  # type: ignore[no-untyped-call]  # the library does not say
        with contextlib.suppress(*FAILURES):
            await self.client.aclose()
