"""Whatever happens to workers, services and the database, in whatever order: the history of all jobs is whole afterwards.

A seed decides what happens, and when. `pytest tests/chaos -m "soak or not soak" -k seed-17` plays one again.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.field import Field
from tests.chaos.plans import plan_of
from tests.chaos.runs import Run
from tests.stepping import stepped_postgres

SEEDS = range(200)
USUAL = (3,)  # in the ordinary suite as well


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with stepped_postgres() as postgres:
        made = Field(postgres, tmp_path_factory.mktemp("chaos"))
        try:
            yield made
        finally:
            made.mesh.end()


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, id=f"seed-{seed}", marks=[] if seed in USUAL else pytest.mark.soak) for seed in SEEDS]
)
async def test_j39_whatever_happens_no_job_is_lost_or_done_twice(field: Field, seed: int) -> None:
    plan = plan_of(seed)
    print(f"seed {seed}:", *plan.faults, *plan.pauses, sep="\n  ")
    await Run(field, plan).play()
