"""The handlers of an application, run beside the database: what `devmesh worker --app module:mesh` does besides.

The worker is the client's own (client/job_worker.py); here its requests are operations called in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import sys
import sysconfig
import traceback
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

import devmesh
from devmesh.client import Mesh
from devmesh.client.errors import MeshError, described
from devmesh.client.job_handlers import unfit_for_processes
from devmesh.client.job_worker import JobWorker
from devmesh.client.mesh import is_being_loaded
from devmesh.core.access import Caller, Scope
from devmesh.core.components import Component, healthy, unhealthy
from devmesh.engine.bell import Bell
from devmesh.engine.local_requests import LocalRequests
from devmesh.operations.corridor import Corridor
from devmesh.operations.recall import Recall
from devmesh.operations.work import WorkRunner
from devmesh.settings import Settings
from devmesh.store.database import Database
from devmesh.store.statements import load

log = structlog.get_logger(__name__)

TENANTS = load("tenants")
OWNER = uuid.UUID(
    "6c8f3a52-52a1-5c0e-9a55-0d1f64b7a001"
)  # of workers that have the database itself, and so need no key
PAUSE_S = 2.0
HAND_BACK_S = 2.0  # of the service's grace, for reports and for leaving; of a short grace, half
IMPORTING = (f"{Path(devmesh.__file__).parent}{os.sep}", importlib.__file__)  # files of who imports an application
LIBRARIES = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}


class AppUnusable(Exception):
    """The application cannot be loaded. One line that says why."""


def load_app(name: str) -> Mesh:
    """`module:attribute`, found from the working directory. Raises AppUnusable."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise AppUnusable(f"{name!r} names no mesh: say module:name, such as app:mesh")
    if module_name.startswith(".") or "/" in module_name or module_name.endswith(".py"):
        raise AppUnusable(f"{name!r} names no module, which app.py has as app: say module:name, such as app:mesh")
    sys.path.insert(0, str(Path.cwd()))
    loading = is_being_loaded.set(True)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the application's own code does
        raise AppUnusable(f"{module_name} cannot be imported: {_told(error)}") from error
    finally:
        is_being_loaded.reset(loading)
    try:
        found = getattr(module, attribute)
    except AttributeError:
        raise AppUnusable(f"{module_name} has no {attribute!r}") from None
    if not isinstance(found, Mesh):
        raise AppUnusable(f"{name} is no Mesh but a {type(found).__name__}")
    if not found.job_handlers:
        instead = f"; agents are run by {attribute}.run()" if found.agent_names else ""
        raise AppUnusable(f"{name} has no jobs: declare some with @{attribute}.job(…){instead}")
    if (unfit := unfit_for_processes(found.job_handlers.values())) is not None:
        raise AppUnusable(f"{name} cannot be run: {unfit}")
    return found


def _told(error: BaseException) -> str:
    """A mistake of the application on one line: what it is, and where in its own files."""
    if isinstance(error, SyntaxError) and error.filename:
        place: tuple[str, int | None] | None = (error.filename, error.lineno)
        said = error.msg
    else:
        place = _place(error)
        said = described(error)["message"]
    words = " ".join(said.split())
    told = f"{type(error).__name__}: {words}" if words else type(error).__name__
    if place is None:  # the module itself is not there
        return told
    file = Path(place[0])
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return f"{told} ({shown}, line {place[1]})"


def _place(error: BaseException) -> tuple[str, int | None] | None:
    """The innermost line of the application, whose mistake it is: not that of the library that has noticed it. An
    application that is installed as libraries are has the outermost one."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    code = [(file, line) for file, line in frames if not file.startswith("<") and not file.startswith(IMPORTING)]
    own = [(file, line) for file, line in code if not any(Path(file).is_relative_to(place) for place in LIBRARIES)]
    return own[-1] if own else code[0] if code else None


def handlers_limit_s(drain_limit_s: float, grace_s: float) -> float:
    """How long handlers may go on when the service stops: as the application has it, but for what follows on them."""
    return min(drain_limit_s, max(grace_s - HAND_BACK_S, grace_s / 2))


class AppWorker:
    """Runs the jobs of an application as long as the service does, and begins again when something keeps it from that."""

    def __init__(self, app: Mesh, runner: WorkRunner, settings: Settings, recall: Recall) -> None:
        self._app, self._runner, self._settings = app, runner, settings
        self._corridor = Corridor(runner, settings, recall)
        self._worker: JobWorker | None = None
        self._task: asyncio.Task[None] | None = None
        self._draining = asyncio.Event()
        self._problem = ""

    def start(self) -> None:
        if names := self._app.agent_names:
            log.warning("agents are not run beside the database, but over the WebSocket: --remote does", agents=names)
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def drain(self, grace_s: float) -> None:
        """Lets handlers end, gives back what they did not, and leaves: all of it within the service's grace."""
        self._draining.set()
        self._corridor.leave()  # a claim that waits for jobs ends
        if self._worker is not None and self._task is not None:
            loop = asyncio.get_running_loop()
            ends_at = loop.time() + grace_s
            await self._worker.drain(handlers_limit_s(self._app.drain_limit_s, grace_s))
            await asyncio.wait([self._task], timeout=max(0.0, ends_at - loop.time()))
        if self._task is not None:
            self._task.cancel()

    async def check(self) -> Component:
        if self._problem:
            return unhealthy(self._problem)
        return healthy()

    async def _work(self) -> None:
        while not self._draining.is_set():
            try:
                caller = await self._caller()
                if self._draining.is_set():
                    return
                self._worker = self._app.job_worker(
                    functools.partial(self._here, caller), functools.partial(self._apart, caller)
                )
                self._problem = ""
                await self._worker.run()
                return
            except Exception as error:  # of the client, of the store, or of this machine: each may pass
                known = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
                self._problem = f"no jobs are run: {known}"
                log.warning("no jobs are run for the moment", error=known)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._draining.wait(), PAUSE_S)

    async def _caller(self) -> Caller:
        name = self._settings.worker_tenant
        rows = await self._runner.database.read(TENANTS.by_name, name)
        if not rows:
            raise MeshError("not_found", f"there is no tenant {name!r}")
        scopes = frozenset({Scope.READ, Scope.WRITE, Scope.WORKER})
        return Caller(tenant_id=rows[0]["id"], key_id=OWNER, owner_id=OWNER, scopes=scopes)

    @contextlib.asynccontextmanager
    async def _here(self, caller: Caller) -> AsyncIterator[LocalRequests]:
        yield LocalRequests(self._corridor, caller, self._settings.message_bytes_max)

    @contextlib.asynccontextmanager
    async def _apart(self, caller: Caller) -> AsyncIterator[LocalRequests]:
        """The same on connections of its own, for another thread's loop."""
        settings = self._settings
        assert settings.database_dsn is not None
        database = await Database.open(
            settings.database_dsn, service="devmesh worker heart", pool_size_min=1, pool_size_max=1,
            transaction_deadline_s=settings.transaction_deadline_s, search_path=settings.database_search_path,
        )  # fmt: skip
        try:
            runner = WorkRunner(database, Bell([], settings.bell_coalesce_ms), self._runner.vault)
            yield LocalRequests(Corridor(runner, settings), caller, settings.message_bytes_max)
        finally:
            await database.close()
