"""Heartbeats, on a thread and a connection of their own: a handler that keeps its event loop or the processor busy for
minutes still keeps its leases.

One heart beats for all agents of a process. Each held lease is renewed at a third of its length; the requests of many travel
side by side, and the server gathers them into one statement.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from devmesh.client.client import Client
from devmesh.client.errors import MeshError
from devmesh.client.lease import TaskLease
from devmesh.core.errors import Kind

log = logging.getLogger("devmesh.client")

RENEWALS_PER_LEASE = 3
LEASE_ENDS = frozenset({Kind.CONFLICT, Kind.NOT_FOUND, Kind.FORBIDDEN})  # answers that no repeating will change
START_LIMIT_S = 10.0


class Heart:
    def __init__(self, make_client: Callable[[], Client]) -> None:
        """`make_client` makes a client that acts with the key that registered the agents, and stands for none of them."""
        self._make_client = make_client
        self._thread = threading.Thread(target=lambda: asyncio.run(self._beat()), name="devmesh heart", daemon=True)
        self._has_begun = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._client: Client | None = None
        self._keeping: dict[object, asyncio.Task[None]] = {}

    def start(self) -> None:
        self._thread.start()
        if not self._has_begun.wait(START_LIMIT_S):
            raise MeshError(Kind.UNAVAILABLE, "the thread for heartbeats did not start")

    def stop(self) -> None:
        if self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()

    def hold(self, lease: TaskLease) -> None:
        """Renews a lease until it is over or lost. From any thread."""
        self._keep(lease, lambda client: _renew(client, lease))

    def stand_for(self, agent_id: uuid.UUID) -> None:
        """Says that an agent lives until `release`, also while its own connection is too busy to. From any thread."""
        self._keep(agent_id, lambda client: _say_alive(client, agent_id))

    def counts_for(self, agent_id: uuid.UUID) -> bool:
        """Whether its own connection stands for an agent, too: one with a bound key does, whatever it asks for."""
        return self._client is not None and self._client.agent_id == agent_id

    def release(self, held: TaskLease | uuid.UUID) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._let_go, held)

    def _keep(self, held: object, beat: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._begin, held, beat)

    def _begin(self, held: object, beat: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
        assert self._client is not None
        self._let_go(held)
        self._keeping[held] = asyncio.create_task(beat(self._client))

    def _let_go(self, held: object) -> None:
        if (task := self._keeping.pop(held, None)) is not None:
            task.cancel()

    async def _beat(self) -> None:
        """The thread's whole life."""
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._client = self._make_client()
        connecting = asyncio.create_task(self._client.connect())
        self._has_begun.set()
        await self._stopping.wait()
        connecting.cancel()
        for task in self._keeping.values():
            task.cancel()
        await asyncio.gather(connecting, *self._keeping.values(), return_exceptions=True)
        await self._client.close()


async def _renew(client: Client, lease: TaskLease) -> None:
    params = {"task_id": lease.task_id, "attempt": lease.attempt, "agent_id": lease.agent_id}
    while not lease.is_over:
        # After a failure less than a third may be left: then it tries again at half of that.
        await asyncio.sleep(min(lease.lease_s / RENEWALS_PER_LEASE, max(lease.remaining_s / 2, 0.0)))
        if lease.is_lost:
            return
        asked_at = time.monotonic()
        try:
            await client.request("task.heartbeat", params, dict[str, Any], timeout_s=lease.remaining_s)
            lease.renewed(asked_at)
        except MeshError as error:
            if error.kind in LEASE_ENDS:
                lease.lose(error.message)
            else:
                log.warning("the lease of task %s could not be renewed yet: %s", lease.task_id, error.message)


async def _say_alive(client: Client, agent_id: uuid.UUID) -> None:
    while True:
        await asyncio.sleep(client.heartbeat_interval_s)
        with contextlib.suppress(MeshError):  # its own connection says the same, and knows why not
            await client.request("agent.heartbeat", {"agent_id": agent_id}, dict[str, Any])
