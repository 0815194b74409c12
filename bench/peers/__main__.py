"""Runs the same work on DevMesh and its peers, one after the other on one PostgreSQL, and prints a table."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import structlog
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from bench.peers import devmesh_peer
from bench.peers.environment import HERE, NotInstalled, node, python
from bench.stage import QUICK, Stage, machine
from devmesh import __version__

MEASURES = {
    "enqueue in thousands": "/s", "enqueue one at a time": "/s", "no-op": "/s", "10 ms handlers": "/s", "latency p50": "ms",
    "latency p99": "ms",
}  # fmt: skip
RUN_LIMIT_S = 240.0
SECONDS = 5.0


class Peer(NamedTuple):
    """Who it is, how it is run, and what it promises."""

    name: str
    script: str
    store: str
    guarantees: str
    setup: str


PEERS = (
    Peer("procrastinate 3.10.0", "procrastinate_peer.py", "postgres", "not fenced; history kept; no events", "100 at once"),
    Peer("PgQueuer 1.6.0", "pgqueuer_peer.py", "postgres", "not fenced; a log of states; no events", "batches of 100"),
    Peer("DBOS 3.4.0", "dbos_peer.py", "postgres", "durable steps; history kept; no events", "100 at once, polling each 50 ms"),
    Peer("graphile-worker 0.17.3", "graphile_worker_peer.js", "postgres", "not fenced; history deleted; no events",
         "local queue of 500, completions in batches, 1,000 at once"),
    Peer("pg-boss 10.4.2", "pg_boss_peer.js", "postgres", "not fenced; history kept; no events",
         "fetched by the thousand by two; latency: its own polling, 0.5 s"),
    Peer("Celery 5.7.0", "celery_peer.py", "redis", "not durable here; no history; no events",
         "Redis without persistence, 100 threads"),
    Peer("BullMQ 6.7.0", "bullmq_peer.js", "redis", "locks renewed; history kept in memory; events",
         "Redis without persistence, 1,000 at once"),
)  # fmt: skip
DEVMESH = f"DevMesh {__version__}"
OWN = Peer(
    DEVMESH, "", "postgres", "fenced; history kept; events", "`devmesh worker`: holds 8,000 for no-ops, else 1,000"
)


def main(only: Annotated[list[str] | None, typer.Argument(help="Only peers whose names begin so.")] = None) -> None:
    """Compare DevMesh with other queues: the same work, the same PostgreSQL, one after the other."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    chosen = [peer for peer in PEERS if not only or any(peer.name.lower().startswith(name.lower()) for name in only)]
    results: dict[str, dict[str, float] | str] = {}
    with tempfile.TemporaryDirectory(prefix="devmesh-peers-", ignore_cleanup_errors=True) as directory:
        stage = Stage(Path(directory), QUICK)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                results[DEVMESH] = runner.run(_own(stage))
                _say(DEVMESH, results[DEVMESH])
                for peer in chosen:
                    results[peer.name] = runner.run(_peer(stage, peer))
                    _say(peer.name, results[peer.name])
        finally:
            stage.stop()
    _show(results)


async def _own(stage: Stage) -> dict[str, float]:
    async with stage.database() as dsn:
        return await devmesh_peer.measure(dsn, stage.directory, SECONDS)


async def _peer(stage: Stage, peer: Peer) -> dict[str, float] | str:
    """Its figures, or why there are none."""
    try:
        if peer.store == "redis":
            return await asyncio.to_thread(_with_redis, stage, peer)
        async with stage.empty_database() as dsn:
            return await asyncio.to_thread(_run, peer, dsn)
    except NotInstalled as problem:
        return f"not run: {problem}"


def _with_redis(stage: Stage, peer: Peer) -> dict[str, float] | str:
    try:
        from tests.redis_server import RedisServer
    except BaseException as problem:
        return f"not run: {problem}"
    server = RedisServer(stage.directory)
    server.start()
    try:
        return _run(peer, server.url)
    finally:
        server.kill()


def _run(peer: Peer, address: str) -> dict[str, float] | str:
    if peer.script.endswith(".js"):
        interpreter, folder = node()
        command = [interpreter, str(folder / peer.script)]
    else:
        command = [str(python()), str(HERE / peer.script)]
    environment = {**os.environ, "PEER_ADDRESS": address, "PEER_SECONDS": str(SECONDS), "PYTHONPATH": str(HERE)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=RUN_LIMIT_S, env=environment, check=False
        )
    except subprocess.TimeoutExpired as late:
        output = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        problem = "it took too long"
    else:
        output = done.stdout
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        problem = next((line for line in reversed(lines) if "rror" in line), lines[-1])
    found = {line["measure"]: line["value"] for line in map(json.loads, _json_lines(output))}
    return found or f"not run: {problem}"


def _json_lines(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith('{"measure"')]


def _say(name: str, result: dict[str, float] | str) -> None:
    told = (
        result if isinstance(result, str) else ", ".join(f"{measure} {value:,.1f}" for measure, value in result.items())
    )
    Console(stderr=True).print(f"{name}: {told}")


def _show(results: dict[str, dict[str, float] | str]) -> None:
    table = Table("", *MEASURES, "guarantees", "set up")
    about = {peer.name: peer for peer in (OWN, *PEERS)}
    for name, result in results.items():
        if isinstance(result, str):
            figures = [result, *[""] * (len(MEASURES) - 1)]
        else:
            figures = [f"{result[measure]:,.0f}" if measure in result else "-" for measure in MEASURES]
        table.add_row(name, *figures, about[name].guarantees, about[name].setup)
    console = Console(width=200)
    console.print(table)
    console.print(f"{machine()}; the one who enqueues, the worker and the database share it")
    own = results[DEVMESH]
    assert not isinstance(own, str)
    console.print(
        f"enqueued through a gateway, over its WebSocket: DevMesh's latency p50 {own['WebSocket p50']:.1f} ms,"
        f" p99 {own['WebSocket p99']:.1f} ms"
    )
    console.print(f"an idle worker of DevMesh takes {own['idle worker']:.2f}% of a processor")
    for measure, unit in MEASURES.items():
        better: Callable[[float, float], bool] = (lambda a, b: a > b) if unit == "/s" else (lambda a, b: a < b)
        ahead = [name for name, found in results.items()
                 if not isinstance(found, str) and measure in found and better(found[measure], own[measure])]  # fmt: skip
        if ahead:
            console.print(f"{measure}: ahead of DevMesh: {', '.join(ahead)}")


typer.run(main)
