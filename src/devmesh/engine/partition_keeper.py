"""The keeper of partitions: makes them ahead of time, drains the default ones, and drops what retention no longer keeps.

It does so when it starts, at the times of a cron expression, and whenever it finds something missing; of all nodes, one at a
time.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import structlog
from cronsim import CronSim

from devmesh import telemetry
from devmesh.core.components import Component
from devmesh.core.errors import Kind, MeshError
from devmesh.engine.loop import Loop
from devmesh.store import partitions
from devmesh.store.database import Database
from devmesh.store.partitions import Policy, TableReport
from devmesh.store.statements import load

log = structlog.get_logger(__name__)

CLOCK = load("clock")
CLOCK_OFFSET_MAX = datetime.timedelta(days=1)
PASS_S_MAX = 3600.0  # draining and dropping are done in small pieces, however many there are


class PartitionKeeper(Loop):
    name = "partition-keeper"

    def __init__(self, database: Database, policy: Policy, cron: str, interval_s: float) -> None:
        """`cron` is in UTC; `interval_s` lies between looks for what is missing."""
        super().__init__(interval_s)
        self._database, self._policy, self._cron = database, policy, cron
        self._due_at: datetime.datetime | None = None  # None: at once

    def state(self, pass_s_max: float) -> Component:
        return super().state(max(pass_s_max, PASS_S_MAX))

    async def run_once(self) -> bool:
        now = datetime.datetime.now(datetime.UTC)
        reports = await partitions.report(self._database)
        _measure(reports)
        lacking = [report.message for report in reports if report.status != "healthy"]
        if lacking:
            log.warning("partitions are not as they should be", problems=lacking)
        if lacking or self._due_at is None or now >= self._due_at:
            await self._keep(reports)
            self._due_at = next(CronSim(self._cron, now))
        return False

    async def _keep(self, reports: Sequence[TableReport]) -> None:
        """Everything that is to be done, unless another node is doing it. A table that fails does not keep others waiting."""
        failed: MeshError | None = None
        async with partitions.sole_keeper(self._database) as is_ours:
            if not is_ours:
                log.info("another node keeps the partitions")
                return
            may_prune = await self._is_clock_sure()
            for report in reports:
                try:
                    await partitions.ensure(self._database, self._policy.months_ahead, [report.table])
                    if may_prune:
                        await partitions.prune(self._database, self._policy, [report.table])
                except MeshError as error:
                    if error.kind is Kind.UNAVAILABLE:
                        raise
                    log.warning("partitions cannot be kept", table=report.table, error=error.message)
                    failed = error
        _measure(await partitions.report(self._database))
        if failed is not None:
            raise failed
        telemetry.PARTITIONS_KEPT_AT.set_to_current_time()
        log.info("the partitions are kept")

    async def _is_clock_sure(self) -> bool:
        """What is dropped is gone: not while the database's clock, by which it is old, is far from this machine's."""
        [row] = await self._database.read(CLOCK.now)
        offset = abs(row["now"] - datetime.datetime.now(datetime.UTC))
        if offset > CLOCK_OFFSET_MAX:
            log.error(
                "nothing old is dropped while two clocks differ so", days=round(offset / datetime.timedelta(days=1), 1)
            )
        return bool(offset <= CLOCK_OFFSET_MAX)


def _measure(reports: Sequence[TableReport]) -> None:
    for report in reports:
        telemetry.PARTITION_MONTHS_AHEAD.labels(report.table).set(report.months_ahead)
        telemetry.PARTITION_ROWS_IN_DEFAULT.labels(report.table).set(report.rows_in_default)
        telemetry.PARTITION_BYTES.labels(report.table).set(report.bytes or 0)
