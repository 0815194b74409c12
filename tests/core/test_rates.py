"""A bucket never gives more than its rate and its burst allow, whatever its nodes do, in whichever order."""

from __future__ import annotations

import math
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from devmesh.core.rates import FRESH_S, LIFE_S, SHARE_MAX, Share

EPSILON = 1e-6


class Row:
    """The bucket's row, as `rates.draw` reads and writes it."""

    def __init__(self, rate_per_s: float, burst_s: float) -> None:
        self.rate_per_s, self.capacity, self.full_at_s = rate_per_s, max(rate_per_s * burst_s, 1.0), 0.0

    def draw(self, now_s: float, wanted: int) -> tuple[int, float]:
        tokens = self.capacity - self.rate_per_s * max(self.full_at_s - now_s, 0.0)
        drawn = min(wanted, max(math.floor(tokens + EPSILON), 0))
        self.full_at_s = max(self.full_at_s, now_s) + drawn / self.rate_per_s
        return drawn, tokens - drawn


class Underway(NamedTuple):
    """A draw whose answer the node has not seen yet."""

    wanted: int
    drawn: int
    left_over: float


class Node:
    """One that spends when it can, and draws when it cannot or should. Its draws may take their time."""

    def __init__(self, row: Row, burst_s: float) -> None:
        self.share, self._row, self._burst_s = Share(), row, burst_s
        self.underway: Underway | None = None
        self.granted = 0

    def ask(self, now_s: float) -> None:
        if self.share.has_one(now_s):
            self.granted += 1
            if self.share.spend(now_s):
                self.send(now_s)
        elif not self.share.is_empty(now_s):
            self.share.waiting += 1
            self.send(now_s)

    def send(self, now_s: float) -> None:
        if self.underway is None:
            wanted = self.share.wanted(now_s)
            self.underway = Underway(wanted, *self._row.draw(now_s, wanted))

    def receive(self, now_s: float) -> None:
        if self.underway is None:
            return
        wanted, drawn, left_over = self.underway
        self.underway = None
        self.share.drawn(now_s, self._row.rate_per_s, self._burst_s, wanted, drawn, left_over)
        while self.share.waiting:
            self.share.waiting -= 1
            if self.share.has_one(now_s):
                self.granted += 1
                self.share.spend(now_s)


steps = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "receive", "pass"]),
        st.integers(0, 4),
        st.floats(0.0, 1.5) | st.floats(0.0, 0.01),
    ),
    max_size=300,
)


@given(
    rate_per_s=st.sampled_from([0.5, 5.0, 100.0, 1_000.0, 20_000.0]),
    burst_s=st.sampled_from([0.1, 1.0, 3.0]),
    steps=steps,
)
def test_nodes_together_never_exceed_rate_and_burst(
    rate_per_s: float, burst_s: float, steps: list[tuple[str, int, float]]
) -> None:
    row, now_s = Row(rate_per_s, burst_s), 0.0
    nodes = [Node(row, burst_s) for _ in range(5)]
    for act, which, amount in steps:
        if act == "pass":
            now_s += amount
        elif act == "ask":
            for _ in range(1 + int(amount * 100)):
                nodes[which].ask(now_s)
        else:
            nodes[which].receive(now_s)
        assert sum(node.granted for node in nodes) <= row.capacity + rate_per_s * now_s + EPSILON


@given(
    rate_per_s=st.sampled_from([1.0, 5.0, 100.0, 20_000.0]),
    asked_for=st.lists(st.integers(1, 60), min_size=1, max_size=40),
)
def test_one_node_that_asks_for_more_gets_all_that_there_is(rate_per_s: float, asked_for: list[int]) -> None:
    row, now_s = Row(rate_per_s, 1.0), 0.0
    node, asked = Node(row, 1.0), 0
    for count in asked_for:
        for _ in range(count):
            node.ask(now_s)
            node.receive(now_s)
        asked += count
    kept = SHARE_MAX * row.capacity
    assert min(asked, math.floor(row.capacity)) - kept <= node.granted <= min(asked, row.capacity)


@given(rate_per_s=st.sampled_from([0.5, 5.0, 100.0, 20_000.0]), refused=st.integers(1, 50))
def test_who_comes_again_when_told_is_granted(rate_per_s: float, refused: int) -> None:
    row, now_s = Row(rate_per_s, 1.0), 0.0
    node = Node(row, 1.0)
    row.draw(now_s, 1 << 30)  # somebody else has emptied it
    node.ask(now_s)
    node.receive(now_s)
    assert node.share.is_empty(now_s)
    told_s = sorted(now_s + node.share.promise_s(now_s, 1.0) for _ in range(refused))
    for number, at_s in enumerate(told_s, start=1):
        before = node.granted
        node.ask(at_s + EPSILON)
        node.receive(at_s + EPSILON)
        assert node.granted == before + 1 or number > row.capacity, (number, at_s)


def test_what_is_in_hand_lapses_and_a_new_limit_is_heard_of() -> None:
    share = Share()
    assert share.wanted(0.0) == 0
    share.waiting = 1
    share.drawn(0.0, 20_000.0, 1.0, share.wanted(0.0), 1, 19_999.0)
    share.waiting = 0
    assert share.spend(0.0), "it is time for more than the one that was waited for"
    share.drawn(0.0, 20_000.0, 1.0, 400, 400, 19_000.0)
    assert share.has_one(0.0)
    assert share.spend(FRESH_S), "it looks whether the limit is still the same"
    share.drawn(FRESH_S, 10.0, 1.0, 0, 0, 5.0)
    assert not share.has_one(FRESH_S), "what was drawn under a generous limit is worth nothing under a small one"
    share.drawn(FRESH_S, 20_000.0, 1.0, 20, 20, 5.0)
    assert share.has_one(FRESH_S + LIFE_S - EPSILON)
    assert not share.has_one(FRESH_S + LIFE_S)
