"""J41 and its kin: schedules fire once on any number of nodes, and what was missed is treated as was asked."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.conftest import QUICK, run_sql
from tests.harness import Mesh, eventually, running_mesh
from tests.scenarios.archive import Bystander
from tests.wire import Wire, WireError

SETTINGS = {**QUICK, "DEVMESH_SCHEDULER_INTERVAL_S": "0.05", "DEVMESH_SCHEDULE_GRACE_S": "5"}


@pytest.fixture(scope="module")
def nodes(create_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh with three workers, so that each schedule is seen by three."""
    directory = tmp_path_factory.mktemp("scheduling")
    services = ("rest-api", "mcp-server", "worker", "worker", "worker")
    with running_mesh(create_database(), directory, *services, settings=SETTINGS) as running:
        yield running


class Planner:
    def __init__(self, mesh: Mesh, wire: Wire) -> None:
        self.mesh, self.wire = mesh, wire
        self.queue = f"q{uuid.uuid4().hex}"

    async def create(self, **about: Any) -> dict[str, Any]:
        asked = {"name": f"s{uuid.uuid4().hex}", "job": {"type": "t", "queue": self.queue}, **about}
        schedule: dict[str, Any] = (await self.wire.call("schedule.create", **asked))["schedule"]
        return schedule

    async def get(self, schedule: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = (await self.wire.call("schedule.get", schedule_id=schedule["id"]))["schedule"]
        return found

    async def act(self, schedule: dict[str, Any], verb: str, **about: Any) -> dict[str, Any]:
        acted = await self.wire.call(f"schedule.{verb}", schedule_id=schedule["id"], **about)
        found: dict[str, Any] = acted["schedule"]
        return found

    async def jobs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.wire.call("job.list", queue=self.queue, limit=200))["jobs"]
        return found

    async def times(self) -> list[str]:
        """Which times the jobs stand for, the earliest first."""
        tags = [tag for job in await self.jobs() for tag in job["tags"] if tag.startswith("scheduled_at:")]
        return sorted(tag.removeprefix("scheduled_at:") for tag in tags)

    def was_away_for(self, schedule: dict[str, Any], seconds: float) -> None:
        """As if no node had looked for so long: the times since then are due."""
        run_sql(
            self.mesh.dsn,
            "update mcp.schedules set"
            f" starts_at = starts_at - interval '{seconds} s', next_fire_at = now() - interval '{seconds - 1} s'"
            f" where schedule_id = '{schedule['id']}'",
        )


@pytest_asyncio.fixture
async def planner(nodes: Mesh) -> Any:
    async with await Wire.connect(nodes.ws_url, nodes.new_tenant()) as wire:
        yield Planner(nodes, wire)


@pytest_asyncio.fixture
async def connection(nodes: Mesh) -> AsyncIterator[asyncpg.Connection]:
    made = await asyncpg.connect(nodes.dsn)
    try:
        yield made
    finally:
        await made.close()


async def test_j41_three_nodes_fire_each_time_once_and_one_is_killed_meanwhile(planner: Planner) -> None:
    schedule = await planner.create(interval_s=1)

    async def has_fired(count: int) -> bool:
        return len(await planner.times()) >= count

    await eventually(lambda: has_fired(2), "two times have come")
    victim = planner.mesh.of("worker")[0]
    victim.kill()
    await eventually(lambda: has_fired(4), "the others go on")
    victim.start()
    victim.wait_ready()
    await planner.wire.call("schedule.pause", schedule_id=schedule["id"])
    times = [datetime.datetime.fromisoformat(time) for time in await planner.times()]
    assert len(times) == len(set(times)), "each time has one job"
    steps = {(later - earlier).total_seconds() for earlier, later in itertools.pairwise(times)}
    assert steps == {1.0}, "and none is left out"
    now = await planner.get(schedule)
    assert (now["fired_count"], now["missed_count"], now["next_fire_at"]) == (len(times), 0, None)
    newest = (await planner.jobs())[0]
    assert (now["last_job_id"], f"schedule:{schedule['id']}" in newest["tags"]) == (newest["id"], True)


@pytest.mark.parametrize(("missed", "jobs"), [("skip", 0), ("once", 1), ("all", 4)])
async def test_j41_what_was_missed_while_all_were_down_is_treated_as_was_asked(
    planner: Planner, missed: str, jobs: int
) -> None:
    schedule = await planner.create(interval_s=100, missed=missed)
    planner.was_away_for(schedule, 390)  # four times have gone by, the last 90 s ago

    async def is_dealt_with() -> bool:
        return bool((await planner.get(schedule))["next_fire_at"] > schedule["created_at"])

    await eventually(is_dealt_with, "it is seen that they have gone by")
    now = await planner.get(schedule)
    assert (len(await planner.jobs()), now["fired_count"], now["missed_count"]) == (jobs, jobs, 4 - jobs)


async def test_what_was_due_before_a_pause_is_treated_as_was_asked(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api", "mcp-server")
    async with await Wire.connect(mesh.ws_url, mesh.new_tenant()) as wire:
        for missed, jobs in (("skip", 0), ("once", 1), ("all", 4)):
            planner = Planner(mesh, wire)
            schedule = await planner.create(interval_s=100, missed=missed)
            planner.was_away_for(schedule, 390)
            for verb in ("pause", "pause", "resume"):
                now = (await wire.call(f"schedule.{verb}", schedule_id=schedule["id"]))["schedule"]
                assert (now["fired_count"], now["missed_count"]) == (jobs, 4 - jobs)
                assert (now["next_fire_at"] is None) == (verb == "pause")
            assert len(await planner.jobs()) == jobs


@pytest.mark.parametrize("change", [{"ends_at": "2999-01-01T00:00:00Z"}, {"interval_s": 50}])
async def test_what_was_due_before_other_times_is_treated_as_was_asked(
    own_mesh: Callable[..., Mesh], change: dict[str, Any]
) -> None:
    mesh = own_mesh("rest-api", "mcp-server")
    async with await Wire.connect(mesh.ws_url, mesh.new_tenant()) as wire:
        planner = Planner(mesh, wire)
        schedule = await planner.create(interval_s=100, missed="all")
        planner.was_away_for(schedule, 390)
        now = (await wire.call("schedule.update", schedule_id=schedule["id"], **change))["schedule"]
        assert (now["fired_count"], now["missed_count"], len(await planner.jobs())) == (4, 0, 4)


async def test_schedules_that_each_missed_thousands_of_times_are_all_dealt_with(planner: Planner) -> None:
    """They do not all go into one transaction, which would come to its deadline and begin again for ever."""
    schedules = [await planner.create(interval_s=1, missed=missed) for missed in ("once", "all", "all")]
    for schedule in schedules:
        planner.was_away_for(schedule, 20_000)

    async def are_dealt_with() -> bool:
        now = [await planner.get(schedule) for schedule in schedules]
        return all(one["fired_count"] + one["missed_count"] >= 20_000 for one in now)

    await eventually(are_dealt_with, "each of them fires")
    for schedule in schedules:
        await planner.wire.call("schedule.pause", schedule_id=schedule["id"])
    fired = [(await planner.get(schedule))["fired_count"] for schedule in schedules]
    assert fired[0] < 1_000 <= min(fired[1:])


async def test_a_time_seen_within_the_grace_is_on_time(planner: Planner) -> None:
    schedule = await planner.create(interval_s=3_600, missed="skip")
    run_sql(
        planner.mesh.dsn,
        "update mcp.schedules set starts_at = starts_at - interval '3602 s', next_fire_at = next_fire_at - interval '3602 s'"
        f" where schedule_id = '{schedule['id']}'",
    )

    async def has_fired() -> bool:
        return len(await planner.jobs()) == 1

    await eventually(has_fired, "it fires, two seconds late")


async def test_a_schedule_that_cannot_fire_keeps_no_other_from_it(planner: Planner) -> None:
    good, ill = await planner.create(interval_s=1), await planner.create(interval_s=1)
    run_sql(
        planner.mesh.dsn,
        "update mcp.schedules set job = jsonb_set(job::jsonb, '{timeout_ms}', '9999999999')::json,"
        " next_fire_at = now() - interval '9 s'"
        f" where schedule_id = '{ill['id']}'",
    )
    before = (await planner.get(good))["fired_count"]

    async def has_fired() -> bool:
        return bool((await planner.get(good))["fired_count"] >= before + 2)

    await eventually(has_fired, "the other one fires")
    assert (await planner.get(ill))["next_fire_at"] < good["created_at"], "it is still due"
    assert (await planner.act(ill, "delete"))["id"] == ill["id"]


async def test_a_fired_job_is_as_the_template_says(planner: Planner) -> None:
    job = {
        "type": "report", "queue": planner.queue, "payload": {"a": [1, None]}, "priority": 5, "max_retries": 0,
        "timeout_ms": 1_000, "tags": ["mine"], "unique_key": "one at a time",
    }  # fmt: skip
    schedule = await planner.create(cron="0 0 1 1 *", job=job)
    first = await planner.wire.call("schedule.trigger", schedule_id=schedule["id"])
    [made] = await planner.jobs()
    assert made["id"] == first["job_id"]
    assert {name: made[name] for name in job if name != "tags"} == {name: job[name] for name in job if name != "tags"}
    assert made["tags"][:2] == ["mine", f"schedule:{schedule['id']}"]
    again = await planner.wire.call("schedule.trigger", schedule_id=schedule["id"])
    assert again["job_id"] == first["job_id"], "its unique key keeps firings from overlapping"
    assert again["schedule"]["next_fire_at"] == schedule["next_fire_at"]


async def test_a_schedule_is_changed_paused_resumed_and_deleted(planner: Planner) -> None:
    schedule = await planner.create(cron="0 6 * * *", time_zone="Europe/Berlin")
    shown = await planner.wire.call("schedule.get", schedule_id=schedule["id"])
    assert (len(shown["upcoming"]), shown["upcoming"][0]) == (5, schedule["next_fire_at"])

    async def act(verb: str, **about: Any) -> dict[str, Any]:
        return await planner.act(schedule, verb, **about)

    assert (await act("update", ends_at="2030-01-01T00:00:00Z"))["ends_at"] == "2030-01-01T00:00:00Z"
    assert (await act("update", missed="skip"))["ends_at"] == "2030-01-01T00:00:00Z", "what is left out stays"
    assert (await act("update", ends_at=None))["ends_at"] is None
    assert (await act("pause"))["next_fire_at"] is None
    changed = await act("update", interval_s=60, missed="all", name=f"other {schedule['id']}")
    assert (changed["cron"], changed["interval_s"], changed["missed"], changed["next_fire_at"]) == (
        None,
        60,
        "all",
        None,
    )
    resumed = await act("resume")
    assert (resumed["paused_at"], resumed["next_fire_at"] is not None) == (None, True)
    listed = await planner.wire.call("schedule.list", name=changed["name"])
    assert [each["id"] for each in listed["schedules"]] == [schedule["id"]]
    await act("delete")
    with pytest.raises(WireError) as refused:
        await planner.get(schedule)
    assert refused.value.kind == "not_found"


@pytest.mark.parametrize(("verb", "about"), [("update", {"ends_at": "2999-01-01T00:00:00Z"}), ("resume", {})])
async def test_a_time_that_is_fired_while_a_change_is_waiting_is_not_fired_again(
    planner: Planner, connection: asyncpg.Connection, verb: str, about: dict[str, Any]
) -> None:
    schedule, tenant_id = await planner.create(interval_s=1), planner.wire.initialized["tenant_id"]
    if verb == "resume":
        await planner.act(schedule, "pause")
    undone = connection.transaction()  # of a request with the same key, for which that of the change waits
    await undone.start()
    await connection.execute(
        "insert into mcp.idempotency_keys (tenant_id, idempotency_key, operation, params_hash) values ($1, 'key', 'o', 'h')",
        tenant_id,
    )
    changing = asyncio.create_task(planner.act(schedule, verb, idempotency_key="key", **about))
    await Bystander(connection).are_held_up(1)
    fired_count = (await planner.get(schedule))["fired_count"]

    async def has_fired() -> bool:
        return bool((await planner.get(schedule))["fired_count"] > fired_count)

    if verb == "resume":
        await planner.act(schedule, "resume")
    await eventually(has_fired, "it has fired meanwhile")
    if verb == "resume":
        await planner.act(schedule, "pause")
    await undone.rollback()
    changed = await changing
    assert changed["next_fire_at"] > changed["last_fired_at"]


@pytest.mark.parametrize(
    ("about", "field"),
    [
        ({}, "cron"),
        ({"cron": "* * * * *", "interval_s": 5}, "cron"),
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": "0 0 31 2 *"}, "cron"),
        ({"interval_s": 0.5}, "interval_s"),
        ({"interval_s": 60, "time_zone": "Mars/Olympus"}, "time_zone"),
        ({"cron": "0 2 * * *", "time_zone": "localtime"}, "time_zone"),
        ({"interval_s": 60, "ends_at": "2020-01-01T00:00:00Z"}, "ends_at"),
        ({"interval_s": 60, "starts_at": "2999-01-02T00:00:00Z", "ends_at": "2999-01-01T00:00:00Z"}, "ends_at"),
        ({"interval_s": 60, "missed": "perhaps"}, "missed"),
        ({"interval_s": 60, "job": {"type": ""}}, "job.type"),
        ({"interval_s": 60, "job": {"type": "t", "run_at": "2030-01-01T00:00:00Z"}}, "job"),
    ],
)
async def test_a_wrong_schedule_is_refused_by_field(planner: Planner, about: dict[str, Any], field: str) -> None:
    with pytest.raises(WireError) as refused:
        await planner.create(**about)
    assert (refused.value.kind, refused.value.data["field"]) == ("invalid_params", field)


async def test_another_end_is_a_time_to_come_and_one_that_is_over_may_be_said_again(planner: Planner) -> None:
    schedule = await planner.create(interval_s=3_600)
    with pytest.raises(WireError) as refused:
        await planner.act(schedule, "update", ends_at="2020-01-01T00:00:00Z")
    told = refused.value
    assert (told.kind, told.reason, told.data["field"]) == ("conflict", "time.past", "ends_at")
    assert await planner.get(schedule) == schedule, "nothing was changed"
    run_sql(
        planner.mesh.dsn,
        f"update mcp.schedules set ends_at = '2020-01-01', next_fire_at = null where schedule_id = '{schedule['id']}'",
    )
    over = await planner.act(schedule, "update", ends_at="2020-01-01T01:00:00+01:00", missed="all")
    assert (over["ends_at"], over["missed"], over["next_fire_at"]) == ("2020-01-01T00:00:00Z", "all", None)


async def test_two_schedules_of_one_name_are_refused(planner: Planner) -> None:
    schedule = await planner.create(interval_s=60)
    with pytest.raises(WireError) as refused:
        await planner.create(interval_s=60, name=schedule["name"])
    assert (refused.value.data["reason"], refused.value.data["field"]) == ("schedule.name", "name")
    other = await planner.create(interval_s=60)
    with pytest.raises(WireError) as refused:
        await planner.wire.call("schedule.update", schedule_id=other["id"], name=schedule["name"])
    assert refused.value.data["reason"] == "schedule.name"


async def test_of_many_that_are_given_one_name_at_once_all_but_one_are_refused_by_reason(planner: Planner) -> None:
    schedules = [await planner.create(interval_s=3_600) for _ in range(12)]
    wanted = {"name": f"n{uuid.uuid4().hex}"}
    verbs = [planner.wire.call("schedule.update", schedule_id=each["id"], **wanted) for each in schedules]
    made = [planner.create(interval_s=3_600, **wanted) for _ in range(4)]
    answers = await asyncio.gather(*verbs, *made, return_exceptions=True)
    refused = [each for each in answers if isinstance(each, WireError)]
    assert len(refused) == len(answers) - 1
    assert {each.reason for each in refused} == {"schedule.name"}


async def test_what_could_not_be_asked_for_any_more_is_enqueued_as_it_was_planned(planner: Planner) -> None:
    schedule = await planner.create(interval_s=3_600)
    planned = f"""'{{"type": "t", "queue": "{planner.queue}", "unique_states": ["PENDING"]}}'"""
    run_sql(planner.mesh.dsn, f"update mcp.schedules set job = {planned} where schedule_id = '{schedule['id']}'")
    fired = await planner.wire.call("schedule.trigger", schedule_id=schedule["id"])
    assert [job["id"] for job in await planner.jobs()] == [fired["schedule"]["last_job_id"]]
