"""How a service is, for whoever watches it: alive, ready, and everything. Never blocking and never lying.

Each component is asked within a time limit of its own, by one asker at a time, and its answer is kept for a moment: neither a
slow component nor an eager watcher slows the service. Must not know what the components are.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, TypeVar

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from devmesh import __version__, telemetry
from devmesh.core import access
from devmesh.core.errors import unavailable
from devmesh.edges.boundary import Handler, Resource
from devmesh.edges.credentials import presented_secret
from devmesh.operations.authentication import Authenticator
from devmesh.store.connections import DatabaseUnreachable
from devmesh.store.faults import translate

COMPONENT_LIMIT_S = 1.0
ANSWER_AGE_S_MAX = 1.0
MIGRATIONS_AGE_S_MAX = 5.0  # each look opens a connection

AnswerT = TypeVar("AnswerT")


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


class Question(Generic[AnswerT]):
    """Something that is asked now and then, and answered from memory in between."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[AnswerT]],
        failed: Callable[[str, AnswerT | None], AnswerT],
        age_s_max: float = ANSWER_AGE_S_MAX,
    ) -> None:
        """`failed` makes an answer of why there is none, and of the last one."""
        self._ask, self._failed, self._age_s_max = ask, failed, age_s_max
        self._answer: AnswerT | None = None
        self._answered_at = 0.0
        self._asking: asyncio.Task[AnswerT] | None = None

    async def answer(self) -> AnswerT:
        """Within the time limit, and at once when the last answer is fresh."""
        if self._answer is not None and time.monotonic() - self._answered_at < self._age_s_max:
            return self._answer
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_now())
        return await asyncio.shield(self._asking)  # others wait for it too

    async def _ask_now(self) -> AnswerT:
        try:
            async with asyncio.timeout(COMPONENT_LIMIT_S):
                answer = await self._ask()
        except TimeoutError:
            answer = self._failed(f"no answer within {COMPONENT_LIMIT_S:g} s", self._answer)
        except DatabaseUnreachable as error:
            answer = self._failed(translate(error.__cause__ or error).message, self._answer)
        except Exception as error:
            answer = self._failed(translate(error).message, self._answer)
        self._answer, self._answered_at, self._asking = answer, time.monotonic(), None
        return answer


class Health:
    """What a service says of itself. `waiting_for` is what its start still waits for; nothing, once it has started."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.waiting_for: list[str] = ["the start"]
        self.is_stopping = False
        self.is_migrating = False
        self.authenticator: Authenticator | None = None
        self.details: Callable[[], Mapping[str, Any]] = dict
        self._questions: dict[str, Question[Component]] = {}
        self._migrations = Question(_not_known, _unknown_migrations)

    def add(self, name: str, check: Check) -> None:
        """Asks a component from now on. One that is unhealthy makes the service not ready, one that is degraded does not."""
        self._questions[name] = Question(_timed(check), lambda reason, _: Component("unhealthy", reason))

    def look_at_migrations(self, look: Callable[[], Awaitable[Migrations]]) -> None:
        self._migrations = Question(look, _unknown_migrations, MIGRATIONS_AGE_S_MAX)

    async def components(self) -> dict[str, Component]:
        answers = await asyncio.gather(*(question.answer() for question in self._questions.values()))
        return dict(zip(self._questions, answers, strict=True))

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
            "migrations": await self.migrations(),
            "components": components,
        }
        return {**answer, "details": self.details()} if with_details else answer

    async def migrations(self) -> Migrations:
        return msgspec.structs.replace(await self._migrations.answer(), in_progress=self.is_migrating)


def routes(health: Health) -> list[Route]:
    async def alive(_: Request) -> Response:
        return _json({"status": "alive"})

    async def ready(_: Request) -> Response:
        reasons = await health.reasons()
        return _json({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def whole(request: Request) -> Response:
        answer = await health.whole(request.query_params.get("details") == "true")
        return _json(answer, 200 if answer["ready"] else 503)

    async def metrics(_: Request) -> Response:
        return Response(telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)

    async def migration_status(request: Request) -> Response:
        if health.authenticator is None:
            raise unavailable(f"keys cannot be checked yet: {'; '.join(await health.reasons())}", 1000)
        address = request.client.host if request.client else "unknown"
        caller = await health.authenticator.authenticate(presented_secret(request.headers.raw), address)
        access.require(caller, access.Scope.ADMIN)
        return _json(await health.migrations())

    handlers: dict[str, Handler] = {
        "/healthz": alive,
        "/readyz": ready,
        "/health": whole,
        "/metrics": metrics,
        "/admin/migration-status": migration_status,
    }
    return [Route(path, Resource({"GET": handler})) for path, handler in handlers.items()]


async def _not_known() -> Migrations:
    return _unknown_migrations("the database was not looked at yet", None)


def _unknown_migrations(reason: str, last: Migrations | None) -> Migrations:
    """What was known stays known, but not that it is still so."""
    if last is None:
        return Migrations(False, False, False, None, None, None, [reason])
    return msgspec.structs.replace(last, ready=False, problems=[reason])


def _timed(check: Check) -> Check:
    async def timed() -> Component:
        began = time.perf_counter()
        component = await check()
        if component.latency_ms is None:
            component.latency_ms = round((time.perf_counter() - began) * 1000, 3)
        return component

    return timed


def _json(content: object, status_code: int = 200) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(msgspec.json.encode(content), status_code, headers, media_type="application/json")
