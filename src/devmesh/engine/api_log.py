"""Writes down which calls were answered: in batches, after the answers, and from a bounded buffer.

The log is for looking things up, not for accounting: rather than slow a call down, an entry is dropped, and counted. What must
not be missed is in the audit log.
"""

from __future__ import annotations

import asyncio
import collections
import datetime
import itertools
import uuid

import msgspec
import structlog

from devmesh import telemetry
from devmesh.core.access import Caller
from devmesh.core.errors import Kind, MeshError
from devmesh.core.ids import new_id
from devmesh.engine.loop import Loop
from devmesh.operations.api_logs import OK, SQL, UNKNOWN_OPERATION, ApiLogEntry
from devmesh.operations.registry import REGISTRY
from devmesh.store.database import Database

log = structlog.get_logger(__name__)

INTERVAL_S = 1.0
ENTRIES_MAX = 20_000  # that wait to be written
BATCH_MAX = 1_000


class ApiLog(Loop):
    name = "api-log"

    def __init__(self, database: Database, wire: str, which: str) -> None:
        """`which` calls of this process's wire are logged: errors, or all."""
        super().__init__(INTERVAL_S)
        self._database, self._wire, self._is_everything = database, wire, which == "all"
        self._waiting: collections.deque[tuple[uuid.UUID, ApiLogEntry]] = collections.deque()

    def note(self, operation: str, caller: Caller, error: MeshError | None, seconds: float) -> None:
        """A call was answered. Takes microseconds and cannot fail."""
        if error is None and not self._is_everything:
            return
        if len(self._waiting) >= ENTRIES_MAX:
            telemetry.API_LOG_DROPPED.inc()
            return
        entry = ApiLogEntry(
            id=new_id(),
            at=datetime.datetime.now(datetime.UTC),
            operation=operation if operation in REGISTRY else UNKNOWN_OPERATION,
            wire=self._wire,
            outcome=error.kind.value if error is not None else OK,
            reason=error.data.reason if error is not None else None,
            duration_ms=round(seconds * 1000, 3),
            key_id=caller.key_id,
            agent_id=caller.agent_id,
            address=caller.address,
            request_id=structlog.contextvars.get_contextvars().get("request_id"),
        )
        self._waiting.append((caller.tenant_id, entry))
        if len(self._waiting) == BATCH_MAX:
            self.wake()

    async def run_once(self) -> bool:
        batch = list(itertools.islice(self._waiting, BATCH_MAX))
        if not batch:
            return False
        try:
            rows = [(tenant_id, *msgspec.structs.astuple(entry)) for tenant_id, entry in batch]
            await self._database.run(lambda tx: tx.execute(SQL.insert_many, *zip(*rows, strict=True)))
        except MeshError as error:
            if error.kind not in (Kind.UNAVAILABLE, Kind.TIMEOUT):  # it would fail again
                telemetry.API_LOG_DROPPED.inc(len(batch))
                self._forget(len(batch))
            raise
        self._forget(len(batch))
        return len(self._waiting) >= BATCH_MAX

    async def stop(self, limit_s: float = 5.0) -> None:
        """Writes what waits, within the limit, unless a write had to be cut off: then another would be as well."""
        await super().stop(limit_s)
        try:
            async with asyncio.timeout(0 if self.is_cut_off else limit_s):
                while self._waiting:
                    await self.run_once()
        except (MeshError, TimeoutError):
            telemetry.API_LOG_DROPPED.inc(len(self._waiting))
            log.warning("answered calls could not be logged before the end", entries=len(self._waiting))

    def _forget(self, entries: int) -> None:
        for _ in range(entries):
            self._waiting.popleft()
