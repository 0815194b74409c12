"""Presence: one statement a node renews all its connected agents, and every change of a derived status becomes an event."""

from __future__ import annotations

from devmesh.engine.loop import Loop
from devmesh.operations.agents import SQL, announce
from devmesh.operations.sessions import Sessions
from devmesh.operations.work import Work, WorkRunner
from devmesh.store.statements import load

TENANTS = load("tenants")


class Presence(Loop):
    """Tells changes of status that no operation told: heartbeats that stopped, gateways that died, agents that filled up."""

    name = "presence"

    def __init__(self, runner: WorkRunner, interval_s: float) -> None:
        super().__init__(interval_s)
        self._runner = runner

    async def run_once(self) -> bool:
        for row in await self._runner.database.read(TENANTS.all_active):
            await self._runner.run(row["tenant_id"], self._announce)
        return False

    async def _announce(self, work: Work) -> None:
        await work.tx.fetch(SQL.forget_sessions, work.tenant_id)
        await announce(work, None)


class SessionKeeper(Loop):
    """Renews the presence of the agents that are connected to this gateway."""

    name = "session-keeper"

    def __init__(self, sessions: Sessions, interval_s: float) -> None:
        super().__init__(interval_s)
        self._sessions = sessions

    async def run_once(self) -> bool:
        for tenant_id in self._sessions.tenants():
            await self._sessions.renew(tenant_id)
        return False
