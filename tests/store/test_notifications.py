"""The connection that the bell is heard on: rings and probes come at any time, also at once."""

from __future__ import annotations

import asyncio

from tests.harness import eventually

from devmesh.store.database import Database
from devmesh.store.notifications import Notifications


async def test_what_is_sent_while_the_connection_is_probed_is_heard(fresh_database: str) -> None:
    database = await Database.open(
        fresh_database, service="tests", pool_size_min=1, pool_size_max=1, transaction_deadline_s=5.0
    )
    heard: list[str] = []
    sender, listener = (
        await Notifications.open(database, heard.append),
        await Notifications.open(database, heard.append),
    )
    try:
        rings = [str(number) for number in range(20)]
        async with asyncio.TaskGroup() as both:
            for ring in rings:
                both.create_task(sender.send(ring))
                both.create_task(sender.probe())
        await eventually(lambda: heard == rings, "every ring is heard, in order")
        assert not sender.broken.is_set()
    finally:
        await sender.close()
        await listener.close()
        await database.close()
