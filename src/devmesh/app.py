"""The composition root: reads nothing itself, builds one service from its settings, and hands values down. No globals.

A service answers for its health from the first moment. What it is for begins when the database is there, the schema is
complete and every statement fits it; until then it says what it waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import psutil
import structlog
import uvicorn
import uvloop

from devmesh import telemetry
from devmesh.client.forks import STOP_SIGNALS, end_by
from devmesh.client.loops import end_the_rest, run_to_its_end
from devmesh.core.errors import unavailable
from devmesh.core.stopping import Stops, Told
from devmesh.edges import health as health_edge
from devmesh.edges.boundary import application
from devmesh.edges.corked import CorkedProtocol
from devmesh.edges.health import Health
from devmesh.edges.http_guard import guarded
from devmesh.edges.problem import problem_response
from devmesh.services import Service, StartRefused
from devmesh.settings import Settings

log = structlog.get_logger(__name__)

Message = MutableMapping[str, Any]
COLLECTED_EVERY = 50_000  # objects made and kept: those of a batch in flight are not searched for garbage each time
END_LIMIT_S = 1  # for what must end at once, and does unless the database is frozen
MESSAGE_SLACK = 4  # a message up to this many times too long is still read, so that it gets its own error


def run_service(name: str, settings: Settings) -> int:
    """Runs one of the services until it is told to stop. The exit code: 0, or 1 with one line that says why."""
    telemetry.configure_logs(name, settings.log_level)
    _raise_file_limit()
    try:
        listener = _listen(settings.host, settings.port_of(name))
    except OSError as error:
        print(f"devmesh {name}: {_why_taken(settings.host, settings.port_of(name), error)}", file=sys.stderr)  # noqa: T201
        return 1
    for warning in settings.warnings:
        log.warning(warning)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if settings.worker_app is None:
            return runner.run(_serve(name, settings, listener))
        return run_to_its_end(runner, _serve(name, settings, listener))


async def _serve(name: str, settings: Settings, listener: socket.socket) -> int:
    health = Health(name)
    front = Front(health)
    service = Service(name, settings, health)
    server = _Server(_config(front, settings))
    loop = asyncio.get_running_loop()
    stopping, hurried = _signals(loop)
    serving = loop.create_task(_serve_sockets(server, listener))
    starting = loop.create_task(service.start())
    code = 0
    ends: list[asyncio.Future[Any]] = [starting, stopping, serving]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if starting.done() and not stopping.done():
        try:
            front.product = starting.result()
            collect_seldom()
            log.info("ready", address=f"{settings.host}:{listener.getsockname()[1]}")
            await asyncio.wait([stopping, serving], return_when=asyncio.FIRST_COMPLETED)
        except StartRefused as refused:
            print(f"devmesh {name}: {refused}", file=sys.stderr)  # noqa: T201
            code = 1
    health.is_stopping = True
    log.info("stopping", grace_s=settings.shutdown_grace_s)
    starting.cancel()
    await asyncio.wait([starting], timeout=END_LIMIT_S)
    draining = loop.create_task(service.drain(front.answered))
    await asyncio.wait([draining, hurried], return_when=asyncio.FIRST_COMPLETED)
    draining.cancel()
    await service.close()
    server.leave()
    await asyncio.wait([serving], timeout=2 * END_LIMIT_S)
    await _end_the_rest(code)
    log.info("stopped")
    return code


async def _end_the_rest(code: int) -> None:
    """What is left is cancelled. An application's handler may not listen to that: the process then ends without it."""
    if deaf := await end_the_rest():
        log.warning("stopped without what did not listen", tasks=deaf)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def collect_seldom() -> None:
    """Has garbage be searched for as suits a service that has started."""
    gc.freeze()  # what it consists of stays
    gc.set_threshold(COLLECTED_EVERY, 5, 2)  # everything each tenth time: closed connections leave cycles


def _signals(loop: asyncio.AbstractEventLoop) -> tuple[asyncio.Future[None], asyncio.Future[None]]:
    """What the first signal brings about, and a second: to stop, and to wait for nobody."""
    stopping, hurried = loop.create_future(), loop.create_future()
    brought_about, stops = {Told.ONCE: stopping, Told.AGAIN: hurried}, Stops()

    def take() -> None:
        told = brought_about.get(stops.come(loop.time()))
        if told is not None and not told.done():
            told.set_result(None)

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, take)
        end_by(number)  # a worker's application may fork
    return stopping, hurried


class Front:
    """The ASGI application: health at once, the product when it is there and as long as the service is not stopping."""

    def __init__(self, health: Health) -> None:
        routes = health_edge.routes(health)
        self._health_app, self._health_paths = application(routes), {route.path for route in routes}
        self._health = health
        self._requests = 0  # in flight; connections and streams are told to end by who holds them
        self._idle = asyncio.Event()
        self._idle.set()
        self.product: Callable[..., Awaitable[None]] | None = None

    def __call__(self, scope: Message, receive: Any, send: Any) -> Awaitable[None]:
        """Chooses who answers. Not a coroutine, which would stay in memory for as long as a connection does."""
        if scope["type"] == "http" and scope["path"] in self._health_paths:
            return self._health_app(scope, receive, send)
        if self.product is None or self._health.is_stopping:
            return self._not_ready(scope, receive, send)
        return (self._count if scope["type"] == "http" else self.product)(scope, receive, send)

    async def answered(self) -> None:
        """Waits until no request is left without its answer."""
        await self._idle.wait()

    async def _count(self, scope: Message, receive: Any, send: Any) -> None:
        assert self.product is not None
        self._requests += 1
        self._idle.clear()
        try:
            await self.product(scope, receive, send)
        finally:
            self._requests -= 1
            if not self._requests:
                self._idle.set()

    async def _not_ready(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            reasons = "; ".join(self._health.reasons)
            error = unavailable(f"the service is not ready: {reasons}", 1000)
            await problem_response(error, {"Connection": "close"})(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": 1012, "reason": "the service is not ready; try again"})


class _Server(uvicorn.Server):
    """Leaves signals to us: a service drains before its server ends."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        self.should_exit = True
        self._leaving.set()

    async def main_loop(self) -> None:
        """Looks at the time for the Date header once a second, and not ten times: an idle service is to cost nothing."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), 1.0)

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


async def _serve_sockets(server: uvicorn.Server, listener: socket.socket) -> None:
    await server.serve(sockets=[listener])


def _config(front: Front, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        front,
        interface="asgi3",
        http=guarded(settings.request_head_timeout_s, settings.request_body_timeout_s),
        ws=CorkedProtocol,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),  # or anybody beside a proxy could say that it is somebody else
        forwarded_allow_ips=[address.strip() for address in settings.trusted_proxies.split(",") if address.strip()],
        backlog=4096,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=END_LIMIT_S,  # everybody has been given time before
        ws_max_size=settings.message_bytes_max * MESSAGE_SLACK,
        ws_ping_interval=settings.ping_interval_s,
        ws_ping_timeout=settings.ping_interval_s,  # for the answer to the second
        ws_per_message_deflate=False,  # it would cost three times the memory of a connection
    )


def _raise_file_limit() -> None:
    """Takes all the open files that the system allows: a connection is one, and the usual limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(4096)
    listener.setblocking(False)
    return listener


def _why_taken(host: str, port: int, error: OSError) -> str:
    """Why nobody can listen there, and who does if that can be known."""
    holder = ""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            is_listening = connection.status == psutil.CONN_LISTEN
            if is_listening and connection.laddr and connection.laddr.port == port and connection.pid:
                holder = f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    reason = f"is taken{holder}" if holder or error.errno == 98 else f"cannot be used: {error.strerror}"
    return f"port {port} of {host} {reason}; choose another with --port"
