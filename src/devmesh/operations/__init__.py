"""The verbs, one file a noun. `load_all` has every one of them declared in the registry."""

from __future__ import annotations

import importlib

NOUNS = (
    "administration", "agents", "api_logs", "events", "issuers", "task_creating", "task_views", "task_verbs", "task_handing",
    "task_explaining", "workers", "worker_health", "job_enqueuing", "job_claiming", "job_verbs", "job_views", "job_explaining",
    "job_depending", "job_retrying", "queues", "dead_letters", "schedules", "snapshots", "snapshot_policies",
    "snapshot_restoring", "contexts", "context_searching",
)  # fmt: skip


def load_all() -> None:
    for noun in NOUNS:
        importlib.import_module(f"devmesh.operations.{noun}")
