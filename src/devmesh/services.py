"""What each of the three services is made of, and how it starts and stops.

rest-api migrates and serves REST; mcp-server serves the agents' WebSocket; worker runs what moves when nobody asks. They share
one start: reach the database, see the schema complete, see every statement fit, begin the loops.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog
from starlette.types import ASGIApp

from devmesh import operations
from devmesh.core import envelope
from devmesh.core.components import Component
from devmesh.core.errors import MeshError
from devmesh.core.events import Concern
from devmesh.core.ids import new_id
from devmesh.edges import boundary, rest
from devmesh.edges.health import Health, Migrations
from devmesh.edges.migrations import migration_facts, migrations_last_seen
from devmesh.edges.session import Parts
from devmesh.edges.sse import EventStreams
from devmesh.edges.websocket import Gateway
from devmesh.engine import outbox
from devmesh.engine.api_log import ApiLog
from devmesh.engine.assigner import Assigner
from devmesh.engine.bell import Bell
from devmesh.engine.breaker import watched
from devmesh.engine.carrier import Carrier
from devmesh.engine.event_loop import EventLoop
from devmesh.engine.fanout import Fanout
from devmesh.engine.job_loops import job_loops
from devmesh.engine.key_sets import KeySets
from devmesh.engine.key_watch import KeyWatch
from devmesh.engine.limits_keeper import LimitsKeeper
from devmesh.engine.looks import Looks
from devmesh.engine.loop import Loop
from devmesh.engine.notify_bell import NotifyBell
from devmesh.engine.partition_keeper import PartitionKeeper
from devmesh.engine.presence import Presence, SessionKeeper
from devmesh.engine.queue_depths import QueueDepths
from devmesh.engine.queue_scout import QueueScout
from devmesh.engine.reaper import Reaper
from devmesh.engine.recalling import Recalling, Unusable, require_usable
from devmesh.engine.reencryption import Reencryption
from devmesh.engine.schema_watch import SchemaWatch
from devmesh.operations.admission import TICK_S
from devmesh.operations.authentication import Authenticator
from devmesh.operations.connections import Connections
from devmesh.operations.corridor import Corridor
from devmesh.operations.sessions import Sessions
from devmesh.operations.tokens import Tokens
from devmesh.operations.work import WorkRunner
from devmesh.settings import Settings
from devmesh.store import partitions, standing
from devmesh.store.connections import (
    BACKOFF_S,
    AddressUnusable,
    DatabaseUnreachable,
    close_connection,
    connect_with_backoff,
)
from devmesh.store.database import Database
from devmesh.store.migration_files import MigrationError
from devmesh.store.migrator import Migrator
from devmesh.store.partitions import Policy, TableReport
from devmesh.store.vault import Vault

if TYPE_CHECKING:
    from devmesh.client import Mesh
    from devmesh.engine.app_worker import AppWorker

log = structlog.get_logger(__name__)

SCHEMA_WAIT_S, SCHEMA_LOOK_INTERVAL_S = 120.0, 2.0
RETRY_INTERVAL_S = 2.0
REFUSED_RETRY_INTERVAL_S = 10.0  # of a database that turns us away, until somebody mends that
LET_GO_LIMIT_S = 0.5
PARTITIONS_LIMIT_S = 5.0  # for making them at start
PARTITIONS_INTERVAL_S = 2.0  # between looks at them
VECTORS_INTERVAL_S = 2.0  # between looks at what compares vectors
PREPARE_PAUSE_S = 0.1
IDLE_TICK_S = 0.25  # of a service whose calls nobody is refused


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
        self._partitions: list[TableReport] = []  # as they were last seen
        self._recalling: Recalling | None = None
        self._app: Mesh | None = None  # whose jobs a worker runs
        self._app_worker: AppWorker | None = None

    async def start(self) -> ASGIApp:
        """Starts, however long it takes, and answers with the application to serve. Raises StartRefused."""
        settings = self._settings
        if settings.database_dsn is None:
            raise StartRefused(
                "DATABASE_DSN is not set: say where PostgreSQL is, or use `devmesh up`, which brings its own"
            )
        if settings.environment == "production" and not settings.master_keys:
            raise StartRefused(
                "DEVMESH_ENVIRONMENT is production and no master key is set: make one with `devmesh keys generate` and set"
                " ENCRYPTION_MASTER_KEY to it"
            )
        try:
            require_usable(settings)
        except Unusable as error:
            raise StartRefused(str(error)) from error
        if self.name == "worker" and settings.worker_app:
            from devmesh.engine.app_worker import AppUnusable, load_app  # the client is nothing to other services

            try:
                self._app = load_app(settings.worker_app)
            except AppUnusable as error:
                raise StartRefused(str(error)) from error
        self._health.start()
        await self._reach(settings.database_dsn)
        await self._see_schema(Migrator(settings.database_dsn))
        self._database = await self._open(settings.database_dsn)
        watch = SchemaWatch(self._database, settings.schema_check_interval_s)
        await self._see_schema_fits(watch)
        self._health.add("migrations", watch.check_migrations)
        self._health.look_at_migrations(functools.partial(migrations_last_seen, watch))
        self._health.add_details("schema", watch.findings)
        self._health.add("database", functools.partial(standing.check, self._database))
        await self._ensure_partitions(self._database)
        application = self._compose(self._database)
        self._loops.append(watch)
        for loop in self._loops:
            loop.start()
            self._health.add(loop.name, functools.partial(loop.check, settings.loop_pass_s_max))
        if self._app_worker is not None:
            self._app_worker.start()
        await self._health.run_once()
        self._wait_for()
        return application

    async def drain(self, answered: Callable[[], Awaitable[object]]) -> None:
        """Lets what is in flight end within the grace, and sends everybody elsewhere. `answered` waits for REST's requests."""
        grace_s = self._settings.shutdown_grace_s
        try:
            async with asyncio.timeout(grace_s):
                if self._app_worker is not None:
                    await self._app_worker.drain(grace_s)
                if self._corridor is not None:
                    self._corridor.leave()
                if self._streams is not None:
                    await self._streams.drain(grace_s)
                if self._gateway is not None:
                    await self._gateway.drain(grace_s / 2)
                await answered()
                if self._corridor is not None:
                    await self._corridor.drain()
                if self._sessions is not None:
                    await self._sessions.drain()
        except TimeoutError:
            log.warning("requests were cut off", grace_s=grace_s)

    async def close(self) -> None:
        """Lets go of everything, whether or not the database lets go of us: what is not committed by now is undone."""
        await asyncio.gather(*(loop.stop(LET_GO_LIMIT_S) for loop in [*self._loops, self._health]))
        if self._recalling is not None:
            await self._recalling.close()
        if self._database is not None:
            await self._database.close(LET_GO_LIMIT_S)

    # The start, step by step

    async def _reach(self, dsn: str) -> None:
        """Waits for the database for as long as it takes, unless told to fail fast: whoever runs us may start us just once."""
        self._wait_for("the database")
        while True:
            try:
                service = f"devmesh {self.name}"
                connection = await connect_with_backoff(dsn, self._wait_for, service=service, backoff_s=BACKOFF_S)
                await close_connection(connection)
                return
            except DatabaseUnreachable as error:
                if self._settings.migrations_fail_fast or isinstance(error, AddressUnusable):
                    raise StartRefused(str(error)) from None
                pause_s = REFUSED_RETRY_INTERVAL_S if error.is_permanent else BACKOFF_S[-1]
                log.error("the database is not usable", reason=str(error), next_try_s=pause_s)
                self._wait_for(f"{error}; the next try in {pause_s:g} s")
            await asyncio.sleep(pause_s)

    async def _see_schema(self, migrator: Migrator) -> None:
        async def facts() -> Migrations:
            return migration_facts(*await migrator.look())

        self._health.look_at_migrations(facts)
        migrates = self.name == "rest-api" and not self._settings.skip_migrations
        self._wait_for("migrations")
        while True:
            try:
                self._health.is_migrating = migrates
                if migrates:
                    await migrator.up()
                else:
                    await migrator.wait_for_schema(SCHEMA_WAIT_S, SCHEMA_LOOK_INTERVAL_S, self._wait_for)
                return
            except (MigrationError, DatabaseUnreachable) as error:
                is_passing = isinstance(error, DatabaseUnreachable) and not error.is_permanent
                if self._settings.migrations_fail_fast and not is_passing:
                    raise StartRefused(str(error)) from None
                if self._health.waiting_for != [str(error)]:
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

    async def _see_schema_fits(self, watch: SchemaWatch) -> None:
        """What the schema lacks keeps the service from being ready, by name, until it is mended."""
        tries = 0
        while True:
            try:
                await watch.run_once()
                problems = watch.problems
            except MeshError as error:
                problems = [error.message]
            if not problems:
                return
            tries += 1
            self._wait_for(*problems)
            await asyncio.sleep(min(PREPARE_PAUSE_S * 2**tries, RETRY_INTERVAL_S))

    async def _ensure_partitions(self, database: Database) -> None:
        """A database that slept for months has partitions before anybody writes. Everything else is for the worker's keeper."""
        if self.name != "rest-api" or self._settings.skip_migrations:
            return
        try:
            async with asyncio.timeout(PARTITIONS_LIMIT_S), partitions.sole_keeper(database) as is_ours:
                if is_ours:
                    await partitions.ensure(database, self._settings.partition_months_ahead)
        except (MeshError, TimeoutError) as error:
            log.warning("partitions are not made yet; a worker will", reason=str(error) or "it takes too long")

    def _compose(self, database: Database) -> ASGIApp:
        """Builds what this service consists of: what all have, then what is its own."""
        settings = self._settings
        bell = self._compose_bell(database)
        vault = Vault(envelope.master_keys(settings.master_keys))
        runner = WorkRunner(database, bell, vault)
        depths = QueueDepths(database, settings.queue_depths_interval_s)
        key_sets, event_loop = KeySets(settings), EventLoop(IDLE_TICK_S if self.name == "worker" else TICK_S)
        self._loops += [event_loop, depths, key_sets, QueueScout(runner)]
        self._health.add_details("pool", lambda: database.stats._asdict())
        self._health.add_details("tasks", lambda: depths.tasks)
        self._health.add_details("jobs", lambda: depths.jobs)
        self._health.add("partitions", self._check_partitions, PARTITIONS_INTERVAL_S)
        self._health.add_details("partitions", lambda: self._partitions)
        check_vault = functools.partial(vault.check, database)
        self._health.add("encryption", functools.partial(standing.patiently, database, check_vault))
        tokens = Tokens(database, vault, key_sets, settings)
        self._health.authenticator = authenticator = Authenticator(database, settings, tokens)
        recalling = self._recalling = Recalling(database, settings)
        self._health.add("vectors", recalling.check, VECTORS_INTERVAL_S)
        if self.name == "worker":
            return self._compose_worker(runner, bell, vault, recalling)
        operations.load_all()
        if settings.jwks_url is not None:
            self._health.add("jwks", key_sets.check_operators)
        corridor = self._corridor = Corridor(runner, settings, recalling.recall)
        event_loop.listen(corridor.admission.tick)
        self._health.add("admission", self._check_admission)
        self._health.add_details("calls", corridor.depths)
        return self._compose_edge(runner, bell, corridor, authenticator)

    def _compose_bell(self, database: Database) -> Bell:
        settings = self._settings
        carriers: list[Carrier] = [NotifyBell(database)]
        if settings.redis_url is not None:
            from devmesh.engine.redis_bell import RedisBell  # its library would take a tenth of everybody's start

            breaker = watched("redis", settings.breaker_failures_max, settings.breaker_open_s)
            carriers.insert(0, RedisBell(settings.redis_url, settings.redis_timeout_s, breaker))
        bell = Bell(carriers, settings.bell_coalesce_ms)
        self._loops += [*carriers, bell]
        return bell

    def _compose_worker(self, runner: WorkRunner, bell: Bell, vault: Vault, recalling: Recalling) -> ASGIApp:
        """What moves when nobody asks."""
        settings, database = self._settings, runner.database
        looks = Looks(database)
        assigner = Assigner(runner, looks, settings.assigner_interval_s)
        bell.listen(assigner.heard, Concern.TASKS)
        reaper = Reaper(runner, looks, settings.reaper_interval_s, settings.idempotency_ttl_s)
        if self._app is not None:
            from devmesh.engine.app_worker import AppWorker

            operations.load_all()
            self._app_worker = AppWorker(self._app, runner, settings, recalling.recall)
            self._health.add("app", self._app_worker.check)
        reencryption = Reencryption(
            database, vault, settings.reencryption_interval_s,
            data_key_days_max=settings.data_key_days_max, data_key_kept_s=settings.data_key_kept_s,
        )  # fmt: skip
        self._health.add_details("encryption", reencryption.details)
        keeper = PartitionKeeper(
            database, Policy.of(settings), settings.partition_cron, settings.partition_check_interval_s
        )
        self._loops += [
            assigner,
            reaper,
            *job_loops(runner, looks, settings),
            *recalling.loops(runner),
            Presence(runner, looks, settings.presence_interval_s),
            reencryption,
            keeper,
        ]
        return boundary.application([])

    def _compose_edge(
        self, runner: WorkRunner, bell: Bell, corridor: Corridor, authenticator: Authenticator
    ) -> ASGIApp:
        """What answers callers, by REST or by WebSocket, and tells them of events."""
        settings, database = self._settings, runner.database
        if settings.api_log != "off":
            api_log = ApiLog(database, "rest" if self.name == "rest-api" else "websocket", settings.api_log)
            corridor.answered = api_log.note
            self._loops.append(api_log)
        connections = Connections(database, settings.connections_per_tenant_max, settings.presence_interval_s)
        fanout = Fanout(
            database,
            interval_s=settings.fanout_poll_interval_s,
            page_events_max=settings.fanout_page_events_max,
            ring_bytes_max=settings.fanout_ring_bytes_max,
        )
        bell.listen(fanout.heard)
        self._loops += [LimitsKeeper(connections, corridor.rates, settings.presence_interval_s), fanout]
        if self.name == "rest-api":
            streams = self._streams = EventStreams(fanout, connections, settings)
            self._loops.append(KeyWatch(authenticator, [streams, corridor.waits], settings.key_check_interval_s))
            self._health.add_details(
                "event_streams", lambda: outbox.depths(stream.outbox for stream in streams.streams)
            )
            return boundary.application(rest.routes(corridor, authenticator, streams, settings))
        sessions = self._sessions = Sessions(runner, new_id(), settings)
        gateway = self._gateway = Gateway(Parts(corridor, authenticator, sessions, connections, fanout, settings))
        self._loops += [
            SessionKeeper(sessions, settings.presence_interval_s),
            KeyWatch(authenticator, [gateway, corridor.waits], settings.key_check_interval_s),
        ]
        self._health.add_details("connections", lambda: outbox.depths(each.outbox for each in gateway.connections))
        return gateway.application(boundary.application([]))

    # Health

    async def _check_admission(self) -> Component:
        assert self._corridor is not None
        return self._corridor.admission.component()

    async def _check_partitions(self) -> Component:
        database = self._database
        assert database is not None

        async def look() -> Component:
            self._partitions = await partitions.report(database, is_measured=False)
            return partitions.judge(self._partitions)

        return await standing.patiently(database, look)

    def _wait_for(self, *reasons: str) -> None:
        if list(reasons) != self._health.waiting_for and reasons:
            log.info("waiting", reasons=reasons)
        self._health.waiting_for = list(reasons)
