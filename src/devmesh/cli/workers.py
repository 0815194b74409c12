"""Workers from the shell: who they are, how they are, and what becomes of their jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from devmesh.cli.calling import AsJson, invoke
from devmesh.cli.console import say
from devmesh.cli.listing import Cursor, Limit, print_page, print_thing
from devmesh.cli.services import DataDir
from devmesh.core.health import WorkerStatus

WORKER_COLUMNS = (
    "id",
    "name",
    "status",
    "health_score",
    "queues",
    "current_load",
    "capacity",
    "heartbeat_at",
    "reason",
)
WORKER_FIELDS = (
    *WORKER_COLUMNS,
    "missed_beats",
    "failure_count",
    "last_failure_at",
    "heartbeat_interval_s",
    "stale_after_s",
)
LOG_COLUMNS = ("at", "kind", "health_score", "metrics")
ALERT_COLUMNS = ("raised_at", "worker_id", "kind", "severity", "message", "cleared_at")
ANOMALY_COLUMNS = ("metric", "value", "mean", "standard_deviation", "score", "severity")
PREDICTION_FIELDS = (
    "worker_id",
    "health_score",
    "probability",
    "slope",
    "time_to_failure_s",
    "recommendation",
    "samples",
)

WorkerId = Annotated[str, typer.Argument(help="The worker's id.", show_default=False)]
workers = typer.Typer(help="Look at workers and their health, and empty them.", no_args_is_help=True)


@workers.command("list")
def list_workers(
    status: Annotated[list[WorkerStatus] | None, typer.Option(help="Only these; repeat it.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List workers, newest first."""
    asked = {"status": status or None, "limit": limit, "cursor": cursor}
    print_page(invoke("worker.list", asked, data_dir), "workers", WORKER_COLUMNS, as_json)


@workers.command("evacuate")
def evacuate(
    worker_id: WorkerId,
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Give a worker no more jobs, and give those that it holds to others at once."""
    answer = invoke("worker.evacuate", {"worker_id": worker_id, "reason": reason}, data_dir)
    print_thing(answer, "worker", WORKER_COLUMNS, as_json)
    if not as_json:
        say(f"{answer['released']} jobs wait for others")


@workers.command("health")
def show_health(worker_id: WorkerId, limit: Limit = 20, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Show how well a worker is, and what was noted of it."""
    answer = invoke("worker.health", {"worker_id": worker_id, "limit": limit}, data_dir)
    print_thing(answer, "worker", WORKER_FIELDS, as_json)
    if not as_json and answer["log"]:
        print_page(answer, "log", LOG_COLUMNS, as_json)


@workers.command("predict")
def predict(worker_id: WorkerId, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Say how likely it is that a worker fails."""
    answer = invoke("worker.predict", {"worker_id": worker_id}, data_dir)
    print_thing(answer if as_json else {"prediction": answer}, "prediction", PREDICTION_FIELDS, as_json)


@workers.command("anomalies")
def anomalies(worker_id: WorkerId, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Name the metrics of a worker that are not as they were."""
    print_page(invoke("worker.anomalies", {"worker_id": worker_id}, data_dir), "anomalies", ANOMALY_COLUMNS, as_json)


@workers.command("optimal")
def optimal(
    min_health: Annotated[float, typer.Option(help="At least so healthy, 0-1.")] = 0.7,
    max_load: Annotated[float, typer.Option(help="At most so loaded; 1 is full.")] = 1.0,
    queue: Annotated[str | None, typer.Option("--queue", help="Only those that take this queue.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Find the healthiest workers with room."""
    asked = {"min_health": min_health, "max_load": max_load, "queue": queue}
    print_page(invoke("worker.optimal", asked, data_dir), "workers", WORKER_COLUMNS, as_json)


@workers.command("alerts")
def alerts(
    worker_id: Annotated[str | None, typer.Option("--worker", help="Only about this one, by id.")] = None,
    only_open: Annotated[bool, typer.Option("--open", help="Only those that are not over.")] = False,
    limit: Limit = 50,
    cursor: Cursor = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List alerts about workers, newest first."""
    asked = {"worker_id": worker_id, "only_open": only_open, "limit": limit, "cursor": cursor}
    print_page(invoke("worker.alerts", asked, data_dir), "alerts", ALERT_COLUMNS, as_json)
