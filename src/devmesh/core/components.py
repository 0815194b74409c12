"""One thing that a service stands on, and how it is: what health is made of, whoever looks and whoever tells."""

from __future__ import annotations

from typing import Literal

import msgspec

State = Literal["healthy", "degraded", "unhealthy"]


class Component(msgspec.Struct):
    """Degraded: the service does its work, but less well. Unhealthy: it cannot, and is not ready."""

    status: State
    message: str = ""
    latency_ms: float | None = None  # of whoever answered for it; the one who asks measures it otherwise


def healthy(message: str = "") -> Component:
    return Component("healthy", message)


def degraded(message: str) -> Component:
    return Component("degraded", message)


def unhealthy(message: str) -> Component:
    return Component("unhealthy", message)
