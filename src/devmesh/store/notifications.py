"""One connection to hear and send notifications on. It may break at any time: whoever uses it opens another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncpg

from devmesh.store.connections import close_connection
from devmesh.store.database import Database
from devmesh.store.faults import translate
from devmesh.store.statements import load

SQL = load("events")
CHANNEL = "devmesh_bell"
NOTIFY_LIMIT_S = 5.0


class Notifications:
    """Hears what other sessions send on the bell's channel, and sends there. Opened by `open`, closed by `close`."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._turn = (
            asyncio.Lock()
        )  # rings and probes come from different loops, and the driver does one thing at a time
        self.broken = asyncio.Event()

    @classmethod
    async def open(cls, database: Database, hear: Callable[[str], None]) -> Notifications:
        """`hear` gets the payload of every notification that this session did not send itself. Raises MeshError."""
        connection = await database.open_dedicated()
        channel = cls(connection)
        own_pid = connection.get_server_pid()

        def heard(_: object, pid: int, __: str, payload: object) -> None:
            if pid != own_pid:
                hear(str(payload))

        connection.add_termination_listener(lambda _: channel.broken.set())
        try:
            await connection.add_listener(CHANNEL, heard)
        except Exception as error:
            await close_connection(connection)
            raise translate(error) from error
        return channel

    async def send(self, payload: str) -> None:
        """Raises MeshError when the connection is gone."""
        await self._execute(SQL.ring.text, payload)

    async def probe(self) -> None:
        """Finds out whether the connection still leads anywhere, which who only listens never learns. Raises MeshError."""
        await self._execute(SQL.listening.text)

    async def _execute(self, sql: str, *args: str) -> None:
        try:
            async with asyncio.timeout(NOTIFY_LIMIT_S), self._turn:
                await self._connection.execute(sql, *args)
        except Exception as error:
            self.broken.set()
            raise translate(error) from error

    async def close(self) -> None:
        await close_connection(self._connection)
