"""What a snapshot is of, and what becomes of what has changed since. Pure."""

from __future__ import annotations

import enum


class SnapshotKind(enum.StrEnum):
    FULL = "FULL"
    INCREMENTAL = "INCREMENTAL"  # what differs from another
    AUTO = "AUTO"  # a full one, taken at an interval


class OnConflict(enum.StrEnum):
    """What becomes of things that are otherwise now than a snapshot has them."""

    PRESERVE = "preserve"
    OVERWRITE = "overwrite"
    FAIL = "fail"


# Where the jobs of a snapshot were, and in which state that is.
PLACES = {
    "jobs_ready": "PENDING",
    "jobs_limited": "PENDING",
    "jobs_blocked": "PENDING",
    "jobs_leased": "PROCESSING",
    "dead_letter_queue": "FAILED",
}
CONFLICTS = {
    "jobs": "JOB_STATE_CONFLICT",
    "workers": "WORKER_STATUS_CONFLICT",
    "queues": "QUEUE_CONFLICT",
    "schedules": "SCHEDULE_CONFLICT",
}
