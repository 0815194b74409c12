"""What is overdue in a tenant, done piece by piece where it cannot be done together: no piece holds up the others for ever."""

from __future__ import annotations

import collections
import random
import time
import uuid
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Collection

from devmesh.core.errors import Kind, MeshError
from devmesh.engine.looks import Looks
from devmesh.engine.reaper import OverdueLoop
from devmesh.operations.work import Work, WorkRunner
from devmesh.store.statements import Statement

APART_S = 8.0  # for which the pieces of a tenant are done in one pass, and one at the least
FAILURES_MAX = 3  # of them in one pass: what fails may be nobody's own


class ApartLoop(OverdueLoop):
    """Once a tenant's work has failed together it goes on apart, until a pass has done all of it."""

    def __init__(
        self,
        runner: WorkRunner,
        looks: Looks,
        interval_s: float,
        tenants: Statement,
        reap: Callable[[Work], Awaitable[int]],
    ) -> None:
        super().__init__(runner, looks, interval_s, tenants, reap)
        self._apart = set[uuid.UUID]()

    @abstractmethod
    def _goes_apart(self, error: MeshError) -> bool:
        """Whether what failed together may go well apart."""

    @abstractmethod
    async def _pieces(self, tenant_id: uuid.UUID) -> Collection[uuid.UUID]:
        """What there is to do."""

    @abstractmethod
    async def _do(self, tenant_id: uuid.UUID, piece: uuid.UUID) -> bool:
        """Does a piece, or a part of it: whether that was all."""

    async def _work_through(self, tenant_id: uuid.UUID) -> None:
        if tenant_id not in self._apart:
            try:
                await super()._work_through(tenant_id)
            except MeshError as error:
                if not self._goes_apart(error):
                    raise
                self._apart.add(tenant_id)
        if tenant_id in self._apart:
            await self._work_apart(tenant_id)

    async def _work_apart(self, tenant_id: uuid.UUID) -> None:
        pieces = list(await self._pieces(tenant_id))
        random.shuffle(pieces)  # those that fail are not always the first
        waiting, ends_at, failures = collections.deque(pieces), time.monotonic() + APART_S, list[MeshError]()
        while waiting and len(failures) < FAILURES_MAX:
            piece = waiting.popleft()
            try:
                if not await self._do(tenant_id, piece):
                    waiting.append(piece)
            except MeshError as error:
                failures.append(error)
                if error.kind is Kind.UNAVAILABLE:
                    break
            if time.monotonic() >= ends_at:
                break
        if failures:
            raise failures[-1]
        if waiting:
            self._is_more = True
        else:
            self._apart.discard(tenant_id)
