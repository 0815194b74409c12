"""The corridor: the one way that a request goes, whatever wire it came by.

    within its rate? -> decode -> may they? -> gather with like requests -> begin -> body -> events -> commit -> ring -> reply

Read this page first. An edge calls `serve` and nothing else; what an operation does is in its body (registry.py), how
calls gather in gather.py, and what a repeated call gets in idempotency.py. One batch is one transaction of one tenant: it
holds the row changes, the idempotency records, the audit rows and the events. What must happen outside is caused by a
committed row, never done inside; what has to be known from outside is asked before, by the operation's `ahead`. Where all of
it, from begin to commit, is one statement, the operation's `at_once` does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec

from devmesh import telemetry
from devmesh.core import access, errors
from devmesh.core.access import Caller
from devmesh.core.depth import require_depth
from devmesh.core.events import Concern
from devmesh.operations import audit
from devmesh.operations.admission import Admission
from devmesh.operations.api_logs import Answered
from devmesh.operations.gather import Batch, Gather
from devmesh.operations.idempotency import Answer, Claims
from devmesh.operations.rates import Rates
from devmesh.operations.recall import Recall
from devmesh.operations.registry import REGISTRY, Call, NotYet, Operation
from devmesh.operations.waits import Waits
from devmesh.operations.work import Work, WorkRunner
from devmesh.settings import Settings
from devmesh.store.faults import is_member_fault

GATHERS_MAX = 10_000  # of operations and tenants; idle ones are let go beyond it


class Corridor:
    def __init__(self, runner: WorkRunner, settings: Settings, recall: Recall | None = None) -> None:
        self._runner, self._bell, self._settings = runner, runner.bell, settings
        self._gathers: dict[tuple[str, uuid.UUID], Gather[Call[Any], Answer | NotYet]] = {}
        self._is_leaving = False
        self.answered: Answered = lambda *_: None
        self._recall = recall or Recall()
        self.waits = Waits()
        self._denials = audit.Denials(runner.database)
        self.rates = Rates(runner.database, settings)
        self.admission = Admission(settings.admission_target_ms)

    async def serve(self, name: str, caller: Caller, raw: bytes | msgspec.Raw) -> msgspec.Raw:
        """The answer's JSON to a call of an operation with raw JSON parameters. Raises MeshError."""
        await self.rates.admit(
            caller
        )  # who is refused here is counted, not logged: that would cost what the limit saves
        began_s = time.monotonic()
        try:
            answer = await self._serve(name, caller, raw)
        except errors.MeshError as error:
            self.answered(name, caller, error, time.monotonic() - began_s)
            raise
        self.answered(name, caller, None, time.monotonic() - began_s)
        return answer

    async def _serve(self, name: str, caller: Caller, raw: bytes | msgspec.Raw) -> msgspec.Raw:
        operation = REGISTRY.get(name)
        if operation is None:
            raise errors.MeshError(errors.Kind.UNKNOWN_METHOD, f"there is no operation {name[:80]!r}")
        require_depth(raw, self._settings.payload_depth_max)
        params = operation.decode(raw)
        try:
            access.require(caller, operation.scope)
        except errors.MeshError as error:
            await self._denials.record(caller, name, error.message)
            raise
        call = Call(caller, params)
        return await self._answer(operation, await operation.ahead(self._recall, call) if operation.ahead else call)

    @contextlib.asynccontextmanager
    async def denials_noted(self, caller: Caller | None, act: str) -> AsyncIterator[None]:
        """What is refused inside as forbidden stands in the audit log."""
        try:
            yield
        except errors.MeshError as error:
            if error.kind is errors.Kind.FORBIDDEN and caller is not None:
                await self._denials.record(caller, act, error.message)
            raise

    async def _answer(self, operation: Operation, call: Call[Any]) -> msgspec.Raw:
        """Asks until the answer is final or the caller's patience ends; it waits outside of any transaction."""
        tenant_id = call.caller.tenant_id
        rings_seen = self._bell.rings_so_far(tenant_id, operation.waits_for)
        began_s = time.monotonic()
        answer = await self._ask(operation, call)
        self.admission.took(time.monotonic() - began_s)
        if not isinstance(answer, NotYet):
            return answer
        patience_ends = time.monotonic() + answer.wait_ms / 1000
        with self.waits.begun(call.caller), self.admission.outside(operation.name):
            while isinstance(answer, NotYet) and (remaining_s := patience_ends - time.monotonic()) > 0:
                again_s = self._settings.fanout_poll_interval_s if answer.again_s is None else answer.again_s
                await self._pause(tenant_id, operation.waits_for, rings_seen, min(remaining_s, again_s))
                self.waits.require_going_on(call.caller)
                rings_seen = self._bell.rings_so_far(tenant_id, operation.waits_for)
                answer = await self._ask(operation, call)
        return _encode(answer) if isinstance(answer, NotYet) else answer

    async def _ask(self, operation: Operation, call: Call[Any]) -> msgspec.Raw | NotYet:
        answer = await self._gather(operation, call.caller.tenant_id).add(call)
        assert not isinstance(answer, errors.MeshError)  # which would have been raised
        return answer

    async def _pause(self, tenant_id: uuid.UUID, concern: Concern, rings_seen: int, limit_s: float) -> None:
        """Until the bell rings, or there may be something that nobody rang for. Raises unavailable when the server leaves."""
        if not self._is_leaving:
            await self._bell.wait(tenant_id, concern, rings_seen, limit_s)
        if self._is_leaving:
            raise errors.unavailable("this server is going away; wait at another")

    def _gather(self, operation: Operation, tenant_id: uuid.UUID) -> Gather[Call[Any], Answer | NotYet]:
        key = (operation.name, tenant_id)
        gather = self._gathers.get(key)
        if gather is None:
            if len(self._gathers) >= GATHERS_MAX:
                self._gathers = {key: kept for key, kept in self._gathers.items() if not kept.is_idle}

            async def write(batch: Batch[Call[Any], Answer | NotYet]) -> Sequence[Answer | NotYet]:
                return await self._flush(operation, tenant_id, batch, batch.answer)

            gather = self._gathers[key] = Gather(
                write,
                batch_max=operation.batch_max or self._settings.gather_batch_max,
                in_flight_max=self._settings.gather_in_flight_max,
                waiting_max=self._settings.gather_queue_max,
                deadline_s=self._settings.transaction_deadline_s,
                subject=operation.subject,
                hurries=operation.hurries,
            )
        return gather

    async def _flush(
        self,
        operation: Operation,
        tenant_id: uuid.UUID,
        calls: Sequence[Call[Any]],
        tell: Callable[[Sequence[Answer | NotYet]], None] | None = None,
    ) -> Sequence[Answer | NotYet]:
        """One batch, one transaction. When a member breaks it, the members run apart: none takes the others with it.

        `tell` has the answers once they are committed, before the connection is given back.
        """
        began = time.perf_counter()

        async def perform(work: Work) -> Sequence[Answer | NotYet]:
            answers = await self._perform(operation, work, calls)
            if tell is not None:
                work.tx.after_commit(lambda: tell(answers))
            return answers

        try:
            answers = await self._runner.run(tenant_id, perform, reads_clock=operation.reads_clock)
        except errors.MeshError as error:
            if len(calls) == 1 or not is_member_fault(error):
                answers = [error] * len(calls)
                if error.kind is errors.Kind.FORBIDDEN:  # raised, so that the transaction with its audit row is gone
                    await self._denials.record(calls[0].caller, operation.name, error.message)
            else:
                telemetry.BATCHES_RUN_APART.inc()
                runs = [await self._flush(operation, tenant_id, [call]) for call in calls]
                answers = [answer for run in runs for answer in run]
        duration_s = time.perf_counter() - began
        telemetry.batch_done(operation.name, len(calls), duration_s)
        self.admission.trip(len(calls), duration_s)
        return answers

    async def _perform(self, operation: Operation, work: Work, calls: Sequence[Call[Any]]) -> Sequence[Answer | NotYet]:
        """Inside the transaction: who must run, run them, keep their answers. The runner appends the events, last.

        Or all of it at once, if the operation can.
        """
        claims = Claims(operation, calls)
        if operation.at_once is not None and (keys := claims.distinct()) is not None:
            done = await operation.at_once(work, calls, keys)
            if done is not None:
                return done
        runs = await claims.claim(work)
        outcomes = await operation.body(work, [calls[ordinal] for ordinal in runs]) if runs else []
        waiting = {ordinal: out for ordinal, out in zip(runs, outcomes, strict=True) if isinstance(out, NotYet)}
        answers: dict[int, Answer] = {
            ordinal: out if isinstance(out, errors.MeshError) else _encode(out)
            for ordinal, out in zip(runs, outcomes, strict=True)
        }
        await claims.store(work, answers, set(waiting))
        await audit.record(work, operation, calls, answers)
        answers |= claims.answers
        return [waiting.get(ordinal, answers[ordinal]) for ordinal in range(len(calls))]

    def depths(self) -> dict[str, dict[str, int]]:
        """The operations that have calls waiting or batches being written, for health."""
        found: dict[str, dict[str, int]] = {}
        for (name, _), gather in self._gathers.items():
            if not gather.is_idle:
                depth = found.setdefault(name, {"waiting": 0, "batches_in_flight": 0})
                depth["waiting"] += gather.waiting
                depth["batches_in_flight"] += gather.in_flight
        return found

    def leave(self) -> None:
        """Sends away whoever waits for something to happen: they wait elsewhere."""
        self._is_leaving = True
        self._bell.disturb()

    async def drain(self) -> None:
        """Waits until every gathered call has its answer."""
        await asyncio.gather(*(gather.drain() for gather in list(self._gathers.values())))


def _encode(outcome: msgspec.Struct) -> msgspec.Raw:
    """What a call is answered that did not fail: its result, for the time being or for good."""
    return msgspec.Raw(msgspec.json.encode(outcome.result if isinstance(outcome, NotYet) else outcome))
