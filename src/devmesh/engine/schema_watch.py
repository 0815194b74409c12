"""Looks at the schema again and again, because somebody may change it behind the program's back.

What is missing or different makes the service not ready, by name and with the SQL that mends it; once it is mended and every
statement fits again, the service is ready again by itself. It must not mend anything: it looks and tells.
"""

from __future__ import annotations

import time

import structlog

from devmesh.core.components import Component, degraded, healthy, unhealthy
from devmesh.core.errors import unavailable
from devmesh.engine.loop import Loop
from devmesh.store.database import Database
from devmesh.store.inspection import Inspector, Look
from devmesh.store.statements import all_statements

log = structlog.get_logger(__name__)

DOUBT_PAUSE_S = 0.5  # every call that fails raises the same doubt


class SchemaWatch(Loop):
    name = "schema"

    def __init__(self, database: Database, interval_s: float) -> None:
        super().__init__(interval_s)
        self._database, self._inspector = database, Inspector.of_this_program()
        self._look: Look | None = None
        self._misfits: list[str] = []  # statements that do not fit the schema
        # Of a schema that is piece by piece what the migrations make, all statements are known to fit, by the tests of this
        # program. They are prepared one by one only when one of them did not, or when the schema had not been whole.
        self._is_doubted = False
        self._looked_at = float("-inf")
        self._told: list[str] = []
        database.on_misfit = self.doubt

    def doubt(self) -> None:
        """A statement did not fit the schema any more: look at once, if nobody has just looked."""
        self._is_doubted = True
        if time.monotonic() - self._looked_at > DOUBT_PAUSE_S:
            self.wake()

    async def run_once(self) -> bool:
        self._looked_at = time.monotonic()
        look = await self._inspector.look(self._database)
        is_whole = not look.migration_problems and not (look.drift and look.drift.problems)
        if not is_whole:
            self._is_doubted, self._misfits = True, []  # what is missing says it better than who misses it
        elif self._is_doubted or look.is_catalogue_stale:
            self._misfits = await self._database.unfit(all_statements())
            self._is_doubted = bool(self._misfits)
        self._look = look
        self._tell(self.problems, [*look.newer, *self.remarks])
        return False

    @property
    def problems(self) -> list[str]:
        """Whatever forbids to serve."""
        return [*self.migration_problems, *self.schema_problems]

    def last_look(self) -> Look:
        """Raises MeshError if there is none that still tells how things are."""
        if self._look is None or self._failures:
            raise unavailable(self._failure or "the schema was not looked at yet")
        return self._look

    @property
    def migration_problems(self) -> list[str]:
        return self._look.migration_problems if self._look else ["they were not looked at yet"]

    @property
    def schema_problems(self) -> list[str]:
        """Every missing or different piece with the SQL that mends it, and every statement that does not fit."""
        found = self._look.drift.problems if self._look and self._look.drift else []
        return [*(f"{each.sentence}; to mend it: {each.sql}" for each in found), *self._misfits]

    @property
    def remarks(self) -> list[str]:
        """What is worth knowing, and keeps nobody from serving."""
        if self._look is None:
            return []
        extras = self._look.drift.extras if self._look.drift else []
        found = [f"{each.sentence}; if nobody needs it: {each.sql}" for each in extras]
        if self._look.is_catalogue_stale:
            found.append(
                "store/catalogue.json is not of this program's migrations: `devmesh migrate catalogue --write`"
            )
        return found

    def findings(self) -> list[dict[str, str]]:
        """Every piece that is not as the migrations make it, in the order in which they are to be mended."""
        found = self._look.drift.findings if self._look and self._look.drift else ()
        return [
            {
                "kind": each.kind,
                "name": each.name,
                "difference": each.difference,
                "detail": each.detail,
                "sql": each.sql,
            }
            for each in found
        ]

    def state(self, pass_s_max: float) -> Component:
        """How the schema is. What was last seen stands while the database is away."""
        if problems := self.schema_problems:
            return unhealthy("; ".join(problems))
        loop = super().state(pass_s_max)
        if loop.status != "healthy":
            return loop
        return degraded("; ".join(self.remarks)) if self.remarks else healthy()

    async def check_migrations(self) -> Component:
        """How the migrations are."""
        if problems := self.migration_problems:
            return unhealthy("; ".join(problems))
        return healthy("; ".join(self._look.newer if self._look else []))

    def _tell(self, problems: list[str], remarks: list[str]) -> None:
        """In the log, when it has changed."""
        if [*problems, *remarks] == self._told:
            return
        if problems:
            log.error("the schema is not usable", problems=problems)
        elif self._told:
            log.info("the schema is usable")
        if remarks:
            log.warning("the schema is not all this program's", remarks=remarks)
        self._told = [*problems, *remarks]
