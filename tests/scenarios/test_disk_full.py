"""S10: PostgreSQL's disk is full. Services say so, and write again when there is room."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.breaking import Postgres
from tests.harness import Mesh, eventually

NOTICE_S = 6.0
RECOVERY_S = 20.0
MakeMesh = Callable[..., Mesh]


@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own is made by root alone")
async def test_s10_a_full_disk_is_named_and_writing_goes_on_when_there_is_room(
    broken: Postgres, mesh_on: MakeMesh, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        small = await stack.enter_async_context(_small_disk(broken))
        broken.sql(f"create tablespace small location '{small}'")
        broken.sql("create database on_small tablespace small")
        dsn = broken.dsn.replace("/devmesh?", "/on_small?")
        mesh = mesh_on(dsn)
        await asyncio.to_thread(mesh.start, "rest-api")
        headers = {"Authorization": f"Bearer {mesh.admin_key}"}
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=mesh.rest_url, headers=headers, trust_env=False, timeout=30.0)
        )
        big = {"title": "big", "assign": "pull", "parameters": {"noise": os.urandom(50_000).hex()}}
        filler = small / "filler"
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        ends_at = time.monotonic() + 20
        while (answer := await http.post("/api/v1/tasks", json=big)).status_code == 201:
            assert time.monotonic() < ends_at
        assert (answer.status_code, answer.json()["kind"]) == (503, "unavailable")
        assert "disk is full" in answer.json()["detail"]

        async def is_ready(expected: int) -> bool:
            ready = await http.get("/readyz")
            return ready.status_code == expected and (expected == 200 or "disk is full" in ready.text)

        await eventually(lambda: is_ready(503), "it is not ready and says why", NOTICE_S)
        filler.unlink()
        assert (await http.post("/api/v1/tasks", json=big)).status_code == 201
        await eventually(lambda: is_ready(200), "it is ready again", RECOVERY_S)
        mesh.end()
        broken.sql("drop database on_small with (force)")
        broken.sql("drop tablespace small")


@asynccontextmanager
async def _small_disk(postgres: Postgres) -> AsyncIterator[Path]:
    """A file system of a few megabytes, which the server's account may write to."""
    place = postgres.server.directory / "small"
    place.mkdir()
    mounting = await asyncio.create_subprocess_exec("mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place))
    if await mounting.wait() != 0:
        pytest.skip("this system does not let its root mount a file system")
    try:
        owner = postgres.server.data.stat()
        os.chown(place, owner.st_uid, owner.st_gid)
        yield place
    finally:
        await (await asyncio.create_subprocess_exec("umount", "-l", str(place))).wait()
