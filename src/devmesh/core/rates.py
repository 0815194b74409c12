"""A node's share of a token bucket: tokens drawn in advance and spent in memory. Pure: the clock is handed in, in seconds.

The bucket itself is a row that all nodes draw from, so together they never spend more than its rate and its burst. A share
is small beside the bucket and follows what the node has spent of late, so that what lies unspent at one node is not missed at
another: under a limit of some dozens a second, nothing is drawn but for a request that waits for it.
"""

from __future__ import annotations

import math

SHARE_S = 0.5  # a share lasts about so long at the pace of late
SHARE_MIN, SHARE_MAX = 0.001, 0.02  # of what the bucket holds
FRESH_S, LIFE_S = 1.0, 3.0  # then it is drawn anew in the background; then what is unspent lapses
PAUSE_S = 0.01  # between draws from an empty bucket: not each single token is worth a trip
AWAY_S = 1.0  # between attempts to draw while the database does not answer


class Share:
    """`spend` when there `has_one`; else a draw of what is `wanted`, unless it is known that the bucket `is_empty`."""

    __slots__ = (
        "_drawn_at",
        "_empty_until",
        "_free_until",
        "_fresh_until",
        "_lapses_at",
        "_low",
        "_promised_until",
        "_share",
        "_spent",
        "in_hand",
        "rate_per_s",
        "waiting",
    )  # fmt: skip

    def __init__(self) -> None:
        self.rate_per_s = 0.0  # as the last draw has told
        self.in_hand = 0
        self.waiting = 0  # requests that cannot go on without a draw
        self._spent = 0  # since the last draw
        self._share = self._low = 0
        self._drawn_at = self._fresh_until = self._lapses_at = -math.inf
        self._free_until = -math.inf  # there is no limit, or nobody to ask for it
        self._empty_until = self._promised_until = -math.inf

    def has_one(self, now_s: float) -> bool:
        return (self.in_hand > 0 and now_s < self._lapses_at) or now_s < self._free_until

    def spend(self, now_s: float) -> bool:
        """Spends a token that is there. Whether it is time to draw, before a request has to wait for it."""
        self._spent += 1
        if self.in_hand > 0:
            self.in_hand -= 1
        is_low = self.in_hand <= self._low and self._share > 0 and now_s >= self._empty_until
        return now_s >= self._fresh_until or (is_low and now_s >= self._free_until)

    def is_empty(self, now_s: float) -> bool:
        """Whether it is known that a draw would bring nothing."""
        return self._free_until <= now_s < min(self._empty_until, self._lapses_at)

    def promise_s(self, now_s: float, burst_s: float) -> float:
        """When to come again. Each who is refused gets a later time, until the bucket would be full anyway.

        A draw by somebody else may have come just before a time that was promised, so the pause after it is added.
        """
        step_s = 1 / self.rate_per_s
        latest = max(now_s + max(burst_s, step_s), self._empty_until)
        self._promised_until = min(max(self._promised_until + step_s, self._empty_until), latest)
        return self._promised_until - now_s + PAUSE_S

    def wanted(self, now_s: float) -> int:
        """How many tokens to draw now."""
        if now_s >= self._lapses_at:
            self.in_hand = 0
        return max(self._share + self.waiting - self.in_hand, 0)

    def drawn(self, now_s: float, rate_per_s: float, burst_s: float, wanted: int, drawn: int, left_over: float) -> None:
        """What a draw has brought: `left_over` is what the bucket still holds, a fraction too."""
        capacity = max(rate_per_s * burst_s, 1.0)
        pace = self._spent / max(now_s - self._drawn_at, 1e-3)
        self._share = int(min(max(pace * SHARE_S, capacity * SHARE_MIN), capacity * SHARE_MAX))
        self._low = self._share // 2
        self._spent, self._drawn_at = 0, now_s
        self._fresh_until, self._lapses_at = now_s + FRESH_S, now_s + LIFE_S
        self.rate_per_s = rate_per_s
        if rate_per_s == 0:
            self._free_until = self._lapses_at
            return
        self._free_until = -math.inf
        self.in_hand = min(self.in_hand, int(capacity * SHARE_MAX)) + drawn
        if drawn < wanted:
            self._empty_until = now_s + max((1 - left_over) / rate_per_s, PAUSE_S)

    def not_drawn(self, now_s: float) -> None:
        """Nobody could be asked. A limiter that cannot count lets everything pass: what is wrong will say so itself."""
        self._fresh_until = now_s + AWAY_S
        self._free_until = now_s + LIFE_S
        self._spent, self._drawn_at = 0, now_s
