"""An agent as every wire shows it. Its status is derived from sessions, heartbeats, load and work, never set by wish."""

from __future__ import annotations

import datetime
import enum
import uuid
from typing import Annotated

import msgspec
from msgspec import Meta, Raw

CONCURRENCY_MAX = 10_000
PERFORMANCE_ATTEMPTS = 50  # how many of an agent's last attempts its figures are of

HealthScore = Annotated[float, Meta(ge=0, le=1)]


class Kind(enum.StrEnum):
    LLM = "llm"
    TOOL = "tool"
    HUMAN = "human"
    WORKER = "worker"
    CUSTOM = "custom"


class Status(enum.StrEnum):
    OFFLINE = "offline"
    AVAILABLE = "available"
    BUSY = "busy"
    DEGRADED = "degraded"
    DRAINING = "draining"
    SUSPENDED = "suspended"


class Agent(msgspec.Struct):
    id: uuid.UUID
    name: str
    kind: Kind
    description: str
    capabilities: list[str]
    concurrency: int
    metadata: Raw
    card: Raw | None
    status: Status
    active_tasks: int
    sessions: int
    load: float | None
    metrics: Raw | None
    version: int
    created_at: datetime.datetime
    updated_at: datetime.datetime
    last_seen_at: datetime.datetime | None


class Health(msgspec.Struct):
    """How an agent has done of late: the last attempts that it ended, and how lately it was heard of."""

    agent_id: uuid.UUID
    status: Status
    score: float  # 0-1
    attempts: int  # how many the figures are of
    success_rate: float | None
    mean_duration_s: float | None
    active_tasks: int
    concurrency: int
    load: float | None
    last_seen_at: datetime.datetime | None


def health_score(status: Status, success_rate: float | None, load: float | None) -> float:
    """1.0 is an agent that is there, succeeds and has room; one that is offline scores 0."""
    if status in (Status.OFFLINE, Status.SUSPENDED):
        return 0.0
    score = 1.0 if success_rate is None else success_rate
    return round(score * (1.0 - 0.5 * min(load or 0.0, 1.0)), 4)
