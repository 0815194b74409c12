"""Real services as child processes on a real database, to be used, killed, stopped and started again by tests."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import httpx
import psutil

from devmesh import operations
from devmesh.core.access import KeyKind
from devmesh.core.ids import new_id
from devmesh.core.stopping import ONE_SIGNAL_S
from devmesh.operations.administration import CreateKey, create_key_for
from devmesh.operations.work import Work
from devmesh.store.database import Database, Transaction
from devmesh.store.statements import load
from devmesh.store.vault import Vault
from tests import forking

PORT_MIN, PORT_MAX = 20_000, 32_000  # below the system's own ephemeral ports
READY_LIMIT_S = 30.0
PORTS_PER_WORKER = 1_500  # test processes side by side have ranges of their own
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_next_port = PORT_MIN + (_worker % 8) * PORTS_PER_WORKER + os.getpid() % 1_000


def free_port() -> int:
    """A port that nobody listens on and that this run has not handed out yet."""
    global _next_port
    while True:
        _next_port = PORT_MIN + (_next_port + 1 - PORT_MIN) % (PORT_MAX - PORT_MIN)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", _next_port))
            except OSError:
                continue
            return _next_port


def pauses_s() -> Iterator[float]:
    """Between looks: short ones for what is about to be so, then longer ones, for each look slows what is waited for."""
    pause_s = 0.01
    while True:
        yield pause_s
        pause_s = min(pause_s * 1.25, 0.1)


def wait_until(condition: Callable[[], object], what: str, within_s: float = 20.0) -> None:
    """Looks again and again until a condition holds. Fails, saying what was waited for, when it does not in time."""
    ends_at = time.monotonic() + within_s
    for pause_s in pauses_s():
        if condition():
            return
        assert time.monotonic() < ends_at, f"{what}: not within {within_s} s"
        time.sleep(pause_s)


async def eventually(condition: Callable[[], object], what: str, within_s: float = 20.0) -> None:
    """Like `wait_until`, while the loop goes on. The condition may be a coroutine function."""
    ends_at = time.monotonic() + within_s
    for pause_s in pauses_s():
        held = condition()
        if asyncio.iscoroutine(held):
            held = await held
        if held:
            return
        assert time.monotonic() < ends_at, f"{what}: not within {within_s} s"
        await asyncio.sleep(pause_s)


def signal_twice(process: forking.Process, number: signal.Signals) -> None:
    """As `timeout` does, which tells a process and then its group. The first must have been taken, or both are one."""
    process.send_signal(number)
    status = Path(f"/proc/{process.pid}/status")
    while any(
        int(line.split()[1], 16) & 1 << number - 1
        for line in status.read_text().splitlines()
        if line.startswith(("SigPnd", "ShdPnd"))
    ):
        pass
    process.send_signal(number)


def until_a_signal_is_another() -> None:
    """Waits until a process that has taken a signal by now takes the next one for a second."""
    told_s = time.monotonic()
    wait_until(lambda: time.monotonic() - told_s > ONE_SIGNAL_S, "a signal is another one")


def are_gone(processes: list[psutil.Process]) -> bool:
    """Whether all have ended, though nobody may have waited for them yet."""
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


class Child:
    """One service as a process."""

    def __init__(self, service: str, port: int, environment: dict[str, str], log: Path) -> None:
        self.service, self.port, self._environment, self.log = service, port, environment, log
        self.process: forking.Process | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = forking.start(
                ["devmesh", self.service], cwd=self.log.parent, env=self._environment, stdout=output
            )

    def wait_ready(self, within_s: float = READY_LIMIT_S) -> None:
        wait_until(self.is_ready, f"{self.service} is ready; its log: {self.tail()}", within_s)

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.service} ended with {self.process.returncode}: {self.tail()}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2.0)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def metric(self, series: str) -> float:
        """What it shows for a series, which is named with its labels; 0 for one that it does not show."""
        text = httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=5, trust_env=False).text
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{series} "))

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and waits until the process is gone."""
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self, within_s: float = 15.0) -> int:
        """The exit code."""
        assert self.process is not None
        return self.process.wait(within_s)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""


class Mesh:
    """Some services on one database."""

    running: ClassVar[list[Mesh]] = []  # so that the logs of their services can be shown with a test that fails

    def __init__(self, dsn: str, directory: Path, settings: dict[str, str] | None = None) -> None:
        self.dsn, self._directory = dsn, directory
        self._settings = settings or {}
        self.children: list[Child] = []
        self.admin_key = ""

    def add(self, service: str, **settings: str) -> Child:
        """Another service, not started yet, perhaps with settings of its own."""
        port = free_port()
        name = {"rest-api": "REST", "mcp-server": "WS", "worker": "WORKER"}[service]
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("DEVMESH_", "DATABASE_", "ENCRYPTION_"))
        }
        environment = {
            **clean,
            "DATABASE_DSN": self.dsn,
            "DEVMESH_AUTH_FAILURES_PER_MINUTE_MAX": "1000000",  # all tests come from one address
            **self._settings,
            **settings,
            f"DEVMESH_{name}_PORT": str(port),
        }
        log = self._directory / f"{service}-{len(self.children)}.log"
        child = Child(service, port, environment, log)
        self.children.append(child)
        return child

    def start(self, *services: str) -> None:
        """Starts services, waits until they are ready, and makes the operator's key."""
        if self not in Mesh.running:
            Mesh.running.append(self)
        for service in services:
            self.add(service).start()
        for child in self.children:
            child.wait_ready()
        if not self.admin_key:
            with ThreadPoolExecutor(1) as aside:  # the caller may run in a loop already
                self.admin_key = aside.submit(asyncio.run, create_admin_key(self.dsn, "default")).result()

    def of(self, service: str) -> list[Child]:
        return [child for child in self.children if child.service == service]

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.of('mcp-server')[0].port}/ws"

    @property
    def rest_url(self) -> str:
        return f"http://127.0.0.1:{self.of('rest-api')[0].port}"

    def new_tenant(self) -> str:
        """The administrator's key of a new tenant, made through the public wire."""
        answer = httpx.post(
            f"{self.rest_url}/api/v1/tenants",
            json={"name": f"t{new_id().hex}"},
            headers={"Authorization": f"Bearer {self.admin_key}"},
            timeout=10.0,
            trust_env=False,
        )
        assert answer.status_code == 201, answer.text
        secret: str = answer.json()["secret"]
        return secret

    def end(self) -> None:
        for child in self.children:
            child.end()
        if self in Mesh.running:
            Mesh.running.remove(self)


@contextmanager
def running_mesh(dsn: str, directory: Path, *services: str, settings: dict[str, str] | None = None) -> Iterator[Mesh]:
    mesh = Mesh(dsn, directory, settings)
    try:
        mesh.start(*services)
        yield mesh
    finally:
        mesh.end()


async def create_admin_key(dsn: str, tenant: str) -> str:
    """What `devmesh up` does at its first start: a tenant and its first key, straight in the database."""
    operations.load_all()
    tenants = load("tenants")
    database = await Database.open(dsn, service="tests", pool_size_min=1, pool_size_max=1, transaction_deadline_s=10.0)

    async def create(tx: Transaction) -> str:
        await tx.fetch_row(tenants.insert, new_id(), tenant, None)
        row = await tx.fetch_row(tenants.by_name, tenant)
        assert row is not None
        work = Work(tx, row["id"], row["created_at"], Vault())
        _, secret = await create_key_for(work, row["id"], CreateKey(kind=KeyKind.ADMIN, name="tests"))
        return secret

    try:
        return await database.run(create)
    finally:
        await database.close()
