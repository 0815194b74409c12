"""How long the client waits before it asks again: as long as it was told, not in step with others, and within its time."""

from __future__ import annotations

import time

import pytest

from devmesh.client.errors import MeshError
from devmesh.client.session import LAST_TRY_S, Backoff, pause_s
from devmesh.core.errors import Kind


def refusal(retry_after_ms: int | None) -> MeshError:
    return MeshError(Kind.UNAVAILABLE, "too much", retry_after_ms=retry_after_ms)


def test_nobody_comes_before_it_was_told_nor_all_at_once() -> None:
    pauses = {Backoff().next_s(1_000) for _ in range(50)}
    assert min(pauses) >= 1.0
    assert max(pauses) <= 1.25
    assert len(pauses) > 25


def test_pauses_grow_when_nobody_says_how_long() -> None:
    backoff = Backoff()
    pauses = [backoff.next_s() for _ in range(8)]
    assert pauses[0] <= 0.1
    assert pauses[-1] >= 5.0


def test_who_was_refused_often_gets_a_last_try_before_its_time_is_up() -> None:
    backoff = Backoff()
    for _ in range(20):
        backoff.next_s()
    assert 1.9 <= pause_s(refusal(100), backoff, time.monotonic() + 2.0 + LAST_TRY_S) <= 2.1


@pytest.mark.parametrize(("retry_after_ms", "left_s"), [(5_000, 2.0), (None, 0.01)])
def test_who_would_come_too_late_is_told_at_once(retry_after_ms: int | None, left_s: float) -> None:
    with pytest.raises(MeshError) as told:
        pause_s(refusal(retry_after_ms), Backoff(), time.monotonic() + left_s)
    assert told.value.retry_after_ms == retry_after_ms
