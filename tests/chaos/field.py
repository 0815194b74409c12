"""What is broken in the runs: a PostgreSQL whose clock can be stepped, a gateway, and three workers, two of one name."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections import defaultdict
from pathlib import Path

from tests.chaos.handlers import APP
from tests.chaos.plans import Fault
from tests.conftest import QUICK
from tests.harness import Child, Mesh, eventually
from tests.stepping import SteppedPostgres

WORKER_NAMES = ("one", "one", "two")
SETTINGS = {**QUICK, "DEVMESH_TRANSACTION_DEADLINE_S": "2", "DEVMESH_SHUTDOWN_GRACE_S": "1"}


class Field:
    def __init__(self, postgres: SteppedPostgres, directory: Path) -> None:
        (directory / "chaos_app.py").write_text(APP)
        self.postgres, self.done_log = postgres, directory / "done.log"
        self.mesh = Mesh(postgres.database(), directory, SETTINGS)
        self.mesh.start("rest-api", "mcp-server")
        self.gateway = self.mesh.of("mcp-server")[0]
        self.workers = [
            self.mesh.add("worker", DEVMESH_WORKER_APP="chaos_app:mesh", CHAOS_WORKER=name) for name in WORKER_NAMES
        ]
        self._starting = threading.Lock()  # PostgreSQL is started in another environment
        self._breaking = defaultdict[object, asyncio.Lock](asyncio.Lock)
        for worker in self.workers:
            worker.start()
        for worker in self.workers:
            worker.wait_ready()

    async def suffer(self, fault: Fault) -> None:
        """One thing at a time is done to each of them."""
        if fault.name == "step_clock":
            self.postgres.clock.set(fault.amount)
            await asyncio.sleep(0.5)
            self.postgres.clock.set(0)
        elif "postgres" in fault.name or "backends" in fault.name:
            async with self._breaking[self.postgres]:
                await self._break_postgres(fault)
        else:
            child = self.gateway if "gateway" in fault.name else self.workers[fault.worker]
            async with self._breaking[child]:
                await self._break_service(child, fault)

    async def _break_service(self, child: Child, fault: Fault) -> None:
        match fault.name:
            case "kill_worker" | "kill_gateway":
                await self._replace(child, signal.SIGKILL, fault.amount)
            case "stop_worker":
                await self._replace(child, signal.SIGTERM, fault.amount)
            case "freeze_worker":
                child.signal(signal.SIGSTOP)
                await asyncio.sleep(fault.amount)
                child.signal(signal.SIGCONT)
            case _:
                raise AssertionError(fault.name)

    async def _break_postgres(self, fault: Fault) -> None:
        match fault.name:
            case "end_backends":
                await asyncio.to_thread(self.postgres.terminate_backends)
            case "restart_postgres":
                await asyncio.to_thread(self._restart_postgres)
            case "freeze_postgres":
                with self.postgres.frozen():
                    await asyncio.sleep(fault.amount)
            case _:
                raise AssertionError(fault.name)

    async def heal(self) -> None:
        """All is there again, and well."""
        self.postgres.clock.set(0)
        for child in (self.gateway, *self.workers):
            child.signal(signal.SIGCONT)
            if child.process is None or child.process.poll() is not None:
                await asyncio.to_thread(self._start, child)
        for child in (self.gateway, *self.workers):
            await eventually(child.is_ready, f"{child.service} is ready again: {child.tail()}", 20.0)

    async def _replace(self, child: Child, number: signal.Signals, pause_s: float) -> None:
        child.signal(signal.SIGCONT)
        child.signal(number)
        await asyncio.to_thread(child.wait)
        await asyncio.sleep(pause_s)
        await asyncio.to_thread(self._start, child)

    def _start(self, child: Child) -> None:
        with self._starting:
            child.start()

    def _restart_postgres(self) -> None:
        with self._starting:
            self.postgres.restart()
