"""Idempotency keys: the same key with the same parameters gives the same stored answer, within a batch and across nodes.

The claim of a key, what the call did and its answer are one transaction. A failed call changed nothing, so its key is
given up and may be tried again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from devmesh.core import errors
from devmesh.operations.registry import Call, Key, Operation
from devmesh.operations.work import Work
from devmesh.store.statements import SEPARATOR, load

SQL = load("idempotency")

Answer = msgspec.Raw | errors.MeshError


class Claims:
    """The keyed calls of a batch: which must be run, and which have their answer already."""

    def __init__(self, operation: Operation, calls: Sequence[Call[Any]]) -> None:
        self._operation = operation
        self._keys: list[str | None] = [getattr(call.params, "idempotency_key", None) for call in calls]
        self._hashes = [_hash(operation, call) if key else b"" for key, call in zip(self._keys, calls, strict=True)]
        self.answers: dict[int, Answer] = {}  # by ordinal in the batch
        self._first: dict[str, int] = {}  # the ordinal that runs for a key
        self._twins: list[int] = []  # ordinals that take the answer of the first of their key

    def distinct(self) -> dict[str, Key] | None:
        """The keys, in the order in which they are claimed; None: two calls have the same one."""
        keyed = [
            (key, Key(ordinal, self._hashes[ordinal])) for ordinal, key in enumerate(self._keys) if key is not None
        ]
        found = dict(sorted(keyed))
        return found if len(found) == len(keyed) else None

    async def claim(self, work: Work) -> list[int]:
        """The ordinals that must be run."""
        runs: list[int] = []
        for ordinal, key in enumerate(self._keys):
            if key is None:
                runs.append(ordinal)
            elif key not in self._first:
                self._first[key] = ordinal
            elif self._hashes[self._first[key]] == self._hashes[ordinal]:
                self._twins.append(ordinal)
            else:
                self.answers[ordinal] = _mismatch()
        if self._first:
            runs += await self._claim_keys(work)
        return sorted(runs)

    async def _claim_keys(self, work: Work) -> list[int]:
        keys = sorted(self._first)
        hashes = [self._hashes[self._first[key]].hex() for key in keys]
        count = await work.tx.execute_spelled_out(
            SQL.claim, str(work.tenant_id), SEPARATOR.join(keys), self._operation.name, SEPARATOR.join(hashes)
        )
        if count < len(keys):
            await self._take_answers(work, keys)
        return list(self._first.values())

    async def _take_answers(self, work: Work, keys: list[str]) -> None:
        """Gives the stored answers to those whose keys were used before, and leaves the others as the first of theirs."""
        rows = {row["idempotency_key"]: row for row in await work.tx.fetch(SQL.answers, work.tenant_id, keys)}
        for key in keys:
            row = rows.get(key)
            if row is not None and row["answer"] is None:
                continue
            ordinal = self._first.pop(key)
            if row is None:  # it was forgotten, being too old, in this very moment
                self._give(key, ordinal, errors.unavailable("try again"))
            else:
                is_same = row["params_hash"] == self._hashes[ordinal]
                self._give(key, ordinal, msgspec.Raw(row["answer"]) if is_same else _mismatch())

    async def store(self, work: Work, answers: dict[int, Answer], unfinished: set[int]) -> None:
        """Stores what the run calls answered; gives up the keys of those that failed or are not finished."""
        failed = []
        stored: dict[str, str] = {}
        for key, ordinal in self._first.items():
            answer = answers[ordinal]
            if isinstance(answer, errors.MeshError) or ordinal in unfinished:
                failed.append(key)
            else:
                stored[key] = bytes(self._without_secret(answer)).decode()
            self._give(key, ordinal, answer)
        if stored:
            work.tx.commit_with(SQL.store, str(work.tenant_id), SEPARATOR.join(stored), SEPARATOR.join(stored.values()))
        if failed:
            await work.tx.execute(SQL.release, work.tenant_id, failed)

    def _without_secret(self, answer: msgspec.Raw) -> bytes | msgspec.Raw:
        if self._operation.secret is None:
            return answer
        return msgspec.json.encode({**msgspec.json.decode(answer), self._operation.secret: None})

    def _give(self, key: str, ordinal: int, answer: Answer) -> None:
        self.answers[ordinal] = answer
        for twin in self._twins:
            if self._keys[twin] == key:
                # A twin's parameters were compared with the first of its key, so a mismatch is its own as well.
                self.answers[twin] = answer


def _hash(operation: Operation, call: Call[Any]) -> bytes:
    """Of the operation and its parameters in canonical form, whichever wire and spelling they came by.

    Who acts as an agent without naming it means its own: two agents that use one key by chance do not get each other's answer.
    """
    params = msgspec.json.decode(msgspec.json.encode(msgspec.structs.replace(call.params, idempotency_key=None)))
    if "agent_id" in params:
        params["agent_id"] = (
            params["agent_id"] or call.caller.agent_id
        )  # whether it may be that one is the body's to say
    return hashlib.sha256(msgspec.json.encode([operation.name, params], order="sorted")).digest()


def _mismatch() -> errors.MeshError:
    return errors.MeshError(
        errors.Kind.IDEMPOTENCY_MISMATCH, "this idempotency key was used with other parameters", field="idempotency_key"
    )
