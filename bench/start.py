"""How long starting takes: a whole mesh on nothing and on what it left, one service alone, and what readiness costs to ask."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
from tests.harness import Child, Mesh, free_port

from bench.figures import Figure, percentile
from bench.stage import Stage
from devmesh.store.database import Database
from devmesh.store.embedded import EmbeddedPostgres
from devmesh.store.inspection import Inspector

ROUNDS = 5
QUICK_ROUNDS = 2
ASKINGS = 200
LOOKS = 20
UP_LIMIT_S = 60.0
POLL_INTERVAL_S = 0.005


async def measure(stage: Stage) -> list[Figure]:
    rounds = ROUNDS if stage.extent.measured_s > 5 else QUICK_ROUNDS
    cold, warm = await asyncio.to_thread(_whole_meshes, stage, rounds)
    services = {name: await _services(stage, name, rounds) for name in ("rest-api", "mcp-server", "worker")}
    slowest = max(services, key=lambda name: statistics.median(services[name]))
    shares = ", ".join(f"{name} {statistics.median(found):.2f} s" for name, found in services.items())
    asked_ms = await _readiness(stage)
    looks_ms = await _looks(stage)
    of_many = f"median of {rounds}"
    return [
        Figure(
            name="cold `devmesh up`: initdb, migrations, all ready", value=statistics.median(cold), unit="s",
            at_most=6, note=_spread(cold),
        ),
        Figure(name="warm `devmesh up`", value=statistics.median(warm), unit="s", at_most=3, note=_spread(warm)),
        Figure(
            name="a service's start, the slowest of three", value=statistics.median(services[slowest]), unit="s",
            at_most=1.5, note=f"{of_many}: {shares}",
        ),
        Figure(name="readiness check, p50", value=percentile(asked_ms, 0.5), unit="ms", at_most=5),
        Figure(name="… p99", value=percentile(asked_ms, 0.99), unit="ms"),
        Figure(name="drift check: the whole live schema, p50", value=percentile(looks_ms, 0.5), unit="ms", at_most=100),
    ]  # fmt: skip


def _whole_meshes(stage: Stage, rounds: int) -> tuple[list[float], list[float]]:
    """The first start of as many directories, and the second."""
    cold, warm = [], []
    for number in range(rounds):
        directory = stage.directory / f"up-{number}"
        directory.mkdir()
        for times in (cold, warm):
            times.append(_up(directory))
        EmbeddedPostgres(directory / ".devmesh" / "postgres").stop("immediate")
    return sorted(cold), sorted(warm)


def _up(directory: Path) -> float:
    """From the command to its word that all is ready."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DEVMESH_", "DATABASE_"))}
    began = time.perf_counter()
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "devmesh", "up", "--json", "--port", str(free_port())],
            cwd=directory, env=clean, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError((directory / "log").read_text()[-2000:])
        return time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=UP_LIMIT_S)


async def _services(stage: Stage, name: str, rounds: int) -> list[float]:
    """Starts of one service on a database that is ready, alone."""
    async with stage.database() as dsn:
        mesh = Mesh(dsn, stage.directory)
        try:
            return [await asyncio.to_thread(_start, mesh.add(name)) for _ in range(rounds)]
        finally:
            mesh.end()


def _start(child: Child) -> float:
    began = time.perf_counter()
    child.start()
    while not child.is_ready():
        time.sleep(POLL_INTERVAL_S)
    took_s = time.perf_counter() - began
    child.end()
    return took_s


async def _readiness(stage: Stage) -> list[float]:
    """How long /readyz takes, in milliseconds, asked one time after another."""
    async with stage.mesh("mcp-server") as mesh, httpx.AsyncClient(trust_env=False) as http:
        took_ms = []
        for _ in range(ASKINGS):
            began = time.perf_counter()
            answer = await http.get(f"http://127.0.0.1:{mesh.gateway.port}/readyz")
            took_ms.append((time.perf_counter() - began) * 1000)
            answer.raise_for_status()
        return took_ms


async def _looks(stage: Stage) -> list[float]:
    """How long it takes to hold the live schema against what the migrations make, in milliseconds."""
    inspector = Inspector.of_this_program()
    took_ms = []
    async with stage.database() as dsn:
        database = await Database.open(
            dsn, service="bench", pool_size_min=1, pool_size_max=1, transaction_deadline_s=10.0
        )
        try:
            for _ in range(LOOKS):
                began = time.perf_counter()
                look = await inspector.look(database)
                took_ms.append((time.perf_counter() - began) * 1000)
                assert look.drift is not None
        finally:
            await database.close()
    return took_ms


def _spread(times: list[float]) -> str:
    return f"of {len(times)}: {times[0]:.2f} to {times[-1]:.2f} s"
