"""What tests break: a PostgreSQL of their own, and a wire to it that can be cut, stalled or closed at any byte."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

import psutil

from devmesh.store.embedded import EmbeddedPostgres
from tests.conftest import run_sql, without_syncing
from tests.harness import free_port

GONE_LIMIT_S = 10.0


class Postgres:
    """A server that may be killed, frozen and started again. Each test that asks gets a database of its own on it."""

    def __init__(self, directory: Path) -> None:
        self.server = EmbeddedPostgres(directory)
        self.dsn = without_syncing(self.server.start())
        self._databases = 0

    def database(self) -> str:
        """The DSN of an empty database."""
        self._databases += 1
        name = f"broken_{self._databases}"
        run_sql(self.dsn, f"create database {name}")
        return urlsplit(self.dsn)._replace(path=f"/{name}").geturl()

    def sql(self, text: str) -> str:
        return run_sql(self.dsn, text)

    def restart(self) -> None:
        """Without a checkpoint, as after a crash."""
        self.server.stop("immediate")
        self.server.start()

    def processes(self) -> list[psutil.Process]:
        """The postmaster, then its children."""
        postmaster = psutil.Process(int((self.server.data / "postmaster.pid").read_text().split()[0]))
        return [postmaster, *postmaster.children()]

    def kill(self) -> None:
        """kill -9 of the postmaster. Its children notice."""
        processes = self.processes()
        processes[0].kill()
        _, left = psutil.wait_procs(processes, timeout=GONE_LIMIT_S)
        assert not left, f"{left} outlive their postmaster"

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Nothing of it moves: connections are neither answered nor closed."""
        frozen = []
        try:
            for process in self.processes():  # one that has ended meanwhile must not leave the others frozen for good
                frozen.append(process)
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            yield
        finally:
            for process in frozen:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    def terminate_backends(self, name: str = "%") -> None:
        """Ends every client's session, as an administrator would."""
        self.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            f" where backend_type = 'client backend' and pid <> pg_backend_pid() and application_name like '{name}'"
        )


@contextmanager
def own_postgres() -> Iterator[Postgres]:
    directory = Path(tempfile.mkdtemp(prefix="devmesh-broken-"))
    made = Postgres(directory)
    try:
        yield made
    finally:
        made.server.stop("immediate")
        shutil.rmtree(directory)


class _Pipe(NamedTuple):
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter


class Proxy:
    """Stands between a service and PostgreSQL on a TCP port. It runs on the loop of the test."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        query = parse_qs(parts.query)
        self._socket = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"
        self.port = free_port()
        self.dsn = f"postgresql://postgres@127.0.0.1:{self.port}{parts.path}"
        self.cuts_after: int | None = None  # so many messages of clients, everything is cut, once
        self.messages = 0
        self._pipes: set[_Pipe] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def refuse(self) -> None:
        """Nobody listens any more; what is connected stays so."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def cut(self) -> None:
        """Every connection is reset."""
        for pipe in self._pipes:
            pipe.client.transport.abort()
            pipe.server.transport.abort()

    def stall(self) -> None:
        """From now on nothing passes, on any connection, and nobody is told."""
        self._flowing.clear()

    def forget(self) -> None:
        """The connections of this moment go on, but nothing passes on them ever again; new ones work."""
        self._flowing, forgotten = asyncio.Event(), self._flowing
        forgotten.clear()
        self._flowing.set()

    def flow(self) -> None:
        self._flowing.set()

    async def close(self) -> None:
        await self.refuse()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._connect(reader, client)
        except (OSError, asyncio.CancelledError):
            pass  # the server of streams would tell of it as of a fault
        finally:
            self._tasks.discard(task)
            client.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        flowing = self._flowing
        from_server, server = await asyncio.open_unix_connection(self._socket)
        pipe = _Pipe(client, server)
        self._pipes.add(pipe)
        passing = [
            asyncio.ensure_future(self._pass(reader, server, flowing, is_client=True)),
            asyncio.ensure_future(self._pass(from_server, client, flowing, is_client=False)),
        ]
        try:
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._pipes.discard(pipe)
            server.transport.abort()
            for task in passing:
                task.cancel()

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, flowing: asyncio.Event, *, is_client: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                if is_client:
                    self.messages += 1
                    if self.cuts_after is not None and self.messages > self.cuts_after:
                        self.cuts_after = None
                        self.cut()
                        return
                await flowing.wait()
                target.write(data)
                await target.drain()


@asynccontextmanager
async def proxy_to(dsn: str) -> AsyncIterator[Proxy]:
    proxy = await Proxy(dsn).open()
    try:
        yield proxy
    finally:
        await proxy.close()
