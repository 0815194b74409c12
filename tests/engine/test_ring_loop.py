"""A loop that is rung for serves those who ring at once, and everybody in time however much rings."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from devmesh.core.errors import unavailable
from devmesh.engine.ring_loop import RingLoop
from tests.harness import eventually

LOUD, QUIET = uuid.UUID(int=1), uuid.UUID(int=2)
INTERVAL_S = 0.2


class Rounds(RingLoop):
    name = "rounds"

    def __init__(self) -> None:
        super().__init__(INTERVAL_S)
        self.looks: list[set[uuid.UUID] | None] = []
        self.is_failing = False

    async def run_once(self) -> bool:
        self.looks.append(self.take_rung())
        if self.is_failing:
            raise unavailable("the database is away")
        return False


@pytest.fixture
async def loop() -> AsyncIterator[Rounds]:
    loop = Rounds()
    loop.start()
    await loop.passed.wait()
    loop.looks.clear()
    yield loop
    await loop.stop()


async def test_who_rings_is_looked_at_and_nobody_else(loop: Rounds) -> None:
    def is_looked_at() -> bool:
        loop.heard(frozenset({LOUD}))
        return {LOUD} in loop.looks

    await eventually(is_looked_at, "a look at who rang alone")


async def test_everybody_has_a_round_at_once_when_anybody_may_have_rung(loop: Rounds) -> None:
    loop.heard(frozenset({LOUD}))
    loop.heard(None)
    await eventually(lambda: loop.looks, "a look")
    assert loop.looks[0] is None


async def test_a_tenant_that_never_stops_ringing_does_not_put_off_the_round(loop: Rounds) -> None:
    began_at = asyncio.get_running_loop().time()
    while loop.looks.count(None) < 3:
        loop.heard(frozenset({LOUD}))
        await asyncio.sleep(0)
        assert asyncio.get_running_loop().time() - began_at < 10, "no round while one tenant rings"
    assert loop.looks.count({LOUD}) > 3, "each look was a round"


async def test_those_that_a_failed_pass_was_for_are_not_forgotten(loop: Rounds) -> None:
    loop.is_failing = True
    loop.heard(frozenset({QUIET}))
    await eventually(lambda: loop.looks, "a look")
    loop.is_failing = False
    seen = len(loop.looks)
    loop.heard(frozenset({LOUD}))
    await eventually(lambda: len(loop.looks) > seen, "another look")
    assert loop.looks[seen] is None


async def test_who_rings_in_a_round_comes_before_the_rest_of_it_and_does_not_put_it_off() -> None:
    loop = Rounds()
    others = [uuid.UUID(int=number) for number in range(3, 8)]
    turns = []
    for tenant_id in loop.in_turn(others):
        turns.append(tenant_id)
        if tenant_id != QUIET:
            loop.heard(frozenset({LOUD}))  # whatever is done, it rings again
        if len(turns) == 1:
            loop.heard(frozenset({QUIET}))
    assert turns.index(QUIET) <= 2
    assert [tenant_id for tenant_id in turns if tenant_id in others] == others
    assert turns.count(LOUD) == len(others) - 1
