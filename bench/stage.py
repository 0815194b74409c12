"""What a measure stands on: PostgreSQL, a fresh database, real services as processes of their own, and what they cost."""

from __future__ import annotations

import asyncio
import itertools
import platform
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import msgspec
import psutil
from tests.harness import Child, Mesh, create_admin_key

from bench.wire import Connection
from devmesh import operations
from devmesh.app import collect_seldom
from devmesh.core.access import Caller
from devmesh.engine.bell import Bell
from devmesh.engine.notify_bell import NotifyBell
from devmesh.engine.queue_scout import QueueScout
from devmesh.operations.authentication import Authenticator
from devmesh.operations.corridor import Corridor
from devmesh.operations.work import WorkRunner
from devmesh.settings import Settings
from devmesh.store.database import Database
from devmesh.store.embedded import MAJOR_VERSION, EmbeddedPostgres
from devmesh.store.migrator import Migrator
from devmesh.store.vault import Vault

HOST = "127.0.0.1"
POOL_SIZE = 8
CONNECTIONS_A_ROUND = 200  # opened side by side, so that none waits until its time to initialize is over


class Extent(msgspec.Struct, frozen=True):
    """How large and how long measures are."""

    connections: int = 9_000
    hold_s: float = 30.0  # longer than the interval of pings
    warm_up_s: float = 2.0
    measured_s: float = 10.0
    jobs_waiting: int = 1_000_000


QUICK = Extent(connections=1_000, hold_s=3.0, warm_up_s=1.0, measured_s=4.0, jobs_waiting=100_000)


class Stage:
    """One PostgreSQL for all measures; each gets a database and services of its own."""

    def __init__(self, directory: Path, extent: Extent) -> None:
        self.extent = extent
        self.directory = directory
        self.server = EmbeddedPostgres(directory / "postgres")
        self._dsn = self.server.start()
        self._numbers = itertools.count(1)

    def stop(self) -> None:
        self.server.stop("immediate")

    @asynccontextmanager
    async def empty_database(self) -> AsyncIterator[str]:
        """The DSN of a database with nothing in it."""
        name = f"bench_{next(self._numbers)}"
        await self._execute(f"create database {name}")
        try:
            yield urlsplit(self._dsn)._replace(path=f"/{name}").geturl()
        finally:
            await self._execute(f"drop database {name} with (force)")

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """The DSN of a fresh, migrated database."""
        async with self.empty_database() as dsn:
            await Migrator(dsn).up()
            yield dsn

    @asynccontextmanager
    async def mesh(self, *services: str, **settings: str) -> AsyncIterator[Running]:
        """Services on a fresh database."""
        async with self.database() as dsn:
            mesh = Mesh(dsn, self.directory, settings)
            try:
                await asyncio.to_thread(mesh.start, *services)
                yield Running(mesh, self)
            finally:
                mesh.end()

    async def _execute(self, sql: str) -> None:
        connection = await asyncpg.connect(self._dsn)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()


class Running:
    """A mesh that is measured."""

    def __init__(self, mesh: Mesh, stage: Stage) -> None:
        self.dsn, self.key, self._mesh, self._stage = mesh.dsn, mesh.admin_key, mesh, stage
        self.gateway = mesh.of("mcp-server")[0]

    async def key_of(self, tenant: str) -> str:
        """The administrator's key of another tenant."""
        return await create_admin_key(self.dsn, tenant)

    async def connect(self, count: int) -> list[Connection]:
        """Initialized connections, from as many addresses of this machine as there are ephemeral ports to spare."""
        opened: list[Connection] = []
        while len(opened) < count:
            some = min(CONNECTIONS_A_ROUND, count - len(opened))
            local_host = f"127.0.0.{2 + len(opened) // 8_000}"
            opened += await asyncio.gather(*(self._initialized(local_host) for _ in range(some)))
        return opened

    async def _initialized(self, local_host: str) -> Connection:
        connection = await Connection.connect(HOST, self.gateway.port, self.key, local_host=local_host)
        await connection.call("initialize", client={"name": "bench", "version": "1"})
        return connection

    def memory_bytes(self) -> int:
        """What the gateway alone has in memory: pages that it shares with others count by its share."""
        assert self.gateway.process is not None
        return psutil.Process(self.gateway.process.pid).memory_full_info().pss

    def costs(self) -> Costs:
        """Processor time that everybody has used so far."""
        children = {child.service: _seconds(_process(child)) for child in self._mesh.children}
        postmaster = int((self._stage.server.data / "postmaster.pid").read_text().split()[0])
        postgres = sum(_seconds(process) for process in psutil.Process(postmaster).children())
        return Costs({**children, "postgres": postgres, "generator": _seconds(psutil.Process())})


@asynccontextmanager
async def corridor_on(dsn: str, **variables: str) -> AsyncIterator[tuple[Corridor, Caller]]:
    """A corridor in this process, with settings of its own, and somebody who may do everything."""
    operations.load_all()
    settings = Settings.load(variables)
    key = await create_admin_key(dsn, "default")
    database = await Database.open(
        dsn,
        service="bench",
        pool_size_min=POOL_SIZE,
        pool_size_max=POOL_SIZE,
        transaction_deadline_s=settings.transaction_deadline_s,
    )
    try:
        caller = await Authenticator(database, settings).authenticate(key, HOST)
        carrier = NotifyBell(database)
        bell = Bell([carrier], settings.bell_coalesce_ms)
        runner = WorkRunner(database, bell, Vault())
        corridor, scout = Corridor(runner, settings), QueueScout(runner)
        collect_seldom()  # as in a service, and so are the loops
        loops = [carrier, bell, scout]
        for loop in loops:
            loop.start()
        try:
            yield corridor, caller
            await corridor.drain()
        finally:
            for loop in reversed(loops):
                await loop.stop()
    finally:
        await database.close()


class Costs:
    """Seconds of processor time by who used them."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    def each(self, before: Costs, count: int) -> str:
        """What one of so many operations cost since then, in words."""
        used = {name: seconds - before._seconds.get(name, 0.0) for name, seconds in self._seconds.items()}
        parts = [f"{name} {seconds / max(count, 1) * 1e6:.0f}" for name, seconds in used.items()]
        return "µs of processor each: " + ", ".join(parts)


def machine() -> str:
    """What was measured on, in one line."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    return (
        f"{psutil.cpu_count()} processors ({processor}) for load generator, services and PostgreSQL {MAJOR_VERSION}"
        f" together; Python {platform.python_version()}, {platform.system()}"
    )


def raise_file_limit() -> int:
    """As many open files as this user may have, here and in the services that are started. Answers with how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _process(child: Child) -> psutil.Process:
    assert child.process is not None
    return psutil.Process(child.process.pid)


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # a backend that has ended meanwhile
        return 0.0
    return float(times.user + times.system)
