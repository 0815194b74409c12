"""What the demo says at its end, as data: the result, who was killed, what was done again by whom, and the counts.

Pure. It is whole when everything was completed, nothing was lost, and the result is what a count in one place gives.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import msgspec

from devmesh.client import Task
from devmesh.client.tasks import History
from devmesh.core.events import decode_cursor
from devmesh.core.tasks import Outcome, Status
from devmesh.demo.accident import Killed
from devmesh.demo.comparison import Comparison, differences
from devmesh.demo.files import Found, by_hand
from devmesh.demo.story import reason_of


class AgentMade(msgspec.Struct):
    id: uuid.UUID
    name: str
    capability: str
    pid: int
    tasks_done: int


class AttemptMade(msgspec.Struct):
    attempt: int
    agent: str
    outcome: Outcome


class DoneAgain(msgspec.Struct):
    """A task that took more than one attempt."""

    task_id: uuid.UUID
    title: str
    attempts: list[AttemptMade]


class Counts(msgspec.Struct):
    """The whole is one task, its parts are the others. Events are those of the mesh from the first agent to the end."""

    tasks: int
    attempts: int
    events: int
    lost: int  # parts that were not completed, and events of the log that were not heard


class Seconds(msgspec.Struct):
    mesh_start: float | None  # none when it ran already
    fleet_start: float
    work: float
    rest: float  # reading the files, looking back, stopping what was started
    total: float


class Observed(msgspec.Struct):
    """What was seen of the mesh, to be judged."""

    parent: Task
    subtasks: list[Task]  # as they are in the end
    histories: list[History]  # of those that took more than one attempt
    heard: list[str]  # the cursors of the events that came
    logged: list[str]  # the cursors of the events in the log
    killed: Killed | None
    agents: list[AgentMade]
    fleet_start_s: float
    work_s: float


class Report(msgspec.Struct):
    path: str
    task_id: uuid.UUID
    is_whole: bool
    problems: list[str]
    result: Comparison | None
    skipped: dict[str, int]
    is_cut: bool
    check_by_hand: str
    agents: list[AgentMade]
    killed: Killed | None
    done_again: list[DoneAgain]
    counts: Counts
    seconds: Seconds


def make(found: Found, observed: Observed, expected: Comparison, changed: Sequence[str], seconds: Seconds) -> Report:
    """`expected` is what a count in one place gives, `changed` the files that are not what they were then."""
    parent = observed.parent
    result = msgspec.convert(parent.result, Comparison) if parent.status == Status.COMPLETED else None
    problems = _problems(observed)
    if result is not None:
        problems += differences(expected, result)
    problems += [f"{name} was changed meanwhile" for name in changed]
    return Report(
        path=f"{found.root}/{found.files[0]}" if found.is_single else found.root,
        task_id=parent.id,
        is_whole=not problems,
        problems=problems,
        result=result,
        skipped=dict(found.skipped),
        is_cut=found.is_cut,
        check_by_hand=by_hand(found),
        agents=observed.agents,
        killed=observed.killed,
        done_again=[_done_again(history, observed.agents) for history in observed.histories],
        counts=Counts(
            tasks=1 + len(observed.subtasks),
            attempts=sum(task.attempt for task in observed.subtasks),
            events=len(observed.logged),
            lost=len(_not_completed(observed)) + len(_not_heard(observed)),
        ),
        seconds=seconds,
    )


def seconds_of(observed: Observed, mesh_start_s: float | None, total_s: float) -> Seconds:
    rest_s = total_s - (mesh_start_s or 0.0) - observed.fleet_start_s - observed.work_s
    return Seconds(
        mesh_start=round(mesh_start_s, 2) if mesh_start_s is not None else None,
        fleet_start=round(observed.fleet_start_s, 2),
        work=round(observed.work_s, 2),
        rest=round(rest_s, 2),
        total=round(total_s, 2),
    )


def _problems(observed: Observed) -> list[str]:
    """Everything that is not as it must be, a line each."""
    found = []
    parent = observed.parent
    if parent.status != Status.COMPLETED:
        found.append(f"the whole is {parent.status}: {reason_of(parent.error)}")
    if not_completed := _not_completed(observed):
        found.append(f"{len(not_completed)} subtasks were not completed, such as {not_completed[0].title}")
    if observed.heard != observed.logged:
        found.append(f"{len(observed.heard)} events were heard, and the log has {len(observed.logged)}")
    if not _is_contiguous(observed.logged):
        found.append("the numbers of the events in the log have a gap")
    if observed.killed is None:
        found.append("no agent could be caught at its work, so none was killed")
    else:
        redone = {history.task.id for history in observed.histories}
        found += [
            f"{held.title} was held by the killed agent, and not done again"
            for held in observed.killed.held
            if held.task_id not in redone
        ]
    return found


def _not_completed(observed: Observed) -> list[Task]:
    return [task for task in observed.subtasks if task.status != Status.COMPLETED]


def _not_heard(observed: Observed) -> set[str]:
    return set(observed.logged) - set(observed.heard)


def _is_contiguous(cursors: Sequence[str]) -> bool:
    """Cursors mean nothing to users. Here they are looked into, to prove that no number is missing."""
    numbers = [decode_cursor(cursor).sequence for cursor in cursors]
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _done_again(history: History, agents: Sequence[AgentMade]) -> DoneAgain:
    names = {agent.id: agent.name for agent in agents}
    attempts = [
        AttemptMade(made.attempt, names.get(made.agent_id, str(made.agent_id)), made.outcome)
        for made in history.attempts
    ]
    return DoneAgain(history.task.id, history.task.title, attempts)
