"""Identifiers are UUIDs of the seventh version, each greater than the one before, and like any others made of their numbers."""

from __future__ import annotations

import copy
import pickle
import time
import uuid

from devmesh.core.ids import first_id_at, new_id, new_ids


def test_they_grow_whoever_asks_for_how_many() -> None:
    made = [*new_ids(5_000), new_id(), *new_ids(3)]
    assert made == sorted(set(made))
    assert {(each.version, each.variant) for each in made} == {(7, uuid.RFC_4122)}


def test_they_say_when_they_were_made() -> None:
    before = time.time()
    made = new_id()
    assert first_id_at(before - 1) < made < first_id_at(time.time() + 1)


def test_they_are_what_the_constructor_makes_of_their_numbers() -> None:
    made = new_id()
    other = uuid.UUID(str(made))
    assert (made, hash(made), made.is_safe, made.bytes) == (other, hash(other), other.is_safe, other.bytes)
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made
