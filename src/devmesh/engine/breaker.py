"""The circuit breaker: a dependency that fails again and again is left alone for a while, then tried once.

Closed: it is used. Open: it is not, until the open time is over. Half open: one try decides. A plain state machine: whoever
calls the dependency asks `allows` before and says what came of it; time is handed in. Must not know what the dependency is.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import structlog

from devmesh import telemetry

log = structlog.get_logger(__name__)


class State(enum.IntEnum):
    """The number is what the metric shows."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


Notice = Callable[[str, State, str], None]  # the dependency, its state from now on, the last failure


class Breaker:
    def __init__(self, dependency: str, failures_max: int, open_s: float, notice: Notice) -> None:
        """Opens after so many failures in a row. `notice` is told of every change of state."""
        self.dependency = dependency
        self._failures_max, self._open_s, self._notice = failures_max, open_s, notice
        self._failures = 0
        self._tried_at = 0.0  # when it opened, or when the last try in the half-open state began
        self.state = State.CLOSED
        self.failure = ""  # the last one, in words

    def allows(self, now_s: float) -> bool:
        """Whether the dependency may be used now. One who is allowed to should say what came of it.

        Of a try that nobody has spoken of again, nothing is known: after the open time there may be another.
        """
        if self.state is State.CLOSED:
            return True
        if now_s - self._tried_at < self._open_s:
            return False
        self._tried_at = now_s
        self._become(State.HALF_OPEN)
        return True

    def succeeded(self) -> None:
        self._failures = 0
        self._become(State.CLOSED)

    def failed(self, now_s: float, failure: str) -> None:
        self._failures += 1
        self.failure = failure
        if self.state is State.HALF_OPEN or self._failures >= self._failures_max:
            self._tried_at = now_s
            self._become(State.OPEN)

    def wait_s(self, now_s: float) -> float:
        """How long until it may be used; nothing, when it may be now."""
        return 0.0 if self.state is State.CLOSED else max(0.0, self._tried_at + self._open_s - now_s)

    def _become(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self._notice(self.dependency, state, self.failure)


def watched(dependency: str, failures_max: int, open_s: float) -> Breaker:
    """A breaker that is logged and measured under the name of its dependency."""
    telemetry.BREAKER_STATE.labels(dependency).set(State.CLOSED)
    return Breaker(dependency, failures_max, open_s, _tell)


def _tell(dependency: str, state: State, failure: str) -> None:
    telemetry.BREAKER_STATE.labels(dependency).set(state)
    log_change(dependency, state, failure)


def log_change(dependency: str, state: State, failure: str) -> None:
    """In the log only: for dependencies of which there may be any number."""
    name = state.name.lower()
    if state is State.OPEN:
        log.warning("a breaker changed", dependency=dependency, state=name, failure=failure)
    else:
        log.info("a breaker changed", dependency=dependency, state=name)
