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
FANOUT_LAG_SECONDS = Histogram(
    "devmesh_fanout_lag_seconds", "From an event's time to its hand-over to the outboxes", registry=REGISTRY,
    buckets=_LATENCY_BUCKETS_S,
)  # fmt: skip
TASKS_ASSIGNED = Counter("devmesh_tasks_assigned_total", "Tasks that the assigner gave to agents", registry=REGISTRY)
TASKS_REAPED = Counter(
    "devmesh_tasks_reaped_total", "Tasks taken back or ended by the reaper", ["event"], registry=REGISTRY
)
LOOP_FAILURES = Counter(
    "devmesh_loop_failures_total", "Passes of engine loops that failed", ["loop"], registry=REGISTRY
)
BELL_IS_CONNECTED = Gauge(
    "devmesh_bell_is_connected", "1 while the process hears other processes' bells", registry=REGISTRY
)
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
    for chatty in ("uvicorn", "httpx", "httpcore", "websockets"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
