"""Presence: one statement a node renews all its connected agents, and every change of a derived status becomes an event."""

from __future__ import annotations

import uuid

from devmesh.engine.loop import Loop
from devmesh.operations.agents import SQL, announce
from devmesh.operations.sessions import Sessions
from devmesh.operations.work import WorkRunner
from devmesh.store.statements import load

TENANTS = load("tenants")


class Presence(Loop):
    """Tells changes of status that no operation told: heartbeats that stopped, gateways that died, agents that filled up."""

    name = "presence"

    def __init__(self, runner: WorkRunner, interval_s: float) -> None:
        super().__init__(interval_s)
        self._runner = runner

    async def run_once(self) -> bool:
        await self._runner.database.read(SQL.forget_sessions)
        tenants = await self._runner.database.read(TENANTS.with_unannounced)
        await self.for_each([row["tenant_id"] for row in tenants], self._announce)
        return False

    async def _announce(self, tenant_id: uuid.UUID) -> None:
        await self._runner.run(tenant_id, lambda work: announce(work, None))


class SessionKeeper(Loop):
    """Renews the presence of the agents that are connected to this gateway."""

    name = "session-keeper"

    def __init__(self, sessions: Sessions, interval_s: float) -> None:
        super().__init__(interval_s)
        self._sessions = sessions

    async def run_once(self) -> bool:
        await self.for_each(self._sessions.tenants(), self._sessions.renew)
        return False
