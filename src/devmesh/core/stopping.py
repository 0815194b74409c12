"""How often a process was told to stop: once is to end in good order, and again is to wait for nobody.

`timeout` sends its signal twice within milliseconds, to the process and then to its group, and means it once. Pure: the clock
is the caller's.
"""

from __future__ import annotations

import enum

ONE_SIGNAL_S = 0.2  # in which whatever comes after the first signal repeats it


class Told(enum.Enum):
    ONCE = enum.auto()
    REPEATED = enum.auto()  # which changes nothing
    AGAIN = enum.auto()


class Stops:
    """The signals of one process that tell it to stop."""

    def __init__(self) -> None:
        self._first_s: float | None = None

    def come(self, now_s: float) -> Told:
        """What the one that comes now means. `now_s` is of a clock that is never set."""
        if self._first_s is None:
            self._first_s = now_s
            return Told.ONCE
        return Told.AGAIN if now_s - self._first_s >= ONE_SIGNAL_S else Told.REPEATED
