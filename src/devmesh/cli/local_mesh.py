"""A whole mesh on this machine: PostgreSQL, the three services, a key, and the file that tools read.

Every part is stopped by the block that started it, the last one first, whatever ends the block. When this process itself
is killed the services end by themselves (tied.py); the embedded PostgreSQL stays, and the next start attaches to it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

from devmesh.cli.children import Child, Service, Surroundings
from devmesh.cli.console import Exit, Failure
from devmesh.cli.first_key import working_key
from devmesh.cli.instance import Instance
from devmesh.cli.logs import MergedLog
from devmesh.cli.own_key import keep_master_key
from devmesh.cli.own_postgres import own_postgres
from devmesh.cli.ports import in_address
from devmesh.core.errors import Kind, MeshError
from devmesh.core.stopping import Stops, Told
from devmesh.settings import Settings
from devmesh.store.connections import DatabaseUnreachable, close_connection, connect_with_backoff

DATABASE_PAUSES_S = (1.0, 1.0)  # between tries to reach a given database; who waits longer is a service, not a person
KEY_RETRY_INTERVAL_S = 1.0


class Ready(NamedTuple):
    """Where everything is, once it is there."""

    url: str
    ws_url: str
    worker_url: str
    dev_env: Path


class LocalMesh:
    def __init__(self, instance: Instance, settings: Settings, known_key: str | None) -> None:
        self._instance, self._settings, self._known_key = instance, settings, known_key
        self._hurry = asyncio.Event()
        self._stops = Stops()
        self._is_stopping = False
        self._log = MergedLog(on_closed=self.stop)

    async def run(self, on_ready: Callable[[Ready], None]) -> None:
        """Until somebody stops it. Raises `Failure`, alone or in a group."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._cancel = task.cancel
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.stop)
        try:
            async with self._database() as dsn:
                with self._surroundings(dsn) as surroundings:
                    async with asyncio.TaskGroup() as group:
                        on_ready(await self._bring_up(dsn, group, surroundings))
        except asyncio.CancelledError:
            if not self._is_stopping:
                raise

    def stop(self) -> None:
        """Asks for an orderly end; asked again, for a quick one."""
        told = self._stops.come(time.monotonic())
        if told is Told.AGAIN:
            self._hurry.set()
        elif told is Told.ONCE:
            self._is_stopping = True
            self._log("devmesh", "stopping")
            self._cancel()

    async def _bring_up(self, dsn: str, group: asyncio.TaskGroup, surroundings: Surroundings) -> Ready:
        """Starts the services in their order; the group keeps them running."""
        await keep_master_key(self._instance, dsn, self._settings)
        first, *others = [Child(service, surroundings, self._log) for service in self._services()]
        group.create_task(first.supervise())
        await first.wait_ready()  # it has migrated
        key = await self._key(dsn)
        for child in others:
            group.create_task(child.supervise())
        for child in others:
            await child.wait_ready()
        url, ws_url, worker_url = self._addresses()
        dev_env = self._instance.write_dev_env(
            {
                "DEVMESH_URL": url,
                "DEVMESH_WS_URL": ws_url,
                "DEVMESH_API_KEY": key,
                "DATABASE_DSN": dsn,
                **self._places(),
            }
        )
        return Ready(url, ws_url, worker_url, dev_env)

    async def _key(self, dsn: str) -> str:
        """A working key, also when the database is gone in this moment: it comes back."""
        while True:
            try:
                return await working_key(dsn, self._settings, self._known_key)
            except MeshError as error:
                if error.kind not in (Kind.UNAVAILABLE, Kind.TIMEOUT):
                    raise Failure(f"the first key cannot be made: {error.message}") from error
                self._log("devmesh", f"the first key cannot be made yet: {error.message}")
            await asyncio.sleep(KEY_RETRY_INTERVAL_S)

    def _services(self) -> list[Service]:
        settings = self._settings
        url, _, worker_url = self._addresses()
        common = ["--host", settings.host, "--data-dir", str(self._instance.directory), "--port"]
        return [
            Service("rest-api", [*common, str(settings.rest_port)], url),
            Service("mcp-server", [*common, str(settings.ws_port)], f"http://{self._host}:{settings.ws_port}"),
            Service("worker", [*common, str(settings.worker_port)], worker_url),
        ]

    def _addresses(self) -> tuple[str, str, str]:
        """Of REST, of the WebSocket and of the worker's health, as somebody on this machine reaches them."""
        settings, host = self._settings, self._host
        return (
            f"http://{host}:{settings.rest_port}",
            f"ws://{host}:{settings.ws_port}/ws",
            f"http://{host}:{settings.worker_port}",
        )

    def _places(self) -> dict[str, str]:
        """Where services listen, so that `devmesh doctor` and health checks look there."""
        settings = self._settings
        return {
            "DEVMESH_HOST": settings.host,
            "DEVMESH_WS_PORT": str(settings.ws_port),
            "DEVMESH_REST_PORT": str(settings.rest_port),
            "DEVMESH_WORKER_PORT": str(settings.worker_port),
        }

    @property
    def _host(self) -> str:
        return in_address(self._settings.host)

    @asynccontextmanager
    async def _database(self) -> AsyncIterator[str]:
        """The database that was named, or our own for as long as the block lasts."""
        if self._settings.database_dsn is not None:
            await self._require_reachable(self._settings.database_dsn)
            yield self._settings.database_dsn
            return
        directory = self._instance.directory / "postgres"
        async with own_postgres(directory, self._log, self._hurry.is_set) as dsn:
            yield dsn

    async def _require_reachable(self, dsn: str) -> None:
        try:
            connection = await connect_with_backoff(
                dsn, lambda reason: self._log("devmesh", reason), service="devmesh up", backoff_s=DATABASE_PAUSES_S
            )
        except DatabaseUnreachable as error:
            hint = "correct DATABASE_DSN, or leave it out: `devmesh up` then brings a PostgreSQL of its own"
            raise Failure(str(error), Exit.UNREACHABLE, hint) from error
        await close_connection(connection)

    @contextmanager
    def _surroundings(self, dsn: str) -> Iterator[Surroundings]:
        """What the services inherit, the pipe included that tells them that we are gone."""
        reading, writing = os.pipe()
        try:
            yield Surroundings(
                environment={"MIGRATIONS_FAIL_FAST": "true", **os.environ, "DATABASE_DSN": dsn},
                parent_fd=reading,
                lock_fd=self._instance.lock_fd,
                grace_s=self._settings.shutdown_grace_s,
                hurry=self._hurry,
            )
        finally:
            os.close(reading)
            os.close(writing)
