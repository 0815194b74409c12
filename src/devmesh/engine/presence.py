"""Presence: one statement a node renews all its connected agents, and every change of a derived status becomes an event."""

from __future__ import annotations

import uuid

from devmesh.engine.looks import Looks
from devmesh.engine.loop import Loop
from devmesh.operations.agents import SQL, announce
from devmesh.operations.sessions import Sessions
from devmesh.operations.work import WorkRunner
from devmesh.store.statements import load

TENANTS = load("tenants")


class Presence(Loop):
    """Tells changes of status that no operation told: heartbeats that stopped, gateways that died, agents that filled up."""

    name = "presence"

    def __init__(self, runner: WorkRunner, looks: Looks, interval_s: float) -> None:
        super().__init__(interval_s)
        self._runner, self._looks = runner, looks

    async def run_once(self) -> bool:
        await self.for_each(await self._looks.tenants(TENANTS.with_unannounced), self._announce)
        await self._runner.database.read(SQL.forget_sessions)
        return False

    def pause_s(self) -> float:
        return self._looks.pause_s(self._interval_s)

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
