"""The PostgreSQL that `devmesh up` brings: running as long as the mesh does, whatever happens to it.

Starting and stopping block, so they happen on threads. A start is always waited for, also by who is told to stop meanwhile:
one that was given up half-way would leave a server that nobody stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from devmesh.cli.children import Log
from devmesh.cli.console import Failure
from devmesh.store.embedded import EmbeddedError, EmbeddedPostgres

LOOK_INTERVAL_S = 0.5
RETRY_INTERVAL_S = 5.0


@asynccontextmanager
async def own_postgres(directory: Path, log: Log, is_hurried: Callable[[], bool]) -> AsyncIterator[str]:
    """Its DSN. Raises `Failure`."""
    try:
        postgres = EmbeddedPostgres(directory)
        keeper: asyncio.Task[None] | None = None
        try:
            dsn = await _start(postgres)
            keeper = asyncio.create_task(_keep(postgres, log))
            yield dsn
        finally:
            if keeper is not None:
                keeper.cancel()
                await asyncio.wait([keeper])
            await asyncio.to_thread(postgres.stop, "immediate" if is_hurried() else "fast")
    except EmbeddedError as error:
        raise Failure(str(error)) from error


async def _start(postgres: EmbeddedPostgres) -> str:
    starting = asyncio.create_task(asyncio.to_thread(postgres.start))
    try:
        return await asyncio.shield(starting)
    finally:
        await asyncio.wait([starting])


async def _keep(postgres: EmbeddedPostgres, log: Log) -> None:
    """Starts it again when it was killed. The services wait for it by themselves."""
    while True:
        await asyncio.sleep(LOOK_INTERVAL_S)
        if postgres.is_running():
            continue
        log("devmesh", "PostgreSQL has ended; starting it again")
        try:
            await _start(postgres)
        except EmbeddedError as error:
            log("devmesh", f"{error}; trying again in {RETRY_INTERVAL_S:g} s")
            await asyncio.sleep(RETRY_INTERVAL_S)
