"""How a service is, for whoever watches it: alive, ready, and everything. Never blocking and never lying.

The service looks at itself in the background: each component is asked within a time limit, and whoever watches gets the last
answers at once, with their age. Neither a slow component nor an eager watcher slows the service, and a service that has stopped
looking says so. Must not know what the components are.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from devmesh import __version__, telemetry
from devmesh.core import access
from devmesh.core.components import Component, unhealthy
from devmesh.core.errors import unavailable
from devmesh.edges.boundary import Handler, Resource
from devmesh.edges.credentials import presented_secret
from devmesh.edges.parameters import from_url
from devmesh.edges.questions import Question
from devmesh.engine.loop import Loop
from devmesh.operations.authentication import Authenticator
from devmesh.operations.registry import Params

LOOK_INTERVAL_S = 1.0
AGE_S_MAX = 5.0  # of answers that readiness may rest on

log = structlog.get_logger(__name__)

Check = Callable[[], Awaitable[Component]]
Details = Callable[[], Any]


class Migrations(msgspec.Struct):
    """How far the schema is."""

    in_progress: bool
    completed: bool
    ready: bool
    version: int | None
    completed_at: datetime.datetime | None
    duration_ms: float | None
    problems: list[str]
    newer: list[str] = []  # made by a newer program, and this one keeps working with them


class Shown(Component, kw_only=True):
    """A component as watchers see it."""

    age_ms: float


class Health(Loop):
    """What a service says of itself. `waiting_for` is what its start still waits for; nothing, once it has started.

    Parts of the service register here, under a name each: `add` what can be well or not, `add_details` what there is to
    know besides.
    """

    name = "health"

    def __init__(self, service: str) -> None:
        super().__init__(LOOK_INTERVAL_S)
        self.service = service
        self.waiting_for: list[str] = ["the start"]
        self.is_stopping = False
        self._is_told_unready = False
        self.is_migrating = False
        self.authenticator: Authenticator | None = None
        self._questions: dict[str, Question[Component]] = {}
        self._details: dict[str, Details] = {}
        self._migrations = Question(_not_known, _unknown_migrations, LOOK_INTERVAL_S)

    def add(self, name: str, check: Check, interval_s: float = LOOK_INTERVAL_S) -> None:
        """Asks a component from now on. One that is unhealthy makes the service not ready, one that is degraded does not.

        A check may wait, for a second at the most; one that raises is unhealthy.
        """
        assert name not in self._questions, f"component {name} is there already"
        self._questions[name] = Question(_timed(check), lambda reason, _: unhealthy(reason), interval_s)

    def add_details(self, name: str, details: Details) -> None:
        """Shows more on demand: `details` answers with anything that is JSON, from memory, without waiting."""
        assert name not in self._details, f"details {name} are there already"
        self._details[name] = details

    def look_at_migrations(self, look: Callable[[], Awaitable[Migrations]]) -> None:
        self._migrations = Question(look, _unknown_migrations, LOOK_INTERVAL_S)

    async def run_once(self) -> bool:
        """Asks whatever was not asked of late."""
        await asyncio.gather(*(question.look() for question in self._asked() if question.is_due))
        self._tell()
        return False

    def _tell(self) -> None:
        """Says in the log and to Prometheus when readiness is lost after the start, and when it is found again."""
        reasons = self.reasons
        telemetry.IS_READY.set(not reasons)
        if self.waiting_for or self.is_stopping or bool(reasons) == self._is_told_unready:
            return
        self._is_told_unready = bool(reasons)
        if reasons:
            log.warning("not ready", reasons=reasons)
        else:
            log.info("ready again")

    async def stop(self, limit_s: float = 5.0) -> None:
        await super().stop(limit_s)
        for question in self._asked():
            question.stop()

    def _asked(self) -> list[Question[Any]]:
        return [*self._questions.values(), self._migrations]

    @property
    def components(self) -> dict[str, Shown]:
        """The last answer of each, with its age."""
        return {
            name: Shown(**msgspec.structs.asdict(question.answer), age_ms=_milliseconds(question.age_s))
            for name, question in self._questions.items()
        }

    @property
    def age_s(self) -> float:
        """How old the oldest answer is that readiness rests on."""
        return max((question.age_s or 0.0 for question in self._questions.values()), default=0.0)

    @property
    def reasons(self) -> list[str]:
        """Why the service is not ready: nothing, when it is."""
        if self.is_stopping:
            return ["the service is stopping"]
        if self.waiting_for:
            return list(self.waiting_for)
        if self.age_s > AGE_S_MAX:
            return [f"the service has not looked at itself for {self.age_s:.1f} s"]
        found = {name: question.answer for name, question in self._questions.items()}
        return [f"{name}: {answer.message}" for name, answer in found.items() if answer.status == "unhealthy"]

    @property
    def migrations(self) -> Migrations:
        answer = self._migrations.answer
        return msgspec.structs.replace(answer, in_progress=answer.in_progress or self.is_migrating)

    def readiness(self) -> dict[str, Any]:
        reasons = self.reasons
        return {"ready": not reasons, "reasons": reasons, "age_ms": _milliseconds(self.age_s)}

    def whole(self, with_details: bool) -> dict[str, Any]:
        readiness, components = self.readiness(), self.components
        is_degraded = any(component.status != "healthy" for component in components.values())
        answer = {
            "status": "unhealthy" if readiness["reasons"] else "degraded" if is_degraded else "healthy",
            **readiness,
            "service": self.service,
            "version": __version__,
            "time": datetime.datetime.now(datetime.UTC),
            "migrations": self.migrations,
            "components": components,
        }
        return {**answer, "details": self.details()} if with_details else answer

    def details(self) -> dict[str, Any]:
        return {name: details() for name, details in self._details.items()}


class _Asked(Params):
    details: bool = False


def routes(health: Health) -> list[Route]:
    async def alive(_: Request) -> Response:
        return _json({"status": "alive"})

    async def ready(_: Request) -> Response:
        readiness = health.readiness()
        return _json(readiness, 200 if readiness["ready"] else 503)

    async def whole(request: Request) -> Response:
        answer = health.whole(from_url(request, _Asked).details)
        return _json(answer, 200 if answer["ready"] else 503)

    async def metrics(_: Request) -> Response:
        return Response(telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)

    async def migration_status(request: Request) -> Response:
        if health.authenticator is None:
            raise unavailable(f"keys cannot be checked yet: {'; '.join(health.reasons)}", 1000)
        address = request.client.host if request.client else "unknown"
        caller = await health.authenticator.authenticate(presented_secret(request.headers.raw), address)
        access.require(caller, access.Scope.ADMIN)
        return _json(health.migrations)

    handlers: dict[str, Handler] = {
        "/healthz": alive,
        "/readyz": ready,
        "/health": whole,
        "/metrics": metrics,
        "/admin/migration-status": migration_status,
    }
    return [Route(path, Resource({"GET": handler})) for path, handler in handlers.items()]


async def _not_known() -> Migrations:
    return _unknown_migrations("the database was not reached yet", None)


def _unknown_migrations(reason: str, last: Migrations | None) -> Migrations:
    """What was known stays known, but not that it is still so."""
    if last is None:
        return Migrations(False, False, False, None, None, None, [reason])
    return msgspec.structs.replace(last, ready=False, problems=[reason])


def _timed(check: Check) -> Check:
    async def timed() -> Component:
        began = time.perf_counter()
        component = await check()
        took_ms = round((time.perf_counter() - began) * 1000, 3)
        return component if component.latency_ms is not None else msgspec.structs.replace(component, latency_ms=took_ms)

    return timed


def _milliseconds(age_s: float | None) -> float:
    return round((age_s or 0.0) * 1000, 1)


def _json(content: object, status_code: int = 200) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(msgspec.json.encode(content), status_code, headers, media_type="application/json")
