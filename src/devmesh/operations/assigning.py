"""Who gets what: read under the tenant's assignment lock, planned by core, written with its events.

The lock makes an agent's concurrency exact on any number of nodes: whoever counts what agents hold, and then gives them
more, does both under it. It is taken before any row.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from devmesh.core import assignment, tasks
from devmesh.core.assignment import Candidate
from devmesh.core.tasks import Strategy, Task
from devmesh.operations.task_moving import AGENTS
from devmesh.operations.work import Work
from devmesh.store.tasks import SQL, LockedTasks

LANES_MAX = 1_000
PERFORMANCE_ATTEMPTS = 50


async def lock_assignment(work: Work) -> None:
    await work.tx.execute(SQL.lock_assignment, work.tenant_id)


async def candidates(work: Work, agent_ids: list[uuid.UUID] | None = None) -> list[Candidate]:
    """Agents with room for work: all of the tenant's, or those of these."""
    return [
        Candidate(
            agent_id=row["agent_id"], capabilities=frozenset(row["capabilities"]),
            free=row["concurrency"] - row["active_tasks"], concurrency=row["concurrency"], active=row["active_tasks"],
            last_assigned_at=row["last_assigned_at"], success_rate=None, duration_s=None,
        )
        for row in await work.tx.fetch(AGENTS.candidates, work.tenant_id, agent_ids)
    ]  # fmt: skip


async def lanes_for(work: Work, available: Sequence[Candidate], *, pull: bool) -> list[str]:
    """The lanes with waiting tasks that at least one of these agents may take from."""
    capabilities = {candidate.capabilities for candidate in available}
    agent_ids = {str(candidate.agent_id) for candidate in available}
    found = []
    for row in await work.tx.fetch(SQL.lanes, work.tenant_id, LANES_MAX):
        kind, _, rest = row["lane"].partition(":")
        required = frozenset(rest.split(",")) if rest else frozenset()
        if kind == "agent":
            is_open = rest in agent_ids
        else:
            is_open = (kind == "auto" or pull) and any(required <= offered for offered in capabilities)
        if is_open:
            found.append(row["lane"])
    return found


async def lock_heads(work: Work, locked: LockedTasks, lanes: list[str], available: Sequence[Candidate]) -> list[Task]:
    """Locks what is next in these lanes, as much as these agents have room for, the most urgent first."""
    room = min(sum(candidate.free for candidate in available), ASSIGNMENTS_MAX)
    agent_ids = [candidate.agent_id for candidate in available]
    if not lanes or room == 0:
        return []
    return locked.hold(await work.tx.fetch(SQL.lock_heads, work.tenant_id, lanes, room, room, agent_ids))


ASSIGNMENTS_MAX = 500  # tasks that one transaction hands out


async def assign_ready(work: Work) -> int:
    """Hands out what is ready to whoever has room, and says how many. The assigner's whole work."""
    await lock_assignment(work)
    available = await candidates(work)
    lanes = await lanes_for(work, available, pull=False) if available else []
    locked = LockedTasks(work)
    waiting = await lock_heads(work, locked, lanes, available)
    if not waiting:
        return 0
    if any(task.strategy == Strategy.PERFORMANCE for task in waiting):
        await _add_performance(work, available)
    pairs = assignment.plan(
        [
            assignment.Waiting(
                task_id=task.id, strategy=Strategy(task.strategy), required=frozenset(task.required_capabilities),
                target_agent_id=task.target_agent_id, excluded=frozenset(task.excluded_agent_ids),
            )
            for task in waiting
        ],
        available,
    )  # fmt: skip
    await give(work, locked, pairs)
    await locked.save()
    return len(pairs)


async def give(work: Work, locked: LockedTasks, pairs: Sequence[tuple[uuid.UUID, uuid.UUID]]) -> None:
    """Assigns locked tasks to agents, (task, agent) each. The caller holds the assignment lock and saves."""
    for task_id, agent_id in pairs:
        locked.move(task_id, tasks.assign(locked[task_id], agent_id, work.now))
    if pairs:
        await work.tx.execute(AGENTS.note_assigned, work.tenant_id, list({agent_id for _, agent_id in pairs}))


async def _add_performance(work: Work, available: Sequence[Candidate]) -> None:
    agent_ids = [candidate.agent_id for candidate in available]
    rows = await work.tx.fetch(AGENTS.performance, work.tenant_id, agent_ids, PERFORMANCE_ATTEMPTS)
    figures = {row["agent_id"]: row for row in rows}
    for candidate in available:
        candidate.success_rate = figures[candidate.agent_id]["success_rate"]
        candidate.duration_s = figures[candidate.agent_id]["mean_duration_s"]
