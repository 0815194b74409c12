"""Connections that stand for agents: opened and closed in batches, because a gateway that restarts gets them all at once.

An agent is present while at least one session of it is renewed. The rows are the truth; this process only remembers which
tenants it has to renew.
"""

from __future__ import annotations

import collections
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from devmesh.core import errors
from devmesh.core.access import Caller
from devmesh.operations.agents import announce
from devmesh.operations.gather import Gather
from devmesh.operations.work import Work, WorkRunner
from devmesh.settings import Settings
from devmesh.store.statements import load

SQL = load("agents")
SESSIONS_PER_BATCH_MAX = 500


class Opening(NamedTuple):
    caller: Caller
    session_id: uuid.UUID
    agent: str  # its id, or the name under which this key registered it


class Sessions:
    """The sessions of this process, a node of the mesh."""

    def __init__(self, runner: WorkRunner, node_id: uuid.UUID, settings: Settings) -> None:
        self._runner, self._node_id, self._settings = runner, node_id, settings
        self._openings: dict[uuid.UUID, Gather[Opening, uuid.UUID]] = {}
        self._closings: dict[uuid.UUID, Gather[uuid.UUID, None]] = {}
        self._open: collections.defaultdict[uuid.UUID, set[uuid.UUID]] = collections.defaultdict(set)
        self._leaving: dict[uuid.UUID, set[uuid.UUID]] = {}  # ended, but their rows may still be there

    def tenants(self) -> list[uuid.UUID]:
        """Those with a connected agent."""
        return sorted(self._open.keys() | self._leaving.keys())

    async def open(self, caller: Caller, session_id: uuid.UUID, agent: str) -> uuid.UUID:
        """The id of the agent that the session now stands for. Raises not_found or forbidden."""
        tenant_id = caller.tenant_id
        gather = self._openings.get(tenant_id)
        if gather is None:

            async def write(openings: Sequence[Opening]) -> Sequence[uuid.UUID | BaseException]:
                return await self._runner.run(tenant_id, lambda work: self._open_many(work, openings))

            gather = self._openings[tenant_id] = Gather(
                write, batch_max=SESSIONS_PER_BATCH_MAX, in_flight_max=1, waiting_max=self._settings.gather_queue_max
            )
        agent_id = await gather.add(Opening(caller, session_id, agent))
        self._open[tenant_id].add(session_id)
        return agent_id

    async def close(self, tenant_id: uuid.UUID, session_id: uuid.UUID) -> None:
        """The connection of a session that was opened has ended."""
        self._open[tenant_id].discard(session_id)
        if not self._open[tenant_id]:
            del self._open[tenant_id]
        gather = self._closings.get(tenant_id)
        if gather is None:

            async def write(session_ids: Sequence[uuid.UUID]) -> Sequence[None]:
                return await self._runner.run(tenant_id, lambda work: _close_many(work, session_ids))

            gather = self._closings[tenant_id] = Gather(
                write, batch_max=SESSIONS_PER_BATCH_MAX, in_flight_max=1, waiting_max=1_000_000
            )
        self._leaving.setdefault(tenant_id, set()).add(session_id)
        await gather.add(session_id)
        self._has_left(tenant_id, [session_id])

    def _has_left(self, tenant_id: uuid.UUID, session_ids: Sequence[uuid.UUID]) -> None:
        leaving = self._leaving.get(tenant_id)
        if leaving is not None:
            leaving.difference_update(session_ids)
            if not leaving:
                del self._leaving[tenant_id]

    async def renew(self, tenant_id: uuid.UUID) -> None:
        """Renews the presence of all agents of a tenant that are connected here, and ends what could not be ended before."""
        leaving = sorted(self._leaving.get(tenant_id, ()))
        await self._runner.run(tenant_id, lambda work: self._renew(work, leaving))
        self._has_left(tenant_id, leaving)

    async def _renew(self, work: Work, leaving: list[uuid.UUID]) -> None:
        if leaving:
            await _close_many(work, leaving)
        await work.tx.execute(SQL.renew_sessions, work.tenant_id, self._node_id)

    async def drain(self) -> None:
        for gather in list(self._closings.values()):
            await gather.drain()

    async def _open_many(self, work: Work, openings: Sequence[Opening]) -> list[uuid.UUID | BaseException]:
        ids = [found for opening in openings if (found := _as_id(opening.agent)) is not None]
        names = [opening.agent for opening in openings if _as_id(opening.agent) is None]
        rows = await work.tx.fetch(SQL.resolve, work.tenant_id, ids, names)
        known = {row["agent_id"]: row for row in rows} | {row["name"]: row for row in rows}
        answers: list[uuid.UUID | BaseException] = []
        opened: list[tuple[uuid.UUID, uuid.UUID]] = []
        for opening in openings:
            row = known.get(_as_id(opening.agent) or opening.agent)
            if row is None:
                answers.append(errors.not_found("agent", opening.agent[:80]))
            elif not _may_be(opening.caller, row["agent_id"], row["owner_id"]):
                answers.append(errors.forbidden("this agent was registered by another key"))
            else:
                answers.append(row["agent_id"])
                opened.append((opening.session_id, row["agent_id"]))
        if opened:
            sessions, agents = [session for session, _ in opened], [agent for _, agent in opened]
            await work.tx.execute(SQL.open_sessions, work.tenant_id, self._node_id, sessions, agents)
            await announce(work, sorted(set(agents)))
        return answers


async def _close_many(work: Work, session_ids: Sequence[uuid.UUID]) -> list[None]:
    rows = await work.tx.fetch(SQL.close_sessions, work.tenant_id, list(session_ids))
    await announce(work, sorted(row["agent_id"] for row in rows))
    return [None] * len(session_ids)


def _may_be(caller: Caller, agent_id: uuid.UUID, owner_id: uuid.UUID) -> bool:
    if caller.bound_agent_id is not None:
        return agent_id == caller.bound_agent_id
    return owner_id == caller.owner_id or caller.is_admin


def _as_id(agent: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(agent)
    except ValueError:
        return None
