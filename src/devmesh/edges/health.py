"""How a service is, for whoever watches it: alive, ready, and everything. Never blocking and never lying.

Each component is asked within a time limit of its own, and its answer is kept for a moment, so that neither a slow component
nor an eager watcher slows the service. Must not know what the components are.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from devmesh import __version__, telemetry
from devmesh.core.access import Scope, require
from devmesh.core.errors import MeshError
from devmesh.edges.credentials import presented_secret
from devmesh.edges.problem import problem_response
from devmesh.operations.authentication import Authenticator

COMPONENT_LIMIT_S = 1.0
ANSWER_AGE_S_MAX = 1.0


class Component(msgspec.Struct):
    """One thing that the service stands on."""

    status: str  # healthy | degraded | unhealthy
    message: str = ""
    latency_ms: float | None = None


class Migrations(msgspec.Struct):
    """How far the schema is."""

    in_progress: bool
    completed: bool
    ready: bool
    version: int | None
    completed_at: datetime.datetime | None
    duration_ms: float | None
    problems: list[str]


Check = Callable[[], Awaitable[Component]]


class Health:
    """What a service says of itself. `waiting_for` is what its start still waits for; nothing, once it has started."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.waiting_for: list[str] = ["the start"]
        self.is_stopping = False
        self.is_migrating = False
        self.authenticator: Authenticator | None = None
        self.migrations: Callable[[], Awaitable[Migrations]] | None = None
        self.details: Callable[[], Mapping[str, Any]] = dict
        self._checks: dict[str, Check] = {}
        self._answers: dict[str, tuple[float, Any]] = {}

    def add(self, name: str, check: Check) -> None:
        self._checks[name] = check

    async def components(self) -> dict[str, Component]:
        answers = await asyncio.gather(*(self._component(name, check) for name, check in self._checks.items()))
        return dict(zip(self._checks, answers, strict=True))

    async def reasons(self) -> list[str]:
        """Why the service is not ready: nothing, when it is."""
        if self.is_stopping:
            return ["the service is stopping"]
        if self.waiting_for:
            return list(self.waiting_for)
        found = await self.components()
        return [f"{name}: {component.message}" for name, component in found.items() if component.status == "unhealthy"]

    async def whole(self, with_details: bool) -> dict[str, Any]:
        reasons, components = await self.reasons(), await self.components()
        is_degraded = any(component.status != "healthy" for component in components.values())
        answer = {
            "status": "unhealthy" if reasons else "degraded" if is_degraded else "healthy",
            "ready": not reasons,
            "reasons": reasons,
            "service": self.service,
            "version": __version__,
            "time": datetime.datetime.now(datetime.UTC),
            "migrations": await self.migration_facts(),
            "components": components,
        }
        return {**answer, "details": self.details()} if with_details else answer

    async def migration_facts(self) -> Migrations:
        unknown = Migrations(self.is_migrating, False, False, None, None, None, ["not known yet"])
        if self.migrations is None:
            return unknown
        facts = await self._remembered(
            "migrations", self.migrations, lambda reason: msgspec.structs.replace(unknown, problems=[reason])
        )
        return msgspec.structs.replace(facts, in_progress=self.is_migrating)

    async def _component(self, name: str, check: Check) -> Component:
        return await self._remembered(f"component {name}", check, lambda reason: Component("unhealthy", reason))

    async def _remembered(self, name: str, ask: Callable[[], Awaitable[Any]], failed: Callable[[str], Any]) -> Any:
        """The answer to a question, asked again only when the last one has aged."""
        began = time.monotonic()
        age_and_answer = self._answers.get(name)
        if age_and_answer is not None and began - age_and_answer[0] < ANSWER_AGE_S_MAX:
            return age_and_answer[1]
        try:
            async with asyncio.timeout(COMPONENT_LIMIT_S):
                answer = await ask()
        except TimeoutError:
            answer = failed(f"no answer within {COMPONENT_LIMIT_S:g} s")
        except MeshError as error:
            answer = failed(error.message)
        if isinstance(answer, Component) and answer.latency_ms is None:
            answer.latency_ms = round((time.monotonic() - began) * 1000, 3)
        self._answers[name] = (time.monotonic(), answer)
        return answer


def routes(health: Health) -> list[BaseRoute]:
    async def alive(_: Request) -> Response:
        return _json({"status": "alive"})

    async def ready(_: Request) -> Response:
        reasons = await health.reasons()
        return _json({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def whole(request: Request) -> Response:
        answer = await health.whole(request.query_params.get("details") == "true")
        return _json(answer, 200 if answer["ready"] else 503)

    async def metrics(_: Request) -> Response:
        return Response(telemetry.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def migration_status(request: Request) -> Response:
        try:
            if health.authenticator is None:
                return _json({"ready": False, "reasons": await health.reasons()}, 503)
            address = request.client.host if request.client else "unknown"
            caller = await health.authenticator.authenticate(presented_secret(request.headers.raw), address)
            require(caller, Scope.ADMIN)
        except MeshError as error:
            return problem_response(error)
        return _json(await health.migration_facts())

    return [
        Route("/healthz", alive),
        Route("/readyz", ready),
        Route("/health", whole),
        Route("/metrics", metrics),
        Route("/admin/migration-status", migration_status),
    ]


def _json(content: object, status_code: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status_code, media_type="application/json")
