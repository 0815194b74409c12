"""Every setting: what it is called, what it means, in which unit, and its default. The one file of settings.

Values are read once (environment.py) and handed down from the composition root. Must not know what the settings are used for.
"""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from cronsim import CronSim, CronSimError

from devmesh.core.schedules import GRACE_S
from devmesh.environment import Group, declarations, setting, show

POSTGRES_ADDRESS = (r"postgres(ql)?://\S+", "an address such as postgresql://user:password@host:5432/database")
SCHEMAS = (r"[a-z_][a-z0-9_]*(\s*,\s*[a-z_][a-z0-9_]*)*", "names of schemas with commas between them, as in mcp,public")
HOST = (r"\S+", "a host name or an address without spaces")
LOG_LEVEL = ("debug|info|warning|error", "debug, info, warning or error")
HTTP_ADDRESS = (r"https?://\S+", "an address such as http://127.0.0.1:8081")
WS_ADDRESS = (r"wss?://\S+", "an address such as ws://127.0.0.1:8080/ws")
NETWORKS = (
    r"([0-9a-fA-F.:/]+(\s*,\s*(?=\S)|$))*",
    "addresses and networks, separated by commas, as in 10.0.0.7,10.1.0.0/16",
)
REDIS_ADDRESS = (r"(rediss?|unix)://\S+", "an address such as redis://user:password@host:6379/0")
PLAIN_HTTP_ELSEWHERE = r"http://(?!(localhost|127(\.\d+){3}|\[::1\])([:/?]|$))"
TOKEN_SECRET = (r"[\s\S]{32,1024}", "32 to 1,024 characters")
ENVIRONMENT = ("development|production", "development or production")
# Either alphabet of base64, padded or not; the last character carries four bits. No three bytes over and over: that is no
# random key.
MASTER_KEY = (
    r"(?!(.{4})\1{9})([A-Za-z0-9+/]{42}|[A-Za-z0-9_-]{42})[AEIMQUYcgkosw048]=?",
    "32 random bytes in base64, as `devmesh keys generate` prints them",
)
MONTHS_BY_TABLE = (
    r"((events|audit_log|api_logs|jobs|job_executions)=[1-9][0-9]{0,2}(,(?=\S)|$))*",
    "tables with months, as in audit_log=24,events=6; the tables are events, audit_log, api_logs, jobs and job_executions",
)
EMBEDDER = ("none|minilm", "none or minilm")
API_LOG = ("off|errors|all", "off, errors or all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Group):
    """The settings of a service. Without arguments, the defaults: what tests start from."""

    database_dsn: str | None = setting(
        None,
        "Where PostgreSQL is. Without it, `devmesh up` runs its own.",
        pattern=POSTGRES_ADDRESS,
        name="DATABASE_DSN",
        is_secret=True,
    )
    database_search_path: str = setting(
        "mcp,public", "Schemas that names are looked up in.", pattern=SCHEMAS, name="DATABASE_SEARCH_PATH"
    )
    skip_migrations: bool = setting(
        False, "Do not migrate at start, because somebody else does.", name="SKIP_MIGRATIONS"
    )
    migrations_fail_fast: bool = setting(
        False,
        "End when the database cannot be had or a migration fails, instead of staying up and not ready.",
        name="MIGRATIONS_FAIL_FAST",
    )

    environment: str = setting(
        "development", "In production no service starts without a master key.", pattern=ENVIRONMENT
    )
    encryption_master_key: str | None = setting(
        None,
        "The master key, which new data keys are wrapped under.",
        pattern=MASTER_KEY,
        name="ENCRYPTION_MASTER_KEY",
        is_secret=True,
    )
    encryption_key: str | None = setting(
        None,
        "Stands in for ENCRYPTION_MASTER_KEY; beside it, an older master key that is still read.",
        pattern=MASTER_KEY,
        is_secret=True,
    )
    encryption_key_older: str | None = setting(
        None,
        "Stands in for the two above; beside one of them, an older master key that is still read.",
        pattern=MASTER_KEY,
        name="ENCRYPTION_KEY",
        is_secret=True,
    )
    data_key_days_max: float = setting(
        90.0, "Age of a data key at which another takes its place.", "days", at_least=0.001, at_most=3650
    )
    data_key_kept_s: float = setting(
        900.0, "How long a data key is kept that nothing is sealed under any more.", "s", at_least=0
    )
    reencryption_interval_s: float = setting(
        10.0, "Between looks for what is to be encrypted anew.", "s", at_least=0.01, at_most=3600
    )

    host: str = setting("127.0.0.1", "Where every service listens.", pattern=HOST)
    ws_port: int = setting(8080, "Port of the agents' WebSocket; 0 takes a free one.", at_least=0, at_most=65535)
    rest_port: int = setting(8081, "Port of the REST service; 0 takes a free one.", at_least=0, at_most=65535)
    worker_port: int = setting(8088, "Port of the worker's health; 0 takes a free one.", at_least=0, at_most=65535)
    log_level: str = setting("info", "The least urgent lines that are logged.", pattern=LOG_LEVEL)

    database_pool_size_min: int = setting(1, "Connections kept open by a process.", "connections", at_most=1000)
    database_pool_size_max: int = setting(8, "Connections opened by a process.", "connections", at_most=1000)
    transaction_deadline_s: float = setting(10.0, "Longest time for one transaction.", "s", at_least=0.1, at_most=600)

    message_bytes_max: int = setting(1 << 20, "Longest message taken.", "bytes", at_least=1024, at_most=1 << 28)
    request_batch_max: int = setting(100, "Requests in one JSON-RPC batch.", "requests", at_most=10_000)
    payload_depth_max: int = setting(64, "Nesting of a payload.", "levels", at_most=500)
    subscriptions_per_connection_max: int = setting(1000, "Topics of a connection.", "topics", at_most=100_000)
    outbox_bytes_max: int = setting(
        1 << 20, "What may wait for a slow consumer before it is disconnected.", "bytes", at_least=1024
    )
    requests_in_flight_max: int = setting(256, "Requests of a connection served at once.", "requests", at_most=100_000)
    connections_per_tenant_max: int = setting(
        20_000, "WebSockets and event streams of a tenant on all nodes.", "connections"
    )
    rate_per_key_per_s: float = setting(
        20_000.0, "Requests that a key may make, unless it has a limit of its own; 0 for any.", "requests/s", at_least=0
    )
    rate_per_tenant_per_s: float = setting(
        50_000.0,
        "Requests that a tenant may make, unless it has a limit of its own; 0 for any.",
        "requests/s",
        at_least=0,
    )
    rate_burst_s: float = setting(
        1.0, "Seconds' worth of requests that may be saved up and made at once.", "s", at_least=0.01, at_most=60
    )
    admission_target_ms: float = setting(
        20.0, "How long requests may take while more is asked for than can be done.", "ms", at_most=10_000
    )
    request_head_timeout_s: float = setting(
        10.0, "For the head of an HTTP request, and for the first after connecting.", "s", at_least=0.1, at_most=600
    )
    request_body_timeout_s: float = setting(60.0, "For its body.", "s", at_least=0.1, at_most=3600)
    initialize_timeout_s: float = setting(10.0, "Time to send `initialize`.", "s", at_least=0.1, at_most=600)
    ping_interval_s: float = setting(25.0, "Between pings; two missed end a connection.", "s", at_least=0.1)

    gather_batch_max: int = setting(128, "Calls gathered into one transaction.", "calls", at_most=10_000)
    gather_in_flight_max: int = setting(4, "Transactions of one operation at once.", "transactions", at_most=100)
    gather_queue_max: int = setting(20_000, "Calls of one operation that may wait.", "calls")

    fanout_poll_interval_s: float = setting(0.5, "Looking for events without a ring.", "s", at_least=0.01, at_most=60)
    fanout_ring_bytes_max: int = setting(
        64 << 20, "Latest events a process keeps in memory, so that a wave of reconnects need not read them.", "bytes"
    )
    fanout_page_events_max: int = setting(1000, "Events read in one statement.", "events", at_most=10_000)
    bell_coalesce_ms: float = setting(5.0, "Rings within this time become one.", "ms", at_least=0, at_most=1000)

    assigner_interval_s: float = setting(1.0, "Between rounds of assignment without a ring.", "s", at_least=0.01)
    worker_health_days_kept: int = setting(
        7, "For how long it is kept what workers said of their health, and workers that have gone.", "days", at_most=366
    )
    scheduler_interval_s: float = setting(
        1.0, "Between looks for schedules and snapshots that are due.", "s", at_least=0.01, at_most=60
    )
    schedule_grace_s: float = setting(
        GRACE_S, "How late a schedule may fire before its time counts as missed.", "s", at_least=0
    )
    promoter_interval_s: float = setting(
        5.0, "Between looks for jobs that have waited for long.", "s", at_least=0.01, at_most=3600
    )
    promote_low_after_s: float = setting(
        60.0, "After which a waiting job of priority 1 has 2; 0 for never.", "s", at_least=0
    )
    promote_medium_after_s: float = setting(
        120.0, "After which a waiting job of priority 2 or 3 has 4; 0 for never.", "s", at_least=0
    )
    reaper_interval_s: float = setting(1.0, "Between looks for leases that ended.", "s", at_least=0.01)
    presence_interval_s: float = setting(
        2.0, "Between renewals of connected agents, which last 30 s.", "s", at_least=0.01, at_most=10
    )

    queue_depths_interval_s: float = setting(
        10.0, "Between counts of the tasks that wait and are held, for health and metrics.", "s", at_least=0.1
    )
    loop_pass_s_max: float = setting(
        30.0, "A background pass that takes longer is stuck, and its service not ready.", "s", at_least=0.1
    )

    schema_check_interval_s: float = setting(
        5.0, "Between looks at the schema, for what somebody has changed.", "s", at_least=0.05, at_most=3600
    )
    key_check_interval_s: float = setting(
        2.0, "Between looks for revoked keys of open connections.", "s", at_least=0.1, at_most=5
    )
    auth_failures_per_minute_max: int = setting(5, "Failed attempts before an address is locked out.", "attempts")
    auth_lockout_s: float = setting(900.0, "How long an address is locked out.", "s", at_least=0)

    trusted_proxies: str = setting(
        "",
        "Proxies whose X-Forwarded-For says who called, as in 10.0.0.7,10.1.0.0/16; without any, the peer did.",
        pattern=NETWORKS,
    )
    jwt_secret: str | None = setting(
        None, "What the operator's own tokens are signed with, by HS256.", pattern=TOKEN_SECRET, is_secret=True
    )
    jwks_url: str | None = setting(
        None, "Where the public keys of the operator's own tokens are (JWKS).", pattern=HTTP_ADDRESS
    )
    jwt_issuer: str | None = setting(None, "The claim `iss` of the operator's own tokens; without it, any.")
    jwt_audience: str | None = setting(
        None, "What the claim `aud` of the operator's own tokens holds; without it, any."
    )
    jwt_life_s_max: float = setting(86_400.0, "Longest life of a token.", "s")
    jwt_leeway_s: float = setting(30.0, "How far ahead of ours an issuer's clock may be.", "s", at_least=0, at_most=600)
    jwks_refresh_interval_s: float = setting(300.0, "Between fetches of an issuer's public keys.", "s")
    jwks_retry_s: float = setting(
        5.0, "Least time between fetches of one issuer's public keys, whatever tokens name.", "s", at_least=0.1
    )
    jwks_timeout_s: float = setting(5.0, "For one fetch of public keys.", "s", at_least=0.1, at_most=60)
    jwks_bytes_max: int = setting(1 << 18, "Longest set of public keys taken.", "bytes", at_least=1024)
    jwks_private_addresses: bool = setting(
        False, "In production too, tenants' issuers may have their public keys at private addresses."
    )

    redis_url: str | None = setting(
        None,
        "A Redis that carries the bell between processes, for all of them or none; without it, PostgreSQL does.",
        pattern=REDIS_ADDRESS,
        name="REDIS_URL",
        is_secret=True,
    )
    redis_timeout_s: float = setting(0.5, "For Redis to answer.", "s", at_least=0.01, at_most=10)

    embedder: str = setting(
        "none", "What makes vectors of the texts of execution contexts; minilm is an extra.", pattern=EMBEDDER
    )
    embedder_interval_s: float = setting(
        1.0, "Between looks for texts that have no vector yet.", "s", at_least=0.01, at_most=3600
    )
    qdrant_url: str | None = setting(
        None,
        "A Qdrant that compares the vectors of execution contexts; without it, PostgreSQL does.",
        pattern=HTTP_ADDRESS,
        name="QDRANT_URL",
        is_secret=True,
    )
    qdrant_api_key: str | None = setting(
        None, "The key for it.", pattern=(r"\S+", "a key"), name="QDRANT_API_KEY", is_secret=True
    )
    qdrant_timeout_s: float = setting(5.0, "For Qdrant to answer.", "s", at_least=0.1, at_most=60)
    qdrant_interval_s: float = setting(
        1.0, "Between looks for vectors that Qdrant does not have yet.", "s", at_least=0.01, at_most=3600
    )
    context_days_kept: float = setting(
        365.0, "For how long execution contexts are kept; 0 for ever.", "days", at_least=0, at_most=36_500
    )
    context_keeper_interval_s: float = setting(
        60.0, "Between looks for execution contexts that are older.", "s", at_least=0.01, at_most=3600
    )

    breaker_failures_max: int = setting(
        5, "Failures in a row after which a dependency outside of PostgreSQL is left alone.", "failures"
    )
    breaker_open_s: float = setting(10.0, "How long it is left alone before the next try.", "s", at_least=0.1)

    shutdown_grace_s: float = setting(10.0, "For what is in flight when stopping.", "s", at_least=0, at_most=600)
    idempotency_ttl_s: float = setting(86_400.0, "How long an answer is kept for its key.", "s", at_least=60)

    partition_months_ahead: int = setting(
        12, "Months for which partitions are made ahead of time.", "months", at_least=3, at_most=120
    )
    partition_months_kept: int = setting(
        6, "Whole months before this one that are kept; what is older is dropped.", "months", at_most=999
    )
    partition_months_kept_by_table: str = setting(
        "", "The same for single tables, as in audit_log=24,events=6.", "months", pattern=MONTHS_BY_TABLE
    )
    partition_cron: str = setting("0 2 1,15 * *", "When partitions are made and dropped, as a cron expression in UTC.")
    partition_check_interval_s: float = setting(
        60.0, "Between looks for partitions that are missing.", "s", at_least=0.1, at_most=3600
    )

    worker_app: str | None = setting(None, "Whose jobs a worker runs, as module:mesh; --app does the same.")
    worker_tenant: str = setting("default", "The tenant whose jobs these are.")

    api_log: str = setting("errors", "Which answered calls are logged in the database.", pattern=API_LOG)

    def port_of(self, service: str) -> int:
        return {"rest-api": self.rest_port, "mcp-server": self.ws_port, "worker": self.worker_port}[service]

    @property
    def months_kept_by_table(self) -> dict[str, int]:
        pairs = [pair.split("=") for pair in self.partition_months_kept_by_table.split(",") if pair]
        return {table: int(months) for table, months in pairs}

    def days_kept(self, table: str) -> int:
        """For how many days at the most rows of a table by months are kept."""
        return 31 * (self.months_kept_by_table.get(table, self.partition_months_kept) + 2)

    @property
    def master_keys(self) -> list[str]:
        """In base64: first the one under which data keys are wrapped, then those that are still read."""
        given = (self.encryption_master_key, self.encryption_key, self.encryption_key_older)
        return [key for key in given if key is not None]

    def contradictions(self) -> list[str]:
        ordered = [("database_pool_size_min", "database_pool_size_max"), ("gather_batch_max", "gather_queue_max")]
        names = {field.name: name for field, name, _ in declarations(type(self))}
        found = [
            f"{names[lesser]} ({show(getattr(self, lesser))}) must not be greater than"
            f" {names[greater]} ({show(getattr(self, greater))})"
            for lesser, greater in ordered
            if getattr(self, lesser) > getattr(self, greater)
        ]
        if self.environment == "production" and self.jwks_url and re.match(PLAIN_HTTP_ELSEWHERE, self.jwks_url):
            found.append(
                f"{names['jwks_url']} is {self.jwks_url!r}, where anybody on the way could put keys of their own: in"
                " production it has to begin with https"
            )
        found += [f"{names[name]} {problem}" for name, problem in self._unusable()]
        try:
            CronSim(self.partition_cron, datetime.datetime.now(datetime.UTC))
        except CronSimError as error:
            found.append(f"{names['partition_cron']} is {self.partition_cron!r}, which is no cron expression: {error}")
        return found

    def _unusable(self) -> Iterator[tuple[str, str]]:
        """What its pattern lets pass and nothing can be done with. None of them is quoted: they may hold secrets."""
        for name in ("redis_url", "jwks_url"):
            try:
                _ = urlsplit(getattr(self, name) or "").port
            except ValueError:
                yield name, "cannot be understood; write special characters in a password as %40 and so on"
        for network in filter(None, self.trusted_proxies.split(",")):
            try:
                ipaddress.ip_network(network.strip())
            except ValueError:
                yield (
                    "trusted_proxies",
                    f"names {network.strip()!r}, which is no address and no network such as 10.1.0.0/16",
                )
        if self.jwt_secret is not None:
            from devmesh.core.signing_keys import KeysUnusable, secret_key  # which takes long to load

            try:
                secret_key(self.jwt_secret.encode())
            except KeysUnusable as error:
                yield "jwt_secret", f"is no secret for HS256: {error}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientSettings(Group):
    """How tools and clients find a server: set by people, or written to `<data-dir>/dev.env` by `devmesh up`."""

    url: str = setting("http://127.0.0.1:8081", "Where REST is served.", pattern=HTTP_ADDRESS)
    ws_url: str = setting("ws://127.0.0.1:8080/ws", "Where agents connect.", pattern=WS_ADDRESS)
    api_key: str | None = setting(None, "The key to act with.", pattern=(r"\S+", "a key"), is_secret=True)
    tenant: str = setting("default", "The tenant to act in.", pattern=(r"\S+", "a name without spaces"))
    data_dir: str = setting(".devmesh", "Where `devmesh up` keeps its state.")
