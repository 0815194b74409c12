"""What a call asks for stays as it was said, whatever is made of it: a repeated call is known by it."""

from __future__ import annotations

import uuid
from typing import Any

from devmesh.operations import job_adding
from devmesh.operations.job_adding import JobSpec, NewJob
from devmesh.operations.job_dependencies import Parents


async def test_an_inherited_priority_is_the_job_s_and_not_the_call_s() -> None:
    parent, untouched = uuid.uuid4(), uuid.uuid4()
    said = JobSpec(type="t", depends_on=[parent])
    new = NewJob(uuid.uuid4(), uuid.uuid4(), said)
    work: Any = None  # nothing is asked of it while no parent has failed
    await job_adding._bind(work, new, Parents({parent, untouched}, set(), {parent: 5, untouched: 1}))
    assert (new.spec.priority, said.priority) == (5, 3)
    assert new.parent_ids == [parent]
