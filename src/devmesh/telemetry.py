"""Every metric, declared in one place, and how lines are logged. Imports nothing of ours, so that everything may import it."""

from __future__ import annotations

import logging
import sys

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

REGISTRY = CollectorRegistry()
_LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

CALLS = Counter("devmesh_calls_total", "Operation calls that reached the database", ["operation"], registry=REGISTRY)
BATCH_CALLS = Histogram(
    "devmesh_batch_calls", "Calls that were written in one batch", ["operation"], registry=REGISTRY,
    buckets=(1, 2, 5, 10, 25, 50, 100, 250, 500),
)  # fmt: skip
BATCH_SECONDS = Histogram(
    "devmesh_batch_seconds", "Time from the begin of a batch to its commit", ["operation"], registry=REGISTRY,
    buckets=_LATENCY_BUCKETS_S,
)  # fmt: skip
BATCHES_RUN_APART = Counter(
    "devmesh_batches_run_apart_total", "Batches that one member broke, so that its members ran alone", registry=REGISTRY
)
ERRORS = Counter("devmesh_errors_total", "Errors answered to callers", ["kind"], registry=REGISTRY)
REQUESTS_REFUSED = Counter(
    "devmesh_requests_refused_total", "Requests that a limit or an overload kept out", ["cause"], registry=REGISTRY
)
DENIALS_UNWRITTEN = Counter(
    "devmesh_denials_unwritten_total",
    "Denied calls of keys that had so many that the audit log has no more",
    registry=REGISTRY,
)
REQUESTS_ADMITTED = Counter("devmesh_requests_admitted_total", "Requests that were let in", registry=REGISTRY)
ADMISSION_LIMIT = Gauge(
    "devmesh_admission_limit",
    "New requests that may be in flight at once; +Inf while all are let in",
    registry=REGISTRY,
)
ADMISSION_DELAY_SECONDS = Gauge(
    "devmesh_admission_delay_seconds",
    "How long requests took of late, with their wait for this process",
    registry=REGISTRY,
)
RATE_DRAWS = Counter(
    "devmesh_rate_draws_total",
    "Shares of token buckets drawn from the database, each for many requests",
    registry=REGISTRY,
)
CONNECTIONS = Gauge("devmesh_connections", "Open WebSocket connections of this process", registry=REGISTRY)
EVENT_STREAMS = Gauge("devmesh_event_streams", "Open streams of server-sent events of this process", registry=REGISTRY)
CONNECTIONS_CLOSED = Counter(
    "devmesh_connections_closed_total", "WebSocket connections that the server closed", ["code"], registry=REGISTRY
)
MESSAGES_RECEIVED = Counter("devmesh_messages_received_total", "WebSocket messages received", registry=REGISTRY)
EVENTS_READ = Counter("devmesh_events_read_total", "Events that the fan-out read from the log", registry=REGISTRY)
EVENTS_DELIVERED = Counter(
    "devmesh_events_delivered_total", "Events put into subscribers' outboxes, one each", registry=REGISTRY
)
CONSUMERS_GIVEN_UP = Counter(
    "devmesh_consumers_given_up_total",
    "Subscribers too slow for what waits for them, told to resume",
    registry=REGISTRY,
)
FANOUT_LAG_SECONDS = Histogram(
    "devmesh_fanout_lag_seconds", "From an event's time to its hand-over to the outboxes", registry=REGISTRY,
    buckets=_LATENCY_BUCKETS_S,
)  # fmt: skip
TASKS_ASSIGNED = Counter("devmesh_tasks_assigned_total", "Tasks that the assigner gave to agents", registry=REGISTRY)
TASKS_REAPED = Counter(
    "devmesh_tasks_reaped_total", "Tasks taken back or ended by the reaper", ["event"], registry=REGISTRY
)
JOBS_REAPED = Counter(
    "devmesh_jobs_reaped_total", "Attempts at jobs that the reaper has ended", ["outcome"], registry=REGISTRY
)
WORKERS = Gauge("devmesh_workers", "Workers by status, in all tenants", ["state"], registry=REGISTRY)
SCHEDULE_TIMES = Counter(
    "devmesh_schedule_times_total",
    "Times of schedules that have come, fired and missed",
    ["outcome"],
    registry=REGISTRY,
)
SCHEDULE_LATENESS_SECONDS = Histogram(
    "devmesh_schedule_lateness_seconds", "From the time of a schedule to its job", registry=REGISTRY
)
LOOP_FAILURES = Counter(
    "devmesh_loop_failures_total", "Passes of engine loops that failed", ["loop"], registry=REGISTRY
)
EVENT_LOOP_LAG_SECONDS = Histogram(
    "devmesh_event_loop_lag_seconds", "How late this process came to what was due, ten times a second", registry=REGISTRY,
    buckets=_LATENCY_BUCKETS_S,
)  # fmt: skip
TASKS = Gauge(
    "devmesh_tasks", "Tasks that wait or are held, in all tenants, up to 100,000", ["state"], registry=REGISTRY
)
JOBS = Gauge(
    "devmesh_jobs",
    "Jobs that are not over, and dead letters, in all tenants, up to 100,000",
    ["state"],
    registry=REGISTRY,
)
BELL_IS_CONNECTED = Gauge(
    "devmesh_bell_is_connected", "1 while the process hears other processes' bells", registry=REGISTRY
)
SECRETS_NOT_OPENED = Counter(
    "devmesh_secrets_not_opened_total",
    "Stored secrets that could not be opened, or sealed, when needed",
    registry=REGISTRY,
)
SECRETS_REENCRYPTED = Counter(
    "devmesh_secrets_reencrypted_total",
    "Stored secrets that were sealed anew under the current data key",
    registry=REGISTRY,
)
SECRETS_TO_REENCRYPT = Gauge(
    "devmesh_secrets_to_reencrypt", "Stored secrets that are still sealed under an older data key", registry=REGISTRY
)
DATA_KEYS_REWRAPPED = Counter(
    "devmesh_data_keys_rewrapped_total",
    "Data keys that were wrapped anew under the current master key",
    registry=REGISTRY,
)
PARTITION_MONTHS_AHEAD = Gauge(
    "devmesh_partition_months_ahead",
    "Months after this one that a table has partitions for",
    ["table"],
    registry=REGISTRY,
)
PARTITION_ROWS_IN_DEFAULT = Gauge(
    "devmesh_partition_rows_in_default",
    "Rows outside of all months, counted up to 10,000; they wait to be drained",
    ["table"],
    registry=REGISTRY,
)
PARTITION_BYTES = Gauge(
    "devmesh_partition_bytes", "What a partitioned table takes on disk, with its indexes", ["table"], registry=REGISTRY
)
PARTITIONS_MADE = Counter("devmesh_partitions_made_total", "Partitions that were made", ["table"], registry=REGISTRY)
PARTITIONS_DROPPED = Counter(
    "devmesh_partitions_dropped_total", "Partitions that retention dropped", ["table"], registry=REGISTRY
)
PARTITION_ROWS_DRAINED = Counter(
    "devmesh_partition_rows_drained_total",
    "Rows that were moved from a default partition to months",
    ["table"],
    registry=REGISTRY,
)
PARTITION_CHANGES_PUT_OFF = Counter(
    "devmesh_partition_changes_put_off_total",
    "Changes of partitions that gave up waiting for a lock, to be tried again",
    ["table"],
    registry=REGISTRY,
)
PARTITION_CHANGE_SECONDS = Histogram(
    "devmesh_partition_change_seconds", "Time for one change of a table's partitions, waiting for its locks included",
    registry=REGISTRY, buckets=_LATENCY_BUCKETS_S,
)  # fmt: skip
PARTITIONS_KEPT_AT = Gauge(
    "devmesh_partitions_kept_at_seconds", "When this process last kept all partitions, since 1970", registry=REGISTRY
)
BREAKER_STATE = Gauge(
    "devmesh_breaker_state",
    "Whether a dependency is used: 0 closed, it is; 1 half open, it is being tried; 2 open, it is left alone",
    ["dependency"],
    registry=REGISTRY,
)
RINGS_SENT = Counter(
    "devmesh_rings_sent_total", "Rings sent to other processes, by what carried them", ["carrier"], registry=REGISTRY
)
KEY_SET_FETCHES = Counter(
    "devmesh_key_set_fetches_total", "Fetches of token issuers' public keys", ["outcome"], registry=REGISTRY
)
API_LOG_DROPPED = Counter(
    "devmesh_api_log_dropped_total", "Answered calls that are missing in the log of them", registry=REGISTRY
)
IS_READY = Gauge("devmesh_is_ready", "1 while the service is ready", registry=REGISTRY)
AUTHENTICATION_FAILURES = Counter("devmesh_authentication_failures_total", "Refused credentials", registry=REGISTRY)


def batch_done(operation: str, calls: int, seconds: float) -> None:
    CALLS.labels(operation).inc(calls)
    BATCH_CALLS.labels(operation).observe(calls)
    BATCH_SECONDS.labels(operation).observe(seconds)


def exposition() -> bytes:
    """The text that Prometheus reads."""
    return generate_latest(REGISTRY)


def configure_logs(service: str, level: str) -> None:
    """One JSON object a line on standard error; for people at a terminal, text. The libraries' own lines go the same way."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        lambda _, __, event: {"service": service, **event},
    ]
    is_terminal = sys.stderr.isatty()
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer() if is_terminal else structlog.processors.JSONRenderer(default=str)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.getLogger("asyncpg").setLevel(logging.ERROR)  # what it warns of, our own lines say as well
    for chatty in ("uvicorn", "httpx", "httpcore", "websockets"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
