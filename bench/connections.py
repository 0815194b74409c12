"""What a connection costs: many initialized ones on one gateway, held for a while."""

from __future__ import annotations

import asyncio
import time

from bench.figures import Figure
from bench.stage import Stage


async def measure(stage: Stage) -> list[Figure]:
    extent = stage.extent
    async with stage.mesh("mcp-server") as mesh:
        first = await mesh.connect(1)  # what the first one makes the gateway load is no cost of a connection
        before = mesh.memory_bytes()
        began = time.perf_counter()
        held = await mesh.connect(extent.connections)
        opening_s = time.perf_counter() - began
        await asyncio.sleep(extent.hold_s)
        grown = mesh.memory_bytes() - before
        dropped = sum(connection.is_closed for connection in [*first, *held])
        for connection in [*first, *held]:
            connection.close()
    return [
        Figure(name="connections on one gateway", value=len(held) - dropped, unit="", at_least=extent.connections),
        Figure(name="… its memory for each", value=grown / len(held) / 1024, unit="KiB", at_most=22),
        Figure(name="… dropped", value=dropped, unit="", at_most=0, note=f"held for {extent.hold_s:g} s"),
        Figure(name="… opened", value=len(held) / opening_s, unit="/s", note="authenticated and initialized"),
    ]
