"""How many connections a tenant holds, WebSockets and event streams alike, on all nodes together.

Each node counts its own, tells the others at intervals, and knows from the same trip what they hold. So a tenant that opens
connections at several nodes in the same moment may get a few more than it should, until the nodes have heard of each other.
"""

from __future__ import annotations

import collections
import uuid

from devmesh import telemetry
from devmesh.core.errors import Kind, MeshError
from devmesh.core.ids import new_id
from devmesh.store.database import Database
from devmesh.store.statements import load

SQL = load("connections")
SILENT_INTERVALS_MAX = 3.0  # then a node is taken for gone, and its connections with it
RETRY_AFTER_MS = 5_000  # by then a connection may have ended, or that of a node that has died is not counted any more


class Connections:
    """The connections of this process, and what is known of the others'."""

    def __init__(self, database: Database, per_tenant_max: int, report_interval_s: float) -> None:
        self._database, self._per_tenant_max = database, per_tenant_max
        self._silent_s_max = SILENT_INTERVALS_MAX * max(report_interval_s, 1.0)
        self._node_id = new_id()
        self._held: collections.Counter[uuid.UUID] = collections.Counter()
        self._elsewhere: dict[uuid.UUID, int] = {}

    def open(self, tenant_id: uuid.UUID) -> None:
        """Counts one more. Raises quota_exceeded."""
        if self._held[tenant_id] + self._elsewhere.get(tenant_id, 0) >= self._per_tenant_max:
            telemetry.REQUESTS_REFUSED.labels("connections of a tenant").inc()
            raise MeshError(
                Kind.QUOTA_EXCEEDED,
                f"this tenant has {self._per_tenant_max} connections already; close one first",
                retry_after_ms=RETRY_AFTER_MS,
                reason="connections",
            )
        self._held[tenant_id] += 1

    def close(self, tenant_id: uuid.UUID) -> None:
        """One that was counted has ended."""
        self._held[tenant_id] -= 1
        if self._held[tenant_id] <= 0:
            del self._held[tenant_id]

    async def report(self) -> None:
        """Tells the other nodes, and hears from them."""
        held = sorted(self._held.items())
        rows = await self._database.read(
            SQL.report, self._node_id, [tenant for tenant, _ in held], [count for _, count in held], self._silent_s_max
        )
        self._elsewhere = {row["tenant_id"]: row["connections"] for row in rows}
