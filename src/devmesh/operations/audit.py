"""The audit log: every admin act and every denied act, in the transaction of the act itself."""

from __future__ import annotations

import collections
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from devmesh import telemetry
from devmesh.core import errors
from devmesh.core.access import Caller
from devmesh.core.ids import new_id
from devmesh.operations.registry import Call, Operation
from devmesh.operations.work import Work
from devmesh.store.database import Database
from devmesh.store.statements import load

SQL = load("audit")
DENIALS_PER_MINUTE_MAX = 300  # of one key, on each node


class Entry(msgspec.Struct):
    audit_id: uuid.UUID
    key_id: uuid.UUID
    agent_id: uuid.UUID | None
    address: str
    operation: str
    outcome: str  # done | denied
    detail: dict[str, Any]


def _entry(caller: Caller, operation: str, outcome: str, detail: dict[str, Any]) -> Entry:
    if caller.token is not None:  # what stands in the place of a key's id says nothing to people
        detail = {**detail, "issuer": caller.token.issuer, "subject": caller.token.subject}
    return Entry(new_id(), caller.key_id, caller.agent_id, caller.address, operation, outcome, detail)


async def record(
    work: Work, operation: Operation, calls: Sequence[Call[Any]], answers: Mapping[int, msgspec.Raw | errors.MeshError]
) -> None:
    """Writes what of a batch belongs into the log. Parameters are kept by name only: values may be secrets."""
    entries = []
    for ordinal, answer in answers.items():
        call = calls[ordinal]
        if isinstance(answer, errors.MeshError):
            if answer.kind is errors.Kind.FORBIDDEN:
                detail = {**_named(call), "reason": answer.message}
                entries.append(_entry(call.caller, operation.name, "denied", detail))
        elif operation.audited:
            entries.append(_entry(call.caller, operation.name, "done", _named(call)))
    if entries:
        await work.tx.execute(SQL.insert_many, work.tenant_id, msgspec.json.encode(entries).decode())


def _named(call: Call[Any]) -> dict[str, Any]:
    return {name: str(getattr(call.params, name)) for name in call.params.__struct_fields__ if name.endswith("_id")}


class Denials:
    """What was refused where no transaction of its own is left to hold the entry.

    Of one key so many a minute are written: each costs more than what was refused, and who only asks for what it may not do
    could fill the database. The others are counted.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._minute = 0
        self._written: collections.Counter[uuid.UUID] = collections.Counter()

    async def record(self, caller: Caller, operation: str, reason: str) -> None:
        minute = int(time.monotonic() // 60)
        if minute != self._minute:
            self._minute = minute
            self._written.clear()
        self._written[caller.key_id] += 1
        if self._written[caller.key_id] > DENIALS_PER_MINUTE_MAX:
            telemetry.DENIALS_UNWRITTEN.inc()
            return
        entry = _entry(caller, operation, "denied", {"reason": reason})
        encoded = msgspec.json.encode([entry]).decode()
        await self._database.run(lambda tx: tx.execute(SQL.insert_many, caller.tenant_id, encoded))
