"""What can go wrong, as Python sees it: an answer that is an error, events that are lost, a lease that is gone.

Kinds are those of the server's one table (`devmesh.core.errors.Kind`); a kind that a newer server has and this client does
not know stays readable, because `kind` is text.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

import msgspec

from devmesh.core.errors import TABLE, Kind
from devmesh.core.jobs import DELAY_MS_MAX

ERROR_CHARACTERS_MAX = 2_000  # of what a handler has raised
SNOOZE_S_MAX = DELAY_MS_MAX // 1_000


class MeshError(Exception):
    """An answer that is an error, or what came instead of one. Look at `kind`, and at `reason` for the finer name."""

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        code: int | None = None,
        retryable: bool | None = None,
        retry_after_ms: int | None = None,
        field: str | None = None,
        reason: str | None = None,
        error_id: str | None = None,
    ) -> None:
        super().__init__(f"{message} ({kind})")
        row = TABLE[Kind(kind)] if kind in TABLE else TABLE[Kind.INTERNAL]
        self.kind, self.message = kind, message
        self.code = row.code if code is None else code
        self.retryable = row.retryable if retryable is None else retryable
        self.retry_after_ms, self.field, self.reason, self.error_id = retry_after_ms, field, reason, error_id


class EventsMissed(MeshError):
    """Some events are lost to this reader: they are older than what the server keeps. Nothing was skipped silently.

    Look at the state afresh, then iterate over the same stream again: it goes on after `cursor`.
    """

    def __init__(self, cursor: str) -> None:
        message = "events after the last one read are not kept any more; look at the state afresh, then read on"
        super().__init__(Kind.CONFLICT, message, reason="events.missed")
        self.cursor = cursor


class LeaseLost(MeshError):
    """The task or the job is not this handler's any more: its lease ended, or it was cancelled. Stop, and leave nothing behind.

    The `reason` is `task.lease_lost` or `job.lease_lost`.
    """

    def __init__(self, message: str, noun: Literal["task", "job"] = "task") -> None:
        super().__init__(Kind.CONFLICT, message, reason=f"{noun}.lease_lost")


class Reject(Exception):
    """Raised by a handler: this agent will not do the task; give it to another."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Fail(Exception):
    """Raised by a handler: the attempt failed. `error` is any value; another attempt follows only if it is `retryable`."""

    def __init__(self, error: Any, *, retryable: bool = True) -> None:
        super().__init__(error)
        self.error, self.retryable = error, retryable


class Snooze(Exception):
    """Raised by a handler of jobs: not now. The job is given out again after `delay_s`, which costs it no retry."""

    def __init__(self, delay_s: float) -> None:
        if not 0 <= delay_s <= SNOOZE_S_MAX:
            raise ValueError(f"a job can be put off by 0 to {SNOOZE_S_MAX:,} s, and not by {delay_s!r}")
        super().__init__(delay_s)
        self.delay_s = delay_s


class ConnectionLost(Exception):
    """The connection ended before the answer came. Never seen by users: the session asks again on the next one."""


class _Data(msgspec.Struct):
    kind: str = Kind.INTERNAL
    retryable: bool = False
    retry_after_ms: int | None = None
    field: str | None = None
    reason: str | None = None
    error_id: str | None = None


class WireError(msgspec.Struct):
    """An error as the wire carries it, whatever the server's version."""

    code: int
    message: str
    data: _Data = msgspec.field(default_factory=_Data)

    def exception(self) -> MeshError:
        return MeshError(self.data.kind, self.message, code=self.code, **_optional(self.data))


def _optional(data: _Data) -> dict[str, Any]:
    fields = msgspec.structs.asdict(data)
    del fields["kind"]
    return fields


def may_pass(error: MeshError) -> bool:
    """Whether the same request may be answered otherwise later. An `internal` without an error id is none of a server's."""
    is_fault_there = error.kind == Kind.INTERNAL and error.error_id is not None
    return error.retryable or is_fault_there or error.retry_after_ms is not None


def described(error: BaseException) -> dict[str, str]:
    """What a handler has raised, as it is reported: its `type` and its `message`, of 2,000 characters at the most.

    Halves of characters, as names of files may hold them, cannot be sent: a question mark stands for each.
    """
    try:
        message = str(error)[:ERROR_CHARACTERS_MAX]
    except BaseException as worse:  # it is the handler's own: whatever it does must not cost the report
        message = f"(its words cannot be had: {type(worse).__name__})"
    told = {"type": type(error).__name__, "message": message}
    return {name: text.encode(errors="replace").decode() for name, text in told.items()}


def finished(result: Any) -> Any:
    """A handler's result. Raises Fail for one that is still to be awaited, as when an `await` was forgotten."""
    if not inspect.isawaitable(result):
        return result
    if inspect.iscoroutine(result):
        result.close()  # or Python would say, somewhere else, that nobody has awaited it
    what = f"it is a {type(result).__name__}, for which nobody has waited"
    raise Fail(unusable(f"{what}: await it in the handler, which is declared with async def"), retryable=False)


def unusable(why: object, what: str = "result") -> dict[str, str]:
    """What is reported for a result or an error that a handler has given and no message can carry."""
    return {"type": f"Unusable{what.title()}", "message": f"the handler's {what} cannot be sent: {why}"}
