"""Who gets which task: a pure plan over agents with room and tasks that wait.

Must not know tables, locks or leases. Whoever calls it has counted what agents hold, and keeps that count true until the
plan is written; the plan itself never gives an agent more than its `free`.
"""

from __future__ import annotations

import datetime
import heapq
import math
import uuid
from collections.abc import Callable, Sequence

import msgspec

from devmesh.core.tasks import Strategy

_LONG_AGO = datetime.datetime.min.replace(tzinfo=datetime.UTC)


class Candidate(msgspec.Struct, kw_only=True):
    """An agent that may be given work. `success_rate` and `duration_s` are needed by the strategy performance only."""

    agent_id: uuid.UUID
    capabilities: frozenset[str]
    free: int  # how many more tasks it may get
    concurrency: int
    active: int
    last_assigned_at: datetime.datetime | None
    success_rate: float | None = None  # of its latest attempts; None: it has made none
    duration_s: float | None = None  # mean of the attempts that succeeded
    is_degraded: bool = False  # overloaded or silent: it gets what nobody else can take


class Waiting(msgspec.Struct, kw_only=True):
    """A task that waits for an agent."""

    task_id: uuid.UUID
    strategy: Strategy
    required: frozenset[str]
    target_agent_id: uuid.UUID | None = None  # only this agent may have it, whatever it says that it can do
    excluded: frozenset[uuid.UUID] = frozenset()


class _Seat:
    """A candidate while the plan is made: what it has been given so far, and when it was last its turn."""

    __slots__ = ("agent_id", "candidate", "given", "turn")

    def __init__(self, candidate: Candidate, turn: int) -> None:
        self.candidate, self.agent_id, self.given, self.turn = candidate, candidate.agent_id, 0, turn

    @property
    def is_full(self) -> bool:
        return self.given >= self.candidate.free

    @property
    def load(self) -> float:
        return (self.candidate.active + self.given) / self.candidate.concurrency


# How a strategy ranks an agent for a task, the lowest first. A rank only ever rises while its agent is given work: the
# queues below depend on it.
_Rank = tuple[float, ...]
_Ranking = Callable[[_Seat], _Rank]


def plan(waiting: Sequence[Waiting], candidates: Sequence[Candidate]) -> list[tuple[uuid.UUID, uuid.UUID]]:
    """Pairs of (task, agent): each task at most once, in the order of `waiting`, which is the order of urgency.

    Tasks that need the same capabilities by the same strategy share one priority queue of agents, so that the work grows
    with tasks plus agents, not with their product.
    """
    by_turn = sorted(candidates, key=lambda c: (c.last_assigned_at or _LONG_AGO, c.agent_id))
    seats = [_Seat(candidate, turn) for turn, candidate in enumerate(by_turn)]
    seat_of = {seat.agent_id: seat for seat in seats}
    queues: dict[tuple[Strategy, frozenset[str]], _Queue] = {}
    pairs: list[tuple[uuid.UUID, uuid.UUID]] = []
    for task in waiting:
        if task.target_agent_id is not None:
            seat = seat_of.get(task.target_agent_id)
            if seat is None or seat.is_full or seat.agent_id in task.excluded:
                continue
        else:
            queue = queues.get((task.strategy, task.required))
            if queue is None:
                queue = queues[task.strategy, task.required] = _queue(task, seats)
            seat = queue.first(task.excluded)
            if seat is None:
                continue
        seat.given += 1
        seat.turn = len(seats) + len(pairs)
        pairs.append((task.task_id, seat.agent_id))
    return pairs


class _Queue:
    """The agents that can do one sort of task, the best first. Ranks are renewed when an agent comes to the front."""

    def __init__(self, seats: Sequence[_Seat], rank: _Ranking) -> None:
        self._rank = rank
        self._heap = [(rank(seat), place, seat) for place, seat in enumerate(seats)]
        heapq.heapify(self._heap)

    def first(self, excluded: frozenset[uuid.UUID]) -> _Seat | None:
        """The best agent with room that is not excluded. It stays in the queue."""
        passed_over = []
        found = None
        while self._heap and found is None:
            known_rank, place, seat = self._heap[0]
            if seat.is_full:
                heapq.heappop(self._heap)
            elif (rank := self._rank(seat)) > known_rank:
                heapq.heapreplace(self._heap, (rank, place, seat))
            elif seat.agent_id in excluded:
                passed_over.append(heapq.heappop(self._heap))
            else:
                found = seat
        for entry in passed_over:
            heapq.heappush(self._heap, entry)
        return found


def _queue(task: Waiting, seats: Sequence[_Seat]) -> _Queue:
    return _Queue(
        [seat for seat in seats if task.required <= seat.candidate.capabilities], _ranking(task.strategy, seats)
    )


def _ranking(strategy: Strategy, seats: Sequence[_Seat]) -> _Ranking:
    if strategy is Strategy.ROUND_ROBIN:
        return lambda seat: (seat.candidate.is_degraded, seat.turn)
    if strategy is Strategy.BEST_MATCH:
        # All that are asked can do it, so the fewest capabilities are the fewest unused.
        return lambda seat: (seat.candidate.is_degraded, len(seat.candidate.capabilities), seat.load, seat.turn)
    if strategy is Strategy.PERFORMANCE:
        cost_s = _costs_s(seats)
        return lambda seat: (seat.candidate.is_degraded, cost_s[seat.agent_id], seat.load, seat.turn)
    return lambda seat: (seat.candidate.is_degraded, seat.load, seat.turn)


def _costs_s(seats: Sequence[_Seat]) -> dict[uuid.UUID, float]:
    """How long each agent is expected to take for one success. One that was never tried counts as the best: it is tried."""
    costs: dict[uuid.UUID, float] = {}
    for seat in seats:
        success_rate, duration_s = seat.candidate.success_rate, seat.candidate.duration_s
        if success_rate is not None:
            costs[seat.agent_id] = duration_s / success_rate if success_rate and duration_s is not None else math.inf
    best_s = min(costs.values(), default=0.0)
    return {seat.agent_id: costs.get(seat.agent_id, best_s) for seat in seats}
