"""What each of the three services is made of, and how it starts and stops.

rest-api migrates and serves REST; mcp-server serves the agents' WebSocket; worker runs what moves when nobody asks. They share
one start: reach the database, see the schema complete, see every statement fit, begin the loops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from starlette.types import ASGIApp

from devmesh import operations
from devmesh.core.errors import MeshError
from devmesh.core.ids import new_id
from devmesh.edges import boundary, rest
from devmesh.edges.health import Component, Health, Migrations
from devmesh.edges.session import Parts
from devmesh.edges.sse import EventStreams
from devmesh.edges.websocket import Gateway
from devmesh.engine.assigner import Assigner
from devmesh.engine.bell import Bell
from devmesh.engine.fanout import Fanout
from devmesh.engine.key_watch import KeyWatch
from devmesh.engine.loop import Loop
from devmesh.engine.presence import Presence, SessionKeeper
from devmesh.engine.reaper import Reaper
from devmesh.operations.authentication import Authenticator
from devmesh.operations.corridor import Corridor
from devmesh.operations.sessions import Sessions
from devmesh.operations.work import WorkRunner
from devmesh.settings import Settings
from devmesh.store.connections import DatabaseUnreachable, close_connection, connect_with_backoff
from devmesh.store.database import Database
from devmesh.store.migration_files import MigrationError
from devmesh.store.migration_states import State
from devmesh.store.migrator import Migrator
from devmesh.store.statements import all_statements

log = structlog.get_logger(__name__)

SCHEMA_WAIT_S, SCHEMA_LOOK_INTERVAL_S = 120.0, 2.0
RETRY_INTERVAL_S = 5.0
PREPARE_TRIES, PREPARE_PAUSE_S = 5, 0.1


class StartRefused(Exception):
    """The service cannot start and waiting does not help. One line that says why."""


class Service:
    def __init__(self, name: str, settings: Settings, health: Health) -> None:
        self.name, self._settings, self._health = name, settings, health
        self._database: Database | None = None
        self._corridor: Corridor | None = None
        self._gateway: Gateway | None = None
        self._streams: EventStreams | None = None
        self._sessions: Sessions | None = None
        self._loops: list[Loop] = []

    async def start(self) -> ASGIApp:
        """Starts, however long it takes, and answers with the application to serve. Raises StartRefused."""
        settings = self._settings
        if settings.database_dsn is None:
            raise StartRefused(
                "DATABASE_DSN is not set: say where PostgreSQL is, or use `devmesh up`, which brings its own"
            )
        await self._reach(settings.database_dsn)
        await self._see_schema(Migrator(settings.database_dsn))
        self._database = await self._open(settings.database_dsn)
        await self._see_statements_fit(self._database)
        self._health.add("database", self._check_database)
        application = self._compose(self._database)
        for loop in self._loops:
            loop.start()
            self._health.add(loop.name, _check_of(loop))
        self._wait_for()
        return application

    async def stop(self) -> None:
        """Lets what is in flight end within the grace, then lets go of everything."""
        grace_s = self._settings.shutdown_grace_s
        try:
            async with asyncio.timeout(grace_s):
                if self._streams is not None:
                    await self._streams.drain(grace_s)
                if self._gateway is not None:
                    await self._gateway.drain(grace_s / 2)  # then those who wait for something to happen are sent away
                if self._corridor is not None:
                    await self._corridor.drain()
        except TimeoutError:
            log.warning("requests were cut off", grace_s=grace_s)
        await asyncio.gather(*(loop.stop() for loop in self._loops))
        if self._sessions is not None:
            await self._sessions.drain()
        if self._database is not None:
            await self._database.close()

    # The start, step by step

    async def _reach(self, dsn: str) -> None:
        self._wait_for("the database")
        try:
            await close_connection(await connect_with_backoff(dsn, self._wait_for, service=f"devmesh {self.name}"))
        except DatabaseUnreachable as error:
            raise StartRefused(str(error)) from None

    async def _see_schema(self, migrator: Migrator) -> None:
        self._health.look_at_migrations(lambda: _facts(migrator))
        migrates = self.name == "rest-api" and not self._settings.skip_migrations
        while True:
            self._wait_for("migrations")
            try:
                self._health.is_migrating = migrates
                if migrates:
                    await migrator.up()
                else:
                    await migrator.wait_for_schema(SCHEMA_WAIT_S, SCHEMA_LOOK_INTERVAL_S, self._wait_for)
                return
            except (MigrationError, DatabaseUnreachable) as error:
                if self._settings.migrations_fail_fast:
                    raise StartRefused(str(error)) from None
                log.error("the schema is not usable", reason=str(error))
                self._wait_for(str(error))
            finally:
                self._health.is_migrating = False
            await asyncio.sleep(RETRY_INTERVAL_S)

    async def _open(self, dsn: str) -> Database:
        settings = self._settings
        while True:
            try:
                return await Database.open(
                    dsn,
                    service=f"devmesh {self.name}",
                    pool_size_min=settings.database_pool_size_min,
                    pool_size_max=settings.database_pool_size_max,
                    transaction_deadline_s=settings.transaction_deadline_s,
                    search_path=settings.database_search_path,
                )
            except MeshError as error:
                self._wait_for(error.message)
            await asyncio.sleep(RETRY_INTERVAL_S)

    async def _see_statements_fit(self, database: Database) -> None:
        """Statements that do not fit the schema keep the service from being ready, by name, until they do."""
        tries = 0
        while True:
            try:
                problems = await database.unfit(all_statements())
            except MeshError as error:
                problems = [error.message]
            if not problems:
                return
            tries += 1
            if tries == PREPARE_TRIES:
                log.error("statements do not fit the schema", problems=problems)
            self._wait_for(*problems)
            await asyncio.sleep(min(PREPARE_PAUSE_S * 2**tries, RETRY_INTERVAL_S))

    def _compose(self, database: Database) -> ASGIApp:
        """Builds what this service consists of."""
        settings = self._settings
        bell = Bell(database, settings.bell_coalesce_ms)
        runner = WorkRunner(database, bell)
        self._loops = [bell]
        self._health.details = lambda: {"pool": database.stats._asdict()}
        if self.name == "worker":
            assigner = Assigner(runner, settings.assigner_interval_s)
            bell.listen(assigner.heard)
            reaper = Reaper(runner, settings.reaper_interval_s, settings.idempotency_ttl_s)
            self._loops += [assigner, reaper, Presence(runner, settings.presence_interval_s)]
            return boundary.application([])
        operations.load_all()
        authenticator = Authenticator(database, settings)
        self._corridor = Corridor(runner, settings)
        fanout = Fanout(
            database,
            interval_s=settings.fanout_poll_interval_s,
            page_events_max=settings.fanout_page_events_max,
            ring_bytes_max=settings.fanout_ring_bytes_max,
        )
        bell.listen(fanout.heard)
        self._loops.append(fanout)
        self._health.authenticator = authenticator
        if self.name == "rest-api":
            streams = self._streams = EventStreams(fanout, settings)
            self._loops.append(KeyWatch(authenticator, streams, settings.key_check_interval_s))
            self._health.details = lambda: {"event_streams": len(streams.streams), "pool": database.stats._asdict()}
            return boundary.application(rest.routes(self._corridor, authenticator, streams, settings))
        self._sessions = Sessions(runner, new_id(), settings)
        self._gateway = Gateway(Parts(self._corridor, authenticator, self._sessions, fanout, settings))
        self._loops += [
            SessionKeeper(self._sessions, settings.presence_interval_s),
            KeyWatch(authenticator, self._gateway, settings.key_check_interval_s),
        ]
        gateway = self._gateway
        self._health.details = lambda: {"connections": len(gateway.connections), "pool": database.stats._asdict()}
        return gateway.application(boundary.application([]))

    # Health

    def _wait_for(self, *reasons: str) -> None:
        if list(reasons) != self._health.waiting_for and reasons:
            log.info("waiting", reasons=reasons)
        self._health.waiting_for = list(reasons)

    async def _check_database(self) -> Component:
        assert self._database is not None
        latency_ms = await self._database.ping()
        return Component("healthy", "", round(latency_ms, 3))


def _check_of(loop: Loop) -> Callable[[], Awaitable[Component]]:
    async def check() -> Component:
        return Component("degraded", "its last pass failed") if loop.is_failing else Component("healthy")

    return check


async def _facts(migrator: Migrator) -> Migrations:
    statuses = await migrator.status()
    applied = [status for status in statuses if status.state is State.APPLIED]
    problems = [f"{status.label} is {status.state}" for status in statuses if not status.is_served]
    records = [status.record for status in applied if status.record is not None]
    return Migrations(
        in_progress=False,
        completed=not problems,
        ready=not problems,
        version=applied[-1].version if applied else None,
        completed_at=max((record.finished_at for record in records if record.finished_at), default=None),
        duration_ms=sum(record.duration_ms or 0.0 for record in records),
        problems=problems,
    )
