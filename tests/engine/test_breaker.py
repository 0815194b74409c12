"""The circuit breaker: whatever comes of the tries, it is in the state that its history says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from devmesh import telemetry
from devmesh.engine.breaker import Breaker, State, watched

FAILURES_MAX, OPEN_S = 3, 10.0

steps = st.lists(
    st.tuples(st.floats(0, 15, allow_nan=False), st.sampled_from(["succeeds", "fails", "nobody says"])), max_size=60
)


class Heard:
    def __init__(self) -> None:
        self.states: list[State] = [State.CLOSED]

    def __call__(self, dependency: str, state: State, failure: str) -> None:
        assert dependency == "it"
        self.states.append(state)


@given(steps)
def test_it_is_used_as_its_history_allows(history: list[tuple[float, str]]) -> None:
    heard = Heard()
    breaker = Breaker("it", FAILURES_MAX, OPEN_S, heard)
    now_s, in_a_row, is_trusted, tried_at = 0.0, 0, True, 0.0
    for pause_s, outcome in history:
        now_s += pause_s
        is_allowed = breaker.allows(now_s)
        assert is_allowed == (is_trusted or now_s - tried_at >= OPEN_S)
        if not is_allowed:
            assert breaker.state in (State.OPEN, State.HALF_OPEN)
            assert 0 < breaker.wait_s(now_s) <= OPEN_S + 1e-6  # sums of floats
            continue
        if not is_trusted:
            assert breaker.state is State.HALF_OPEN
            tried_at = now_s
            assert not breaker.allows(now_s), "one try at a time"
        if outcome == "succeeds":
            breaker.succeeded()
            in_a_row, is_trusted = 0, True
        elif outcome == "fails":
            breaker.failed(now_s, "out of order")
            in_a_row += 1
            if not is_trusted or in_a_row >= FAILURES_MAX:
                is_trusted, tried_at = False, now_s
                assert breaker.state is State.OPEN
        if is_trusted:
            assert (breaker.state, breaker.wait_s(now_s)) == (State.CLOSED, 0.0)
    assert all(one is not other for one, other in zip(heard.states, heard.states[1:], strict=False)), "changes only"
    assert heard.states[-1] is breaker.state


@given(st.integers(1, 20))
def test_it_opens_after_so_many_failures_in_a_row_and_no_sooner(failures_max: int) -> None:
    breaker = Breaker("it", failures_max, OPEN_S, Heard())
    for _ in range(failures_max - 1):
        breaker.failed(0.0, "x")
        assert breaker.allows(0.0)
    breaker.succeeded()
    for _ in range(failures_max - 1):
        breaker.failed(0.0, "x")
    assert breaker.allows(0.0)
    breaker.failed(0.0, "the last straw")
    assert not breaker.allows(0.0)
    assert breaker.failure == "the last straw"
    assert breaker.allows(OPEN_S)


def test_its_state_is_measured_by_dependency() -> None:
    def shown() -> float | None:
        return telemetry.REGISTRY.get_sample_value("devmesh_breaker_state", {"dependency": "tests"})

    breaker = watched("tests", 1, OPEN_S)
    assert shown() == State.CLOSED
    breaker.failed(0.0, "x")
    assert shown() == State.OPEN
    assert breaker.allows(OPEN_S)
    assert shown() == State.HALF_OPEN
    breaker.succeeded()
    assert shown() == State.CLOSED
