"""No job waits for itself, through whatever number of others: what would close a circle is left out."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from devmesh.operations.job_dependencies import SQL
from devmesh.operations.work import Work


async def without_circles(
    work: Work, wanted: Mapping[uuid.UUID, Sequence[uuid.UUID]]
) -> list[tuple[uuid.UUID, uuid.UUID]]:
    """Which job is to be waited for by which: not one that waits for the other by now, through whatever number of others."""
    children: dict[uuid.UUID, list[uuid.UUID]] = {}
    for row in await work.tx.fetch(SQL.below, work.tenant_id, list(wanted)):
        children.setdefault(row["parent_id"], []).append(row["child_id"])
    edges: list[tuple[uuid.UUID, uuid.UUID]] = []
    for job_id in _parents_first(wanted):  # so that few wait for any of them when its turn comes
        later = _below(children, job_id)
        for parent_id in wanted[job_id]:
            if parent_id not in later:
                children.setdefault(parent_id, []).append(job_id)
                edges.append((parent_id, job_id))
    return edges


def _below(children: Mapping[uuid.UUID, Sequence[uuid.UUID]], job_id: uuid.UUID) -> set[uuid.UUID]:
    """A job with all that wait for it."""
    found, left = {job_id}, [job_id]
    while left:
        fresh = [child_id for child_id in children.get(left.pop(), ()) if child_id not in found]
        found.update(fresh)
        left += fresh
    return found


def _parents_first(wanted: Mapping[uuid.UUID, Sequence[uuid.UUID]]) -> list[uuid.UUID]:
    """These jobs, each behind those of them that it wants to wait for, but for circles."""
    ordered, seen = dict[uuid.UUID, None](), set[uuid.UUID]()
    for start in wanted:
        path = [start]
        while path:
            job_id = path[-1]
            if job_id in seen:
                ordered.setdefault(path.pop())
            else:
                seen.add(job_id)
                path += [parent_id for parent_id in wanted[job_id] if parent_id in wanted and parent_id not in seen]
    return list(ordered)
