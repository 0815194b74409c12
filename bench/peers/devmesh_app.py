"""The handlers of DevMesh in the comparison: `devmesh worker --app bench.peers.devmesh_app:mesh`.

A worker has the one handler that is measured, as the peers have.
"""

from __future__ import annotations

import asyncio
import os
import time

from devmesh.client import JobContext, Mesh

mesh = Mesh(capacity=int(os.environ.get("PEER_CAPACITY", "100")), worker="bench")


async def noop(job: JobContext) -> None:
    """Nothing."""


async def sleep(job: JobContext) -> None:
    await asyncio.sleep(0.010)


async def time_it(job: JobContext) -> float:
    """Milliseconds from when it was enqueued to now."""
    return (time.time() - job.payload) * 1000


name = os.environ["PEER_HANDLER"]
mesh.job(name, queue=name)({"noop": noop, "sleep": sleep, "timed": time_it}[name])
