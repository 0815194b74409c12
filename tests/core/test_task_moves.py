"""T16 in the small: whatever is tried in whatever order, only legal moves happen, and an illegal one changes nothing."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from devmesh.core import tasks
from devmesh.core.errors import Kind, MeshError
from devmesh.core.tasks import FINISHED, HELD, Move, Status, Task

EPOCH = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
AGENTS = [uuid.UUID(int=number) for number in range(1, 4)]
Try = Callable[[Task, datetime.datetime], Move]

agents = st.sampled_from(AGENTS)
tries: st.SearchStrategy[tuple[str, Try]] = st.one_of(
    agents.map(lambda agent: ("assign", lambda task, now: tasks.assign(task, agent, now))),
    st.just(("accept", tasks.accept)),
    st.just(("reject", tasks.reject)),
    st.floats(0, 1).map(lambda part: ("progress", lambda task, now: tasks.report_progress(task, part, None, now))),
    st.just(("complete", lambda task, now: tasks.complete(task, Raw(b'{"done":true}'), now))),
    st.booleans().map(
        lambda retryable: ("fail", lambda task, now: tasks.fail(task, Raw(b'"broken"'), retryable, now, 0.5))
    ),
    st.just(("expire", tasks.expire)),
    st.just(("time_out", lambda task, now: tasks.time_out(task, "late", now))),
    st.just(("cancel", lambda task, now: tasks.cancel(task, "", now))),
    st.one_of(st.none(), agents).map(
        lambda agent: ("delegate", lambda task, now: tasks.delegate(task, agent, None if agent else ["x"], now))
    ),
    st.one_of(st.none(), agents).map(lambda agent: ("reassign", lambda task, now: tasks.reassign(task, agent, now))),
    st.just(("retry", tasks.retry)),
    st.just(("unblock", lambda task, now: tasks.unblock(task, None, now))),
)  # fmt: skip


def new_task(*, blocked: bool = False, max_retries: int = 2) -> Task:
    return Task(
        id=uuid.uuid4(), title="t", description="", type="task", priority=3, parameters=Raw(b"{}"),
        required_capabilities=[], tags=[], metadata=Raw(b"{}"), created_by=None, created_by_key_id=uuid.uuid4(),
        assign=tasks.Assign.AUTO, strategy=tasks.Strategy.LEAST_LOADED, target_agent_id=None, excluded_agent_ids=[],
        parent_id=None, position=0, distribution=None, blocked=blocked, delegated_from=None, delegation_depth=0,
        status=Status.PENDING, attempt=1, version=1, assigned_to=None, result=None, error=None, progress=0.0,
        progress_message=None, retry_count=0, max_retries=max_retries, timeout_s=5.0, lease_s=30.0, deadline=None,
        ready_at=EPOCH, lease_until=None, timeout_at=None, created_at=EPOCH, updated_at=EPOCH, assigned_at=None,
        accepted_at=None, started_at=None, finished_at=None,
    )  # fmt: skip


def decided(attempt_to: Try, task: Task, now: datetime.datetime) -> Move | None:
    """The move, or None when it was refused, which is always a conflict."""
    try:
        return attempt_to(task, now)
    except MeshError as refused:
        if refused.kind is not Kind.CONFLICT:
            raise
        return None


def check_whole(task: Task) -> None:
    """What is true of a task in every state."""
    is_held = task.status in HELD
    assert is_held == (task.lease_until is not None)
    assert not is_held or task.assigned_to is not None
    assert (task.status is Status.PENDING) <= (task.assigned_to is None)
    assert (task.status in FINISHED) == (task.finished_at is not None)
    assert not (task.blocked and is_held)
    assert 0 <= task.progress <= 1
    assert task.retry_count <= task.max_retries
    assert task.delegation_depth <= tasks.DELEGATION_DEPTH_MAX


def check_step(before: Task, move: Move, after: Task, name: str) -> None:
    """What is true of every move."""
    assert before.status in tasks.LEGAL[name]
    assert after.version == before.version + 1
    assert after.attempt in (before.attempt, before.attempt + 1)
    left_its_agent = before.assigned_to is not None and after.assigned_to is None
    assert not left_its_agent or after.attempt == before.attempt + 1, "who held it could still write"
    ended_by_it = before.status in HELD and after.status not in HELD
    assert (move.ended is not None) >= ended_by_it, "an attempt has ended and nobody notes how"
    assert after.status is not Status.COMPLETED or after.error is None


@given(st.lists(tries, max_size=40), st.booleans())
@settings(max_examples=300, deadline=None)
def test_t16_only_legal_moves_happen_and_illegal_ones_change_nothing(
    walk: list[tuple[str, Try]], blocked: bool
) -> None:
    task = new_task(blocked=blocked)
    for step, (name, attempt_to) in enumerate(walk):
        now = EPOCH + datetime.timedelta(seconds=step)
        before = msgspec.structs.replace(task)
        move = decided(attempt_to, task, now)
        assert task == before, "deciding about a move, or refusing it, is not making it"
        if move is None:
            continue
        task = tasks.apply(task, move, now)
        check_step(before, move, task, name)
        check_whole(task)


@given(st.lists(tries, max_size=15))
@settings(max_examples=200, deadline=None)
def test_t16_what_is_not_in_the_table_is_refused(walk: list[tuple[str, Try]]) -> None:
    """The other direction: a move from a state that the table does not list never passes."""
    task = new_task()
    for name, attempt_to in walk:
        move = decided(attempt_to, task, EPOCH)
        if move is None:
            continue
        assert task.status in tasks.LEGAL[name], f"{name} passed from {task.status}"
        task = tasks.apply(task, move, EPOCH)


@given(st.integers(0, 8), st.floats(-1, 1))
def test_t05_delays_grow_are_jittered_and_end(max_retries: int, jitter: float) -> None:
    task = new_task(max_retries=max_retries)
    delays_s = []
    while task.status not in FINISHED:
        task = tasks.apply(task, tasks.assign(task, AGENTS[0], EPOCH), EPOCH)
        task = tasks.apply(task, tasks.fail(task, Raw(b"1"), True, EPOCH, jitter), EPOCH)
        if task.status is Status.PENDING:
            delays_s.append((task.ready_at - EPOCH).total_seconds())
    assert task.status is Status.FAILED
    assert task.retry_count == len(delays_s) == max_retries
    for number, delay_s in enumerate(delays_s):
        planned_s = min(tasks.RETRY_BACKOFF_BASE_S * 2**number, tasks.RETRY_BACKOFF_MAX_S)
        assert abs(delay_s - planned_s * (1 + tasks.RETRY_JITTER * jitter)) < 0.001


def test_a_stale_attempt_is_refused_by_its_own_reason() -> None:
    for attempt, told in ((1, "was given up"), (3, "has not begun")):
        with pytest.raises(MeshError, match=f"attempt {attempt} of this task {told}; the attempt is now 2") as caught:
            tasks.check_attempt(2, attempt)
        assert (caught.value.kind, caught.value.data.reason) == (Kind.CONFLICT, "task.stale_attempt")
    tasks.check_attempt(2, 2)


def test_a_task_that_kills_every_agent_ends() -> None:
    task = new_task()
    for _ in range(tasks.ATTEMPTS_MAX):
        task = tasks.apply(task, tasks.assign(task, AGENTS[0], EPOCH), EPOCH)
        task = tasks.apply(task, tasks.expire(task, EPOCH), EPOCH)
    assert task.status is Status.FAILED


def test_an_event_of_every_move_patches_the_old_state_into_the_new_one() -> None:
    """E8 in the small: old state + event = fresh state."""
    task = new_task()
    for attempt_to in (
        lambda t, now: tasks.assign(t, AGENTS[0], now),
        tasks.accept,
        lambda t, now: tasks.report_progress(t, 0.5, "half", now),
        lambda t, now: tasks.fail(t, Raw(b'"no"'), True, now, 0.0),
        lambda t, now: tasks.assign(t, AGENTS[1], now),
        tasks.reject,
        lambda t, now: tasks.assign(t, AGENTS[2], now),
        lambda t, now: tasks.delegate(t, AGENTS[0], None, now),
        lambda t, now: tasks.cancel(t, "enough", now),
        tasks.retry,
    ):
        move = attempt_to(task, EPOCH)
        after = tasks.apply(task, move, EPOCH)
        state = msgspec.json.decode(msgspec.json.encode(task))
        state |= msgspec.json.decode(tasks.event_data(after, move))["task"]
        assert state == msgspec.json.decode(msgspec.json.encode(after))
        task = after
