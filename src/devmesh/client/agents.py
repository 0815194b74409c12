"""Agents as a client handles them: their verbs with typed parameters, and what these answer, as Python values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

import msgspec

from devmesh.client.asking import Id, Requests, given
from devmesh.core import agents

KindName = Literal["llm", "tool", "human", "worker", "custom"]


class Agent(agents.Agent):
    """An agent as the server shows it, its own JSON decoded."""

    metadata: dict[str, Any]  # type: ignore[assignment]  # raw in the core, which never looks into it
    card: dict[str, Any] | None  # type: ignore[assignment]  # likewise
    metrics: dict[str, Any] | None  # type: ignore[assignment]  # likewise


class Page(msgspec.Struct):
    """Some agents, and the cursor of those that follow."""

    agents: list[Agent]
    next_cursor: str | None = None


class About(TypedDict, total=False):
    """What an agent says of itself. What is left out of an update stays."""

    capabilities: Sequence[str]
    concurrency: int
    description: str
    metadata: Mapping[str, Any]
    card: Mapping[str, Any]


class Registration(About, total=False):
    kind: KindName


class Filters(TypedDict, total=False):
    kind: KindName
    status: Sequence[str]
    capability: str
    limit: int
    cursor: str


AgentList = list[Agent]  # inside Agents, `list` is a verb


class One(msgspec.Struct):
    agent: Agent


class _Healthy(msgspec.Struct):
    health: agents.Health


class Agents:
    """`client.agents`. Where no agent is named, it is the one that the client stands for."""

    def __init__(self, client: Requests) -> None:
        self._client = client

    async def register(self, name: str, **about: Unpack[Registration]) -> Agent:
        """Register an agent, or update the one of that name. A client without an agent stands for it from now on."""
        return await self._one("register", name=name, **about)

    async def get(self, agent_id: Id) -> Agent:
        return await self._one("get", agent_id=agent_id)

    async def list(self, **filters: Unpack[Filters]) -> Page:
        """A page of agents, newest first."""
        return await self._client.request("agent.list", filters, Page)

    async def each(self, **filters: Unpack[Filters]) -> AsyncIterator[Agent]:
        """All that the filters let through, newest first, page by page."""
        while True:
            page = await self.list(**filters)
            for agent in page.agents:
                yield agent
            if page.next_cursor is None:
                return
            filters["cursor"] = page.next_cursor

    async def discover(
        self, capabilities: Sequence[str], *, min_health: float | None = None, limit: int | None = None
    ) -> AgentList:
        """The agents that have all of these capabilities and are there, the healthiest first."""
        params = given(capabilities=capabilities, min_health=min_health, limit=limit)
        return (await self._client.request("agent.discover", params, Page)).agents

    async def update(self, agent_id: Id | None = None, **about: Unpack[About]) -> Agent:
        return await self._one("update", agent_id=agent_id, **about)

    async def heartbeat(
        self, agent_id: Id | None = None, *, load: float | None = None, metrics: Mapping[str, Any] | None = None
    ) -> Agent:
        """Say that an agent lives, and how loaded it is; 1.0 is full."""
        return await self._one("heartbeat", agent_id=agent_id, load=load, metrics=metrics)

    async def drain(self, agent_id: Id | None = None, *, draining: bool = True) -> Agent:
        """Give an agent no new work, so that it can end what it holds; `draining=False` takes that back."""
        return await self._one("drain", agent_id=agent_id, draining=draining)

    async def suspend(self, agent_id: Id, *, suspended: bool = True) -> Agent:
        """For administrators: take an agent out of the mesh's hands, or back in."""
        return await self._one("suspend", agent_id=agent_id, suspended=suspended)

    async def deregister(self, agent_id: Id | None = None) -> Agent:
        """Leave for good: what the agent holds goes back to the queue at once, and its name is free."""
        return await self._one("deregister", agent_id=agent_id)

    async def health(self, agent_id: Id) -> agents.Health:
        return (await self._client.request("agent.health", {"agent_id": agent_id}, _Healthy)).health

    async def _one(self, verb: str, **params: Any) -> Agent:
        return (await self._client.request(f"agent.{verb}", given(**params), One)).agent
