"""Whether snapshots are taken by themselves: of each tenant an interval, and how many are kept. A loop takes them."""

from __future__ import annotations

import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from devmesh.core.access import Scope
from devmesh.operations.registry import Call, Mutation, Params, operation
from devmesh.operations.snapshots import SNAPSHOTS_MAX
from devmesh.operations.work import Work
from devmesh.store.statements import load

SQL = load("snapshots")


class Auto(Mutation, kw_only=True):
    """`interval_s` null: no more are taken by themselves. One that fails is tried again after five minutes, or the interval."""

    interval_s: Annotated[float, Meta(ge=1, le=366 * 86_400)] | None
    keep: Annotated[int, Meta(ge=1, le=SNAPSHOTS_MAX // 2)] = 24


class Policy(Params, kw_only=True):
    pass


class PolicyResult(msgspec.Struct):
    """All null: none are taken by themselves."""

    interval_s: float | None
    keep: int | None
    next_at: datetime.datetime | None


@operation("snapshot.auto", scope=Scope.ADMIN, http="POST /snapshots/auto", single=True, audited=True)
async def auto(work: Work, call: Call[Auto]) -> PolicyResult:
    """Have a snapshot taken at an interval, and only the latest of those kept."""
    asked = call.params
    if asked.interval_s is None:
        await work.tx.execute(SQL.drop_policy, work.tenant_id)
    else:
        await work.tx.execute(SQL.set_policy, work.tenant_id, asked.interval_s, asked.keep)
    return await _policy(work)


@operation("snapshot.policy", scope=Scope.READ, http="GET /snapshots/auto", single=True)
async def policy(work: Work, call: Call[Policy]) -> PolicyResult:
    """Show whether snapshots are taken by themselves, and when the next is due."""
    return await _policy(work)


async def _policy(work: Work) -> PolicyResult:
    row = await work.tx.fetch_row(SQL.policy, work.tenant_id)
    return PolicyResult(None, None, None) if row is None else PolicyResult(*row)
