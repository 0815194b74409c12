"""Who gets what: read under the tenant's assignment lock, planned by core, written with its events.

The lock makes an agent's concurrency exact on any number of nodes: whoever counts what agents hold, and then gives them
more, does both under it. It is taken before any row.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from devmesh.core import assignment, tasks
from devmesh.core.agents import PERFORMANCE_ATTEMPTS
from devmesh.core.assignment import Candidate
from devmesh.core.tasks import Strategy
from devmesh.operations.task_moving import AGENTS
from devmesh.operations.work import Work
from devmesh.store.claim_horizons import FIRST_LANE
from devmesh.store.database import Record
from devmesh.store.tasks import SQL, LockedTasks

ASSIGNMENTS_MAX = 500  # tasks that one transaction hands out
GIVEN_BYTES_MAX = 4 << 20  # of tasks that it hands out, and one more: each is told of whole
# Different sets of capabilities that waiting tasks ask for, in one look. Others have their turn later.
LANES_MAX = 1_000
LANE_LOOKS_MAX = 5  # one after the other, while there is nothing in them that anybody can do
OWN = "agent:"  # how lanes begin that are for one agent alone

Pairs = Sequence[tuple[uuid.UUID, uuid.UUID]]  # (task, agent)


class Given(NamedTuple):
    pairs: Pairs
    is_more: bool = False  # there may be others that these agents could have at once


async def assign_ready(work: Work) -> Given:
    """Hands out what is ready to whoever has room. The assigner's whole work."""
    if not await is_any_waiting(work):
        return Given([])
    await lock_assignment(work)
    available = [_candidate(row) for row in await work.tx.fetch(AGENTS.candidates, work.tenant_id)]
    locked = LockedTasks(work)
    given = await hand_out(work, locked, available, pull=False)
    await locked.save()
    return given


async def is_any_waiting(work: Work) -> bool:
    """Asked before the lock is taken: a task that comes a moment later rings the bell."""
    return bool(await work.tx.fetch_value(SQL.is_any_waiting, work.tenant_id))


async def lock_assignment(work: Work) -> None:
    await work.tx.execute(SQL.lock_assignment, work.tenant_id)


async def candidates_of(work: Work, agent_ids: Sequence[uuid.UUID], *, are_there: bool = False) -> list[Candidate]:
    """Those of these agents that have room. `are_there`: they have just asked, so they cannot be offline."""
    rows = await work.tx.fetch(AGENTS.candidates_of, work.tenant_id, list(agent_ids), are_there)
    return [_candidate(row) for row in rows]


async def hand_out(work: Work, locked: LockedTasks, available: Sequence[Candidate], *, pull: bool) -> Given:
    """Gives the most urgent tasks to these agents, by each task's strategy; `pull` when the agents have asked for them.

    The caller holds the assignment lock, and saves.
    """
    if not available:
        return Given([])
    lanes = await _lanes(work, available, pull=pull)
    heads = await _heads(work, lanes) if lanes else []
    waiting = [_waiting(row) for row in heads]
    if any(task.strategy is Strategy.PERFORMANCE for task in waiting):
        await _add_performance(work, available)
    planned = assignment.plan(waiting, available)
    if not planned:
        return Given([])
    rows = await work.tx.fetch(SQL.lock_waiting, work.tenant_id, [task_id for task_id, _ in planned], GIVEN_BYTES_MAX)
    locked.hold(rows)
    pairs = [(task_id, agent_id) for task_id, agent_id in planned if locked.get(task_id) is not None]
    await give(work, locked, pairs)
    is_cut_short = len(planned) == ASSIGNMENTS_MAX or any(row["reached"] < len(planned) for row in rows[:1])
    return Given(pairs, bool(pairs) and (is_cut_short or work.horizons.lane(work.tenant_id) != FIRST_LANE))


async def give(work: Work, locked: LockedTasks, pairs: Pairs) -> None:
    """Assigns locked tasks to agents that have room. The caller holds the assignment lock, and saves."""
    for task_id, agent_id in pairs:
        locked.move(task_id, tasks.assign(locked[task_id], agent_id, work.now))
    if pairs:
        await work.tx.execute(AGENTS.note_assigned, work.tenant_id, list({agent_id for _, agent_id in pairs}))


class Lane(NamedTuple):
    name: str
    room: int  # for how many of its tasks there is room
    able: str  # the agents that may take from it, joined by commas


async def _lanes(work: Work, available: Sequence[Candidate], *, pull: bool) -> list[Lane]:
    """Lanes with waiting tasks that these agents may take from. What nobody can do is passed over, a part at a time."""
    begin = after = work.horizons.lane(work.tenant_id)
    agent_ids = [candidate.agent_id for candidate in available]
    offers = _Offers(available)
    lanes: list[Lane] = []
    has_come_round = False
    for _ in range(LANE_LOOKS_MAX):
        names = [row["lane"] for row in await work.tx.fetch(SQL.lanes, work.tenant_id, after, LANES_MAX, agent_ids)]
        lanes = [lane for name in names if (lane := offers.lane(name, pull=pull)) is not None]
        shared = [name for name in names if not name.startswith(OWN)]
        after = shared[-1] if len(shared) == LANES_MAX else FIRST_LANE
        has_come_round = has_come_round or after == FIRST_LANE
        if lanes or (has_come_round and after >= begin):
            break
        agent_ids = []  # their own lanes are known by now
    work.horizons.looked_until(work.tenant_id, after)
    return lanes


class _Offers:
    """What agents with room can do. Many lanes are for the same agents: their ids are joined once."""

    def __init__(self, available: Sequence[Candidate]) -> None:
        self._free = {str(candidate.agent_id): candidate.free for candidate in available}
        self._alike: dict[frozenset[str], list[str]] = {}
        for candidate in available:
            self._alike.setdefault(candidate.capabilities, []).append(str(candidate.agent_id))
        self._joined: dict[tuple[frozenset[str], ...], tuple[int, str]] = {}

    def lane(self, name: str, *, pull: bool) -> Lane | None:
        """A lane as it is for these agents, if any of them may take from it; `pull` when they have asked."""
        kind, _, rest = name.partition(":")
        if name.startswith(OWN):
            room, able = self._free[rest], rest
        elif kind == "auto" or pull:
            room, able = self._able(frozenset(rest.split(",")) if rest else frozenset())
        else:
            return None
        return Lane(name, min(room, ASSIGNMENTS_MAX), able) if room > 0 else None

    def _able(self, required: frozenset[str]) -> tuple[int, str]:
        offered = tuple(capabilities for capabilities in self._alike if required <= capabilities)
        if offered not in self._joined:
            ids = [agent_id for capabilities in offered for agent_id in self._alike[capabilities]]
            self._joined[offered] = sum(self._free[agent_id] for agent_id in ids), ",".join(ids)
        return self._joined[offered]


async def _heads(work: Work, lanes: Sequence[Lane]) -> list[Record]:
    places = {able: place for place, able in enumerate(dict.fromkeys(lane.able for lane in lanes), start=1)}
    return await work.tx.fetch(
        SQL.heads, work.tenant_id, [lane.name for lane in lanes], [lane.room for lane in lanes],
        [places[lane.able] for lane in lanes], list(places), ASSIGNMENTS_MAX,
    )  # fmt: skip


def _candidate(row: Record) -> Candidate:
    return Candidate(
        agent_id=row["agent_id"],
        capabilities=frozenset(row["capabilities"]),
        free=row["concurrency"] - row["active_tasks"],
        concurrency=row["concurrency"],
        active=row["active_tasks"],
        last_assigned_at=row["last_assigned_at"],
        is_degraded=row["is_degraded"],
    )


def _waiting(row: Record) -> assignment.Waiting:
    return assignment.Waiting(
        task_id=row["task_id"],
        strategy=Strategy(row["strategy"]),
        required=frozenset(row["required_capabilities"]),
        target_agent_id=row["target_agent_id"],
        excluded=frozenset(row["excluded_agent_ids"]),
    )


async def _add_performance(work: Work, available: Sequence[Candidate]) -> None:
    agent_ids = [candidate.agent_id for candidate in available]
    rows = await work.tx.fetch(AGENTS.performance, work.tenant_id, agent_ids, PERFORMANCE_ATTEMPTS)
    figures = {row["agent_id"]: row for row in rows}
    for candidate in available:
        candidate.success_rate = figures[candidate.agent_id]["success_rate"]
        candidate.duration_s = figures[candidate.agent_id]["mean_duration_s"]
