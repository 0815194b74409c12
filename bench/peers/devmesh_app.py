"""The handlers of DevMesh in the comparison: `devmesh worker --app bench.peers.devmesh_app:mesh`."""

from __future__ import annotations

import asyncio
import os
import time

from devmesh.client import JobContext, Mesh

mesh = Mesh(capacity=int(os.environ.get("PEER_CAPACITY", "100")), worker="bench")


@mesh.job("noop", queue="noop")
async def noop(job: JobContext) -> None:
    """Nothing."""


@mesh.job("sleep", queue="sleep")
async def sleep(job: JobContext) -> None:
    await asyncio.sleep(0.010)


@mesh.job("timed", queue="timed")
async def time_it(job: JobContext) -> float:
    """Milliseconds from when it was enqueued to now."""
    return (time.time() - job.payload) * 1000
