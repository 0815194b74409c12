"""The verbs of agents: they come, say what they can do, are found, and go."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from devmesh.core import agents, errors, tasks
from devmesh.core.access import Scope
from devmesh.core.agents import CONCURRENCY_MAX, PERFORMANCE_ATTEMPTS, Agent, Kind, Status
from devmesh.core.events import agent_topic
from devmesh.core.ids import new_id
from devmesh.core.names import (
    EMPTY_OBJECT,
    Label,
    Labels,
    Name,
    PageCursor,
    PageLimit,
    Text,
    decode_page_cursor,
    optional_object,
    page_cursor,
    require_object,
)
from devmesh.core.tasks import JsonObject, JsonObjectOrNull
from devmesh.operations.assigning import lock_assignment
from devmesh.operations.registry import Call, Change, Mutation, Params, operation
from devmesh.operations.task_moving import own_agents, require_own_agent, settle, subject_agent
from devmesh.operations.work import Work
from devmesh.store.database import Record
from devmesh.store.statements import load
from devmesh.store.tasks import LockedTasks

SQL = load("agents")
DISCOVERED_MAX = 1_000  # agents that one discovery ranks
FREED_MAX = 2_000  # tasks that wait for an agent and go to others in the transaction in which it leaves
Concurrency = Annotated[int, Meta(ge=1, le=CONCURRENCY_MAX)]
Load = Annotated[float, Meta(ge=0, le=1_000)]


class AgentResult(msgspec.Struct):
    agent: Agent


class AgentsResult(msgspec.Struct):
    agents: list[Agent]
    next_cursor: str | None = None


class Register(Mutation, kw_only=True):
    name: Name
    kind: Kind = Kind.CUSTOM
    capabilities: Labels = msgspec.field(default_factory=list)
    concurrency: Concurrency = 1
    description: Text = ""
    metadata: JsonObject = msgspec.field(default_factory=lambda: EMPTY_OBJECT)
    card: JsonObjectOrNull | UnsetType = UNSET


@operation("agent.register", scope=Scope.AGENT, http="POST /agents", single=True)
async def register(work: Work, call: Call[Register]) -> AgentResult | errors.MeshError:
    """Register an agent, or update the one that this key registered under the same name.

    The answer's `agent.id` is what tasks are assigned to. Give the same name after a restart to be the same agent.
    """
    asked, caller = call.params, call.caller
    capabilities = sorted(set(asked.capabilities))
    card = _text(optional_object(asked.card, "card"))
    if caller.bound_agent_id is not None:
        known = await _agents(work, [caller.bound_agent_id])
        if not known:
            return errors.conflict("agent.deregistered", "the agent that this key is bound to has left for good")
        if known[0].name != asked.name:
            return errors.forbidden("this key is bound to another agent")
    row = await work.tx.fetch_row(
        SQL.register, work.tenant_id, caller.bound_agent_id or new_id(), caller.owner_id, asked.name, asked.kind.value,
        asked.description, capabilities, asked.concurrency, _text(require_object(asked.metadata, "metadata")), card,
        caller.is_admin or caller.bound_agent_id is not None,
    )  # fmt: skip
    if row is None:
        return errors.conflict("agent.name", "another key has registered an agent under this name")
    [agent] = await _agents(work, [row["agent_id"]])
    work.emit("agent.registered", (agent_topic(agent.id),), {"agent": agent})
    await announce(work, [agent.id])
    return AgentResult(agent)


class ById(Params, kw_only=True):
    agent_id: uuid.UUID


@operation("agent.get", scope=Scope.READ, http="GET /agents/{agent_id}")
async def get(work: Work, calls: Sequence[Call[ById]]) -> Sequence[AgentResult | errors.MeshError]:
    """Show an agent as it is now."""
    found = await _found(work, [call.params.agent_id for call in calls])
    return [_shown(found, call.params.agent_id) for call in calls]


class ListAgents(Params, kw_only=True):
    kind: Kind | None = None
    status: list[Status] | None = None
    capability: Label | None = None
    limit: PageLimit = 50
    cursor: PageCursor | None = None


@operation("agent.list", scope=Scope.READ, http="GET /agents", single=True)
async def list_agents(work: Work, call: Call[ListAgents]) -> AgentsResult:
    """List agents, newest first, filtered by kind, status and one capability."""
    asked = call.params
    after = decode_page_cursor(asked.cursor)
    rows = await work.tx.fetch(
        SQL.page, work.tenant_id, after, asked.limit, asked.kind, asked.status,
        [asked.capability] if asked.capability else None,
    )  # fmt: skip
    found = [_from_row(row) for row in rows]
    return AgentsResult(found, page_cursor([agent.id for agent in found], asked.limit))


class Discover(Params, kw_only=True):
    capabilities: Labels
    min_health: agents.HealthScore | None = None
    limit: PageLimit = 50


@operation("agent.discover", scope=Scope.READ, http="POST /agents/discover", single=True)
async def discover(work: Work, call: Call[Discover]) -> AgentsResult:
    """Find the agents that have all of these capabilities and are there, the healthiest first.

    Of more than 1,000 such agents the newest 1,000 are ranked.
    """
    asked = call.params
    present = [status.value for status in Status if status not in (Status.OFFLINE, Status.SUSPENDED)]
    rows = await work.tx.fetch(
        SQL.page, work.tenant_id, None, DISCOVERED_MAX, None, present, sorted(set(asked.capabilities))
    )
    found = [_from_row(row) for row in rows]
    scores = {health.agent_id: health.score for health in await _healths(work, found)}
    capable = [agent for agent in found if asked.min_health is None or scores[agent.id] >= asked.min_health]
    capable.sort(key=lambda agent: (-scores[agent.id], agent.active_tasks / agent.concurrency, agent.name))
    return AgentsResult(capable[: asked.limit])


class Update(Change, kw_only=True):
    agent_id: uuid.UUID | None = None
    description: Text | None = None
    capabilities: Labels | None = None
    concurrency: Concurrency | None = None
    metadata: JsonObjectOrNull | UnsetType = UNSET
    card: JsonObjectOrNull | UnsetType = UNSET


@operation("agent.update", scope=Scope.AGENT, http="PATCH /agents/{agent_id}", single=True)
async def update(work: Work, call: Call[Update]) -> AgentResult:
    """Change what an agent says of itself; what is left out stays."""
    asked = call.params
    agent_id = await require_own_agent(work, call)
    metadata = _text(optional_object(asked.metadata, "metadata"))
    card = _text(optional_object(asked.card, "card"))
    capabilities = sorted(set(asked.capabilities)) if asked.capabilities is not None else None
    said = (asked.description, capabilities, asked.concurrency, metadata, card, None, None)
    return await _change(work, agent_id, said, asked.if_version)


class Heartbeat(Mutation, kw_only=True):
    agent_id: uuid.UUID | None = None
    load: Load | None = None
    metrics: JsonObjectOrNull | UnsetType = UNSET


@operation(
    "agent.heartbeat", scope=Scope.AGENT, http="POST /agents/{agent_id}/heartbeat", subject=subject_agent, in_hand=True
)
async def heartbeat(work: Work, calls: Sequence[Call[Heartbeat]]) -> Sequence[AgentResult | errors.MeshError]:
    """Say that an agent lives, and how loaded it is (1.0 is full)."""
    heard = [_heard(call, who) for call, who in zip(calls, await own_agents(work, calls), strict=True)]
    living = [sign for sign in heard if isinstance(sign, SignOfLife)]
    ids = [sign.agent_id for sign in living]
    await work.tx.execute(
        SQL.heartbeat_many, work.tenant_id, ids, [sign.load for sign in living], [sign.metrics for sign in living]
    )
    await announce(work, ids)
    found = await _found(work, ids)
    return [_shown(found, sign.agent_id) if isinstance(sign, SignOfLife) else sign for sign in heard]


class SignOfLife(NamedTuple):
    agent_id: uuid.UUID
    load: float | None
    metrics: str | None


def _heard(call: Call[Heartbeat], who: uuid.UUID | errors.MeshError) -> SignOfLife | errors.MeshError:
    if isinstance(who, errors.MeshError):
        return who
    try:
        return SignOfLife(who, call.params.load, _text(optional_object(call.params.metrics, "metrics")))
    except errors.MeshError as refused:
        return refused


class Drain(Change, kw_only=True):
    agent_id: uuid.UUID | None = None
    draining: bool = True


@operation("agent.drain", scope=Scope.AGENT, http="POST /agents/{agent_id}/drain", single=True, in_hand=True)
async def drain(work: Work, call: Call[Drain]) -> AgentResult:
    """Give an agent no new work, so that it can end what it holds and go; `draining: false` takes it back."""
    agent_id = await require_own_agent(work, call)
    said = (None, None, None, None, None, call.params.draining, None)
    return await _change(work, agent_id, said, call.params.if_version)


class Suspend(Change, kw_only=True):
    agent_id: uuid.UUID
    suspended: bool = True


@operation("agent.suspend", scope=Scope.ADMIN, http="POST /agents/{agent_id}/suspend", single=True, audited=True)
async def suspend(work: Work, call: Call[Suspend]) -> AgentResult:
    """Take an agent out of the mesh's hands until `suspended: false`; what it holds runs on under its lease."""
    said = (None, None, None, None, None, None, call.params.suspended)
    return await _change(work, call.params.agent_id, said, call.params.if_version)


class Deregister(Change, kw_only=True):
    agent_id: uuid.UUID | None = None


@operation("agent.deregister", scope=Scope.AGENT, http="DELETE /agents/{agent_id}", single=True, in_hand=True)
async def deregister(work: Work, call: Call[Deregister]) -> AgentResult:
    """Leave for good. What the agent holds goes back to the queue at once, and its name is free.

    So does what waits for this agent alone: others may have it then. Of more than 2,000 such tasks the others follow soon.
    """
    agent_id = await require_own_agent(work, call)
    found = await _agents(work, [agent_id])
    if not found:
        raise errors.not_found("agent", agent_id)
    await lock_assignment(work)  # it is given nothing more meanwhile
    freed = await _free_tasks_of(work, agent_id)
    if await work.tx.fetch_row(SQL.deregister, work.tenant_id, agent_id, call.params.if_version) is None:
        raise await _why_unchanged(work, agent_id)
    if freed < FREED_MAX:
        await _free_tasks_of(work, agent_id)  # what was made for it before it was seen to leave
    gone = msgspec.structs.replace(found[0], status=Status.OFFLINE, active_tasks=0, version=found[0].version + 1)
    work.emit("agent.deregistered", (agent_topic(agent_id),), {"agent": {"id": agent_id, "status": gone.status}})
    return AgentResult(gone)


async def _free_tasks_of(work: Work, agent_id: uuid.UUID) -> int:
    """Gives what an agent holds, and what waits for it alone, back to the queue: how many tasks."""
    rows = await work.tx.fetch(SQL.tasks_of, work.tenant_id, agent_id, FREED_MAX)
    return await _free_tasks(work, {row["task_id"]: agent_id for row in rows})


async def free_tasks_left_behind(work: Work, limit: int) -> int:
    """Does the same with what still waits for agents that have left: how many tasks."""
    rows = await work.tx.fetch(SQL.tasks_left_behind, work.tenant_id, limit)
    return await _free_tasks(work, {row["task_id"]: row["agent_id"] for row in rows})


async def _free_tasks(work: Work, agents_of: Mapping[uuid.UUID, uuid.UUID]) -> int:
    """Gives tasks back to the queue, each unless its agent has nothing to do with it any more."""
    if not agents_of:
        return 0
    locked = LockedTasks(work)
    await locked.lock(agents_of, whole=False)
    for task_id, agent_id in agents_of.items():
        task = locked[task_id]
        if task.status in tasks.HELD and task.assigned_to == agent_id:
            locked.move(task.id, tasks.expire(task, work.now))
        elif task.status is tasks.Status.PENDING and task.target_agent_id == agent_id:
            locked.move(task.id, tasks.reassign(task, None, work.now))
    await settle(work, locked)
    await locked.save()
    return len(agents_of)


class HealthResult(msgspec.Struct):
    health: agents.Health


@operation("agent.health", scope=Scope.READ, http="GET /agents/{agent_id}/health", single=True)
async def health(work: Work, call: Call[ById]) -> HealthResult:
    """How an agent has done of late: a score of 0-1 from its presence, its last 50 attempts and its load."""
    found = await _agents(work, [call.params.agent_id])
    if not found:
        raise errors.not_found("agent", call.params.agent_id)
    [figures] = await _healths(work, found)
    return HealthResult(figures)


async def announce(work: Work, agent_ids: list[uuid.UUID] | None) -> None:
    """Tells every change of status of these agents, or of all, that was not told yet."""
    if agent_ids is None:
        agent_ids = [row["agent_id"] for row in await work.tx.fetch(SQL.unannounced, work.tenant_id)]
    for row in await work.tx.fetch(SQL.announce, work.tenant_id, agent_ids) if agent_ids else []:
        data = {"agent": {"id": row["agent_id"], "status": row["status"]}, "before": row["before"]}
        work.emit("agent.status", (agent_topic(row["agent_id"]),), data)


async def _change(work: Work, agent_id: uuid.UUID, said: tuple[Any, ...], if_version: int | None) -> AgentResult:
    version = await work.tx.fetch_value(SQL.lock, work.tenant_id, agent_id)
    if version is None or if_version not in (None, version):
        raise await _why_unchanged(work, agent_id)
    changed = await work.tx.execute(SQL.update, work.tenant_id, agent_id, *said)
    [agent] = await _agents(work, [agent_id])
    if changed:
        work.emit("agent.updated", (agent_topic(agent_id),), {"agent": agent})
    await announce(work, [agent_id])
    return AgentResult(agent)


async def _why_unchanged(work: Work, agent_id: uuid.UUID) -> errors.MeshError:
    """It is not there, or not in the version that the caller has seen."""
    found = await _agents(work, [agent_id])
    if not found:
        return errors.not_found("agent", agent_id)
    message = f"the agent has version {found[0].version} by now; look at it again"
    return errors.conflict("agent.version", message)


async def _agents(work: Work, ids: list[uuid.UUID]) -> list[Agent]:
    return [_from_row(row) for row in await work.tx.fetch(SQL.get_many, work.tenant_id, ids)]


async def _found(work: Work, ids: list[uuid.UUID]) -> dict[uuid.UUID, Agent]:
    return {agent.id: agent for agent in await _agents(work, ids)}


def _shown(found: dict[uuid.UUID, Agent], agent_id: uuid.UUID) -> AgentResult | errors.MeshError:
    return AgentResult(found[agent_id]) if agent_id in found else errors.not_found("agent", agent_id)


async def _healths(work: Work, found: list[Agent]) -> list[agents.Health]:
    rows = await work.tx.fetch(SQL.performance, work.tenant_id, [agent.id for agent in found], PERFORMANCE_ATTEMPTS)
    figures = {row["agent_id"]: row for row in rows}
    return [
        agents.Health(
            agent.id, agent.status, agents.health_score(agent.status, figures[agent.id]["success_rate"], agent.load),
            figures[agent.id]["attempts"], figures[agent.id]["success_rate"], figures[agent.id]["mean_duration_s"],
            agent.active_tasks, agent.concurrency, agent.load, agent.last_seen_at,
        )
        for agent in found
    ]  # fmt: skip


def _from_row(row: Record) -> Agent:
    values = list(row)
    for place in (6, 7, 12):  # metadata, card, metrics
        values[place] = Raw(values[place]) if values[place] is not None else None
    return Agent(*values)


def _text(value: Raw | None) -> str | None:
    return bytes(value).decode() if value is not None else None
