"""J8 to J14: the health of workers through the wire, on a mesh that looks often."""

from __future__ import annotations

import asyncio
import datetime
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import run_sql
from tests.harness import Mesh, eventually
from tests.scenarios.jobs import Bench, held, register
from tests.wire import Wire, WireError

INTERVAL_S = 0.5


class Ward:
    """A worker that beats every half second, for as long as it is told to."""

    def __init__(self, wire: Wire, worker_id: str) -> None:
        self.wire, self.worker_id = wire, worker_id
        self._beating: asyncio.Task[None] | None = None

    async def beat(self, **about: Any) -> dict[str, Any]:
        answer = await self.wire.call("worker.heartbeat", worker_id=self.worker_id, **about)
        worker: dict[str, Any] = answer["worker"]
        return worker

    def start(self) -> None:
        async def forever() -> None:
            while True:
                await self.beat(metrics={"cpu_usage": 0.3})
                await asyncio.sleep(INTERVAL_S)

        self._beating = asyncio.create_task(forever())

    async def stop(self) -> None:
        assert self._beating is not None
        self._beating.cancel()
        await asyncio.gather(self._beating, return_exceptions=True)

    async def health(self, **about: Any) -> dict[str, Any]:
        return dict(await self.wire.call("worker.health", worker_id=self.worker_id, **about))

    async def worker(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.health())["worker"]
        return found

    async def alerts(self, **about: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.wire.call("worker.alerts", worker_id=self.worker_id, **about))[
            "alerts"
        ]
        return found


@pytest.fixture
async def ward(bench: Bench) -> Ward:
    return Ward(bench.wire, await register(bench.wire, heartbeat_interval_s=INTERVAL_S, queues=[bench.queue]))


async def test_j08_each_heartbeat_is_noted(ward: Ward) -> None:
    ward.start()

    async def has_three() -> bool:
        return len((await ward.health())["log"]) >= 3

    await eventually(has_three, "three heartbeats are noted", within_s=2.5)
    await ward.stop()
    shown = await ward.health()
    latest = datetime.datetime.fromisoformat(shown["log"][0]["at"])
    heard = datetime.datetime.fromisoformat(shown["worker"]["heartbeat_at"])
    assert abs((latest - heard).total_seconds()) < 1
    assert {entry["kind"] for entry in shown["log"]} == {"heartbeat"}
    assert shown["log"][0]["metrics"] == {"cpu_usage": 0.3}
    assert (shown["worker"]["health_score"], shown["worker"]["status"]) == (1.0, "ACTIVE")


async def test_j09_j10_j11_a_silent_worker_is_noted_given_up_and_comes_back(bench: Bench, ward: Ward) -> None:
    job = await bench.enqueue(max_retries=1, backoff_ms=1)
    [claimed] = await bench.claim(worker_id=ward.worker_id, lease_s=600)
    await ward.beat()

    async def is_unwell() -> bool:
        return bool((await ward.worker())["health_score"] < 0.7)

    await eventually(is_unwell, "J9: the missed heartbeat shows in its health", within_s=5)
    [missed] = [alert for alert in await ward.alerts() if alert["kind"] == "MISSED_HEARTBEAT"]
    assert missed["severity"] >= 3
    assert missed["cleared_at"] is None

    async def is_given_up() -> bool:
        return bool((await ward.worker())["status"] == "FAILED")

    await eventually(is_given_up, "J10: it is given up", within_s=5)
    failed = await ward.worker()
    assert (failed["failure_count"], failed["last_failure_at"] is not None) == (1, True)
    assert "not heard of" in failed["reason"]
    assert {alert["kind"] for alert in await ward.alerts(only_open=True)} == {"MISSED_HEARTBEAT", "WORKER_FAILED"}
    with pytest.raises(WireError) as refused:
        await bench.claim(worker_id=ward.worker_id)
    assert "heartbeat makes it ACTIVE" in refused.value.message
    [again] = await bench.claim(wait_ms=5_000)
    assert (again["id"], again["attempt"]) == (job["id"], 2), (
        "its jobs are given to others at once, though their leases last"
    )
    with pytest.raises(WireError) as refused:
        await bench.wire.call("job.complete", jobs=[held(claimed)])
    assert refused.value.data["reason"] == "job.stale_attempt"

    back = await ward.beat()
    assert (back["status"], back["health_score"] > 0.9, back["missed_beats"]) == ("ACTIVE", True, 0)
    assert (await ward.health())["log"][0]["kind"] == "recovered", "J11"
    assert await ward.alerts(only_open=True) == []
    kinds = {entry["kind"] for entry in (await ward.health())["log"]}
    assert kinds == {"heartbeat", "missed", "failed", "recovered"}


async def test_a_worker_whose_leases_are_renewed_or_that_claims_is_heard_of(bench: Bench, ward: Ward) -> None:
    await bench.enqueue()
    [claimed] = await bench.claim(worker_id=ward.worker_id)
    other = Ward(bench.wire, await register(bench.wire, heartbeat_interval_s=INTERVAL_S, queues=[bench.queue]))
    given_up = Ward(bench.wire, await register(bench.wire, heartbeat_interval_s=INTERVAL_S, queues=[bench.queue]))

    async def is_given_up() -> bool:
        await bench.wire.call("job.heartbeat", jobs=[held(claimed)])
        assert await bench.claim(worker_id=other.worker_id) == []
        return bool((await given_up.worker())["status"] == "FAILED")

    await eventually(is_given_up, "a third is given up meanwhile")
    assert [(await each.worker())["status"] for each in (ward, other)] == ["ACTIVE", "ACTIVE"]


@pytest.mark.parametrize("since", ["20 hours", "50 hours", "400 days"])
async def test_a_worker_is_well_however_long_nothing_failed(mesh: Mesh, bench: Bench, ward: Ward, since: str) -> None:
    """What has been halved a thousand times is less than any number that there is."""
    job = await bench.enqueue(max_retries=0)
    [claimed] = await bench.claim(worker_id=ward.worker_id)
    long_ago = f"set failure_level_at = now() - interval '{since}', failure_level = 3"
    run_sql(mesh.dsn, f"update mcp.workers {long_ago} where worker_id = '{ward.worker_id}'")
    assert (await ward.beat())["health_score"] == 1
    await bench.wire.call("job.fail", jobs=[held(claimed, error="no luck")])
    assert await bench.is_now(job, "FAILED")
    assert (await ward.beat())["health_score"] < 1
    run_sql(mesh.dsn, f"update mcp.workers {long_ago} where worker_id = '{ward.worker_id}'")

    async def is_given_up() -> bool:
        return bool((await ward.worker())["status"] == "FAILED")

    await eventually(is_given_up, "its silence is noticed")


async def test_a_late_beat_says_nothing_of_a_worker_that_stays_active(ward: Ward) -> None:
    await eventually(ward.alerts, "a beat is missed")
    late = await ward.worker()
    assert (late["status"] == "DEGRADED") == bool(late["reason"]), "two beats on a machine that is slow"
    back = await ward.beat()
    assert (back["status"], back["reason"]) == ("ACTIVE", "")


async def test_a_worker_that_leaves_leaves_no_alert(ward: Ward) -> None:
    await eventually(lambda: ward.alerts(only_open=True), "a beat is missed")
    await ward.wire.call("worker.deregister", worker_id=ward.worker_id)
    assert await ward.alerts(only_open=True) == []


async def test_workers_that_have_gone_long_ago_are_forgotten_unless_they_hold_something(
    mesh: Mesh, bench: Bench
) -> None:
    gone, left, holding, there = [
        Ward(bench.wire, await register(bench.wire, heartbeat_interval_s=3_600, queues=[bench.queue])) for _ in range(4)
    ]
    await bench.enqueue()
    assert await bench.claim(worker_id=holding.worker_id)
    await bench.wire.call("worker.deregister", worker_id=left.worker_id)
    ids = ", ".join(f"'{each.worker_id}'" for each in (gone, left, holding))
    run_sql(
        mesh.dsn,
        f"update mcp.workers set status = 'FAILED' where worker_id in ({ids}) and status = 'ACTIVE';"
        f"update mcp.workers set heartbeat_at = now() - interval '8 days' where worker_id in ({ids})",
    )

    async def are_left() -> set[str]:
        return {each["id"] for each in (await bench.wire.call("worker.list", limit=100))["workers"]}

    async def are_forgotten() -> bool:
        return not {gone.worker_id, left.worker_id} & await are_left()

    await eventually(are_forgotten, "they are forgotten")
    assert {holding.worker_id, there.worker_id} <= await are_left()


async def test_one_tenant_s_trouble_keeps_no_other_s_workers_from_being_missed(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api", "mcp-server")
    async with (
        await Wire.connect(mesh.ws_url, mesh.new_tenant()) as wire,
        await Wire.connect(mesh.ws_url, mesh.new_tenant()) as other,
    ):
        troubled = Ward(wire, await register(wire, heartbeat_interval_s=INTERVAL_S))
        gone = Ward(other, await register(other, heartbeat_interval_s=7.0))  # longer than the watch bears with a gap
        run_sql(
            mesh.dsn,
            "create function public.refuse() returns trigger language plpgsql as "
            "$$ begin raise exception 'this row cannot be written'; end $$; "
            "create trigger refuse before update on mcp.workers for each row "
            f"when (old.worker_id = '{troubled.worker_id}') execute function public.refuse()",
        )
        mesh.start("worker")

        async def is_missed() -> bool:
            return bool(await gone.alerts(only_open=True))

        await eventually(is_missed, "the other's silence is noticed")


async def test_j12_falling_scores_are_foretold_as_a_failure(ward: Ward) -> None:
    for step in range(10):
        await ward.beat(health_score=1.0 - 0.7 * step / 9)
    found = await ward.wire.call("worker.predict", worker_id=ward.worker_id)
    assert found["probability"] > 0.7
    assert found["time_to_failure_s"] < 3_600
    assert (found["recommendation"], found["samples"]) == ("PREEMPTIVE_RESTART", 10)
    assert (await ward.worker())["status"] == "DEGRADED", "by its own word"
    assert (await ward.beat())["status"] == "ACTIVE"


async def test_no_failure_is_foretold_of_a_worker_that_was_restarted_because_of_one(ward: Ward) -> None:
    for score in (1.0, 0.6, 0.1):
        await ward.beat(health_score=score)
    name = (await ward.worker())["name"]
    assert (await ward.wire.call("worker.predict", worker_id=ward.worker_id))["recommendation"] == "PREEMPTIVE_RESTART"
    again = (await ward.wire.call("worker.register", name=name))["worker"]
    assert (again["id"], again["status"], again["health_score"]) == (ward.worker_id, "ACTIVE", 1.0)
    found = await ward.wire.call("worker.predict", worker_id=ward.worker_id)
    assert (found["health_score"], found["probability"], found["recommendation"]) == (1.0, 0.0, "CONTINUE")
    latest = (await ward.health())["log"][0]
    assert (latest["kind"], latest["health_score"]) == ("heartbeat", 1.0)


@pytest.mark.parametrize(("score", "probability", "recommendation"), [(0.7, 0.3, "CONTINUE"), (0.3, 0.7, "WATCH")])
async def test_what_is_foretold_as_the_bound_is_not_above_it(
    ward: Ward, score: float, probability: float, recommendation: str
) -> None:
    await ward.beat(health_score=score)
    found = await ward.wire.call("worker.predict", worker_id=ward.worker_id)
    assert (found["probability"], found["recommendation"]) == (probability, recommendation)


async def test_a_worker_is_found_at_the_load_and_the_health_that_it_has(bench: Bench, ward: Ward) -> None:
    await ward.beat(health_score=0.57)
    await bench.wire.call("job.enqueue_many", jobs=[{"type": "t", "queue": bench.queue}] * 29)
    assert len(await bench.claim(worker_id=ward.worker_id, limit=29)) == 29
    for max_load, min_health, count in ((0.29, 0.57, 1), (0.28, 0.57, 0), (0.29, 0.571, 0)):
        asked = {"min_health": min_health, "max_load": max_load, "queue": bench.queue}
        assert len((await bench.wire.call("worker.optimal", **asked))["workers"]) == count


async def test_silence_makes_an_unwell_worker_no_healthier(ward: Ward) -> None:
    for step in range(10):
        await ward.beat(health_score=0.3 - step / 90)

    await eventually(ward.alerts, "a beat is missed")
    assert (await ward.worker())["health_score"] < 0.2
    found = await ward.wire.call("worker.predict", worker_id=ward.worker_id)
    assert (found["health_score"] < 0.2, found["recommendation"]) == (True, "PREEMPTIVE_RESTART")


async def test_a_worker_whose_jobs_have_all_failed_recovers_with_its_next_heartbeat(bench: Bench, ward: Ward) -> None:
    await bench.wire.call(
        "job.enqueue_many", jobs=[{"type": "t", "queue": bench.queue, "max_retries": 0} for _ in range(60)]
    )
    failed = 0
    while claimed := await bench.claim(worker_id=ward.worker_id, limit=5):
        await bench.wire.call("job.fail", jobs=[{**held(job), "error": "no luck"} for job in claimed])
        failed += len(claimed)
    assert failed == 60
    unwell = await ward.beat(health_score=0.3)
    assert (unwell["status"], unwell["reason"]) == ("DEGRADED", "its health score came down to 0.30")
    waiting = await bench.enqueue()
    await bench.wire.call("worker.deregister", worker_id=bench.worker_id)
    explained = (await bench.wire.call("job.explain", job_id=waiting["id"]))["explanation"]
    assert explained["reason"] == "no_worker"
    assert explained["explanation"].endswith("is DEGRADED: its health score came down to 0.30")
    again = await ward.beat()
    assert (again["status"], again["reason"]) == ("ACTIVE", "")


async def test_j13_metrics_out_of_line_are_named(ward: Ward) -> None:
    for step in range(10):
        await ward.beat(metrics={"cpu_usage": 0.3 + step / 100, "memory_usage": 0.5 + step % 2 / 100})
    await ward.beat(metrics={"cpu_usage": 0.95, "memory_usage": 0.5})
    found = await ward.wire.call("worker.anomalies", worker_id=ward.worker_id)
    [worst, *_] = found["anomalies"]
    assert (worst["metric"], found["samples"]) == ("cpu_usage", 11)
    assert worst["severity"] >= 3
    assert worst["score"] > 2


async def test_heartbeats_without_metrics_hide_none_that_were_out_of_line(ward: Ward) -> None:
    for value in (*[0.3, 0.4] * 5, 0.95):
        await ward.beat(metrics={"cpu_usage": value})
    before = await ward.wire.call("worker.anomalies", worker_id=ward.worker_id)
    assert ([each["metric"] for each in before["anomalies"]], before["samples"]) == (["cpu_usage"], 11)
    for _ in range(100):
        await ward.beat()
    assert await ward.wire.call("worker.anomalies", worker_id=ward.worker_id) == before


async def test_j14_the_healthy_worker_is_the_best_at_any_minimum(bench: Bench, ward: Ward) -> None:
    unwell = Ward(bench.wire, await register(bench.wire, queues=[bench.queue]))
    await ward.beat(health_score=1.0)
    await unwell.beat(health_score=0.5)
    await bench.enqueue()
    assert len(await bench.claim(worker_id=ward.worker_id)) == 1
    for min_health, max_load, ids in (
        (0.7, 0.9, [ward.worker_id]), (0.3, 0.9, [ward.worker_id, unwell.worker_id]), (0.3, 0.005, [unwell.worker_id])
    ):  # fmt: skip
        found = await bench.wire.call("worker.optimal", min_health=min_health, max_load=max_load, queue=bench.queue)
        assert [each["id"] for each in found["workers"]] == ids
        assert found["worker"]["id"] == ids[0]
    none = await bench.wire.call("worker.optimal", queue=f"q{uuid.uuid4().hex}")
    assert none == {"worker": None, "workers": []}


@pytest.mark.parametrize(
    ("about", "field", "told"),
    [
        ({"metrics": {"load": 1, "cpu": "high"}}, "metrics.cpu", "metrics.cpu: Expected `float`, got `str`"),
        ({"metrics": {"load": 1, "cpu": 1e300}}, "metrics.cpu", "metrics.cpu: Expected `float` <= 1000000000000000.0"),
        ({"metrics": {"load": 1, "cpu usage": 1}}, "metrics.cpu usage", "metrics.cpu usage: as a name, expected"),
        ({"metrics": {"": 1}}, "metrics.", "metrics.: as a name, expected `str` of length >= 1"),
        ({"metrics": {f"m{n}": 1 for n in range(51)}}, "metrics", "metrics: Expected `object` of length <= 50"),
        ({"health_score": 1.5}, "health_score", "health_score: Expected `float` <= 1.0"),
    ],
)
async def test_wrong_metrics_are_refused_by_name(ward: Ward, about: dict[str, Any], field: str, told: str) -> None:
    with pytest.raises(WireError) as refused:
        await ward.beat(**about)
    assert (refused.value.kind, refused.value.data["field"]) == ("invalid_params", field)
    assert refused.value.message.startswith(told)


async def test_another_tenant_s_worker_is_not_there(mesh: Mesh, ward: Ward) -> None:
    async with await Wire.connect(mesh.ws_url, mesh.new_tenant()) as stranger:
        for name in ("health", "predict", "anomalies", "alerts", "heartbeat"):
            with pytest.raises(WireError) as refused:
                await stranger.call(f"worker.{name}", worker_id=ward.worker_id)
            assert refused.value.kind == "not_found"


async def test_an_emptied_worker_stays_so_however_long_it_is_silent(mesh: Mesh, bench: Bench, ward: Ward) -> None:
    """It is rebooted, perhaps: its next heartbeat must not put it back to work."""
    other = Ward(bench.wire, await register(bench.wire, heartbeat_interval_s=INTERVAL_S, queues=[bench.queue]))
    await bench.wire.call("worker.evacuate", worker_id=ward.worker_id, reason="maintenance")
    ids = f"'{ward.worker_id}', '{other.worker_id}'"
    run_sql(mesh.dsn, f"update mcp.workers set heartbeat_at = now() - interval '1 hour' where worker_id in ({ids})")

    async def is_given_up() -> bool:
        return bool((await other.worker())["status"] == "FAILED")

    await eventually(is_given_up, "another that is as silent is given up")
    assert (await ward.worker())["status"] == "DRAINING"
    back = await ward.beat()
    assert (back["status"], back["reason"]) == ("DRAINING", "maintenance")


async def test_a_worker_is_given_up_when_it_said_so_also_before_its_next_heartbeat_is_due(bench: Bench) -> None:
    ward = Ward(bench.wire, await register(bench.wire, stale_after_s=0.5))
    assert (await ward.worker())["heartbeat_interval_s"] == 30
    job = await bench.enqueue(backoff_ms=0)
    [claimed] = await bench.claim(worker_id=ward.worker_id, lease_s=600)

    async def is_given_up() -> bool:
        return bool((await ward.worker())["status"] == "FAILED")

    await eventually(is_given_up, "it is given up", within_s=10)
    assert [(alert["kind"], alert["severity"]) for alert in await ward.alerts(only_open=True)] == [("WORKER_FAILED", 5)]
    [again] = await bench.claim()
    assert (again["id"], again["attempt"]) == (job["id"], claimed["attempt"] + 1)
    assert (await ward.beat())["status"] == "ACTIVE"
    assert await ward.alerts(only_open=True) == []


async def test_who_could_not_be_heard_is_not_given_up(own_mesh: Callable[..., Mesh]) -> None:
    """Nobody watched for an hour, as while the database is away: a worker has the time of a heartbeat to come back."""
    mesh = own_mesh("rest-api", "mcp-server")
    async with await Wire.connect(mesh.ws_url, mesh.new_tenant()) as wire:
        ward, gone = [Ward(wire, await register(wire, heartbeat_interval_s=each)) for each in (10.0, INTERVAL_S)]
        run_sql(mesh.dsn, "update mcp.workers set heartbeat_at = now() - interval '1 hour'")
        mesh.start("worker")

        async def is_given_up() -> bool:
            return bool((await gone.worker())["status"] == "FAILED")

        await eventually(is_given_up, "who does not come back is given up", within_s=5)
        assert (await ward.worker())["status"] == "ACTIVE"
        assert (await ward.beat())["failure_count"] == 0


async def test_a_worker_that_claims_after_it_has_missed_a_beat_is_well_again(bench: Bench) -> None:
    ward = Ward(bench.wire, await register(bench.wire, heartbeat_interval_s=1, queues=[bench.queue]))
    await eventually(lambda: ward.alerts(only_open=True), "a beat is missed")

    async def is_well() -> bool:
        assert await bench.claim(worker_id=ward.worker_id) == []
        return not await ward.alerts(only_open=True)

    await eventually(is_well, "it was heard of")
    shown = await ward.health()
    assert (shown["worker"]["missed_beats"], shown["worker"]["health_score"]) == (0, 1)
    assert shown["log"][0]["kind"] == "recovered"


async def test_a_worker_that_its_silence_alone_has_degraded_is_as_well_as_it_was_before(bench: Bench) -> None:
    ward = Ward(bench.wire, await register(bench.wire, heartbeat_interval_s=INTERVAL_S, stale_after_s=60))
    await ward.beat(health_score=0.6)

    async def is_degraded() -> bool:
        return bool((await ward.worker())["status"] == "DEGRADED")

    await eventually(is_degraded, "it is silent")
    await ward.beat(health_score=0.6)
    assert (await ward.worker())["status"] == "ACTIVE"
    await ward.beat(health_score=0.4)
    await ward.beat(health_score=0.6)
    assert (await ward.worker())["status"] == "DEGRADED", "its own word takes more to be taken back"


async def test_a_silent_worker_that_renews_a_lease_is_active_again_unless_it_is_unwell(bench: Bench) -> None:
    silent, unwell = [
        Ward(bench.wire, await register(bench.wire, heartbeat_interval_s=INTERVAL_S, stale_after_s=60))
        for _ in range(2)
    ]
    await bench.wire.call("job.enqueue_many", jobs=[{"type": "t", "queue": bench.queue}] * 2)
    leases = [held((await bench.claim(limit=1, worker_id=each.worker_id))[0]) for each in (silent, unwell)]
    await unwell.beat(health_score=0.3)

    async def are_degraded() -> bool:
        now = [await each.worker() for each in (silent, unwell)]
        return all(one["status"] == "DEGRADED" and one["missed_beats"] for one in now)

    await eventually(are_degraded, "both are silent")
    with pytest.raises(WireError) as refused:
        await bench.claim(worker_id=silent.worker_id)
    assert "heartbeat" in refused.value.message

    async def are_heard_of() -> bool:
        await bench.wire.call("job.heartbeat", jobs=leases)
        return not any([(await each.worker())["missed_beats"] for each in (silent, unwell)])

    await eventually(are_heard_of, "they renew their leases")
    worker, worse = (await silent.health())["worker"], await unwell.worker()
    assert (worker["status"], worker["reason"], worker["health_score"]) == ("ACTIVE", "", 1)
    assert (worse["status"], worse["health_score"]) == ("DEGRADED", 0.3)
    assert await silent.alerts(only_open=True) == await unwell.alerts(only_open=True) == []


async def test_a_worker_that_only_renews_its_leases_raises_no_alert_again_and_again(bench: Bench) -> None:
    about: dict[str, Any] = {"heartbeat_interval_s": INTERVAL_S, "stale_after_s": 60}
    ward = Ward(bench.wire, await register(bench.wire, queues=[bench.queue], **about))
    await bench.enqueue()
    [claimed] = await bench.claim(worker_id=ward.worker_id, lease_s=600)
    await eventually(ward.alerts, "its first heartbeat is missed")

    async def is_heard_of() -> bool:
        await bench.wire.call("job.heartbeat", jobs=[held(claimed)])
        return not await ward.alerts(only_open=True)

    await eventually(is_heard_of, "it renews its lease")
    silent_for_less = Ward(bench.wire, await register(bench.wire, **about))

    async def has_missed_two() -> bool:
        return bool((await silent_for_less.worker())["missed_beats"] >= 2)

    await eventually(has_missed_two, "another's silence is noticed")
    worker = await ward.worker()
    assert (worker["status"], worker["missed_beats"], worker["health_score"]) == ("ACTIVE", 0, 1)
    assert len(await ward.alerts()) == 1, "its lease says for how long nothing has to be heard of it"


async def test_a_process_leaves_for_itself_only(ward: Ward) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    name = f"w{uuid.uuid4().hex}"
    await ward.wire.call("worker.register", name=name, instance_id=first)
    worker = (await ward.wire.call("worker.register", name=name, instance_id=second))["worker"]
    with pytest.raises(WireError) as refused:
        await ward.wire.call("worker.deregister", worker_id=worker["id"], instance_id=first)
    assert refused.value.reason == "worker.instance"
    assert (await ward.wire.call("worker.get", worker_id=worker["id"]))["worker"]["status"] == "ACTIVE"
    left = await ward.wire.call("worker.deregister", worker_id=worker["id"], instance_id=second)
    assert left["worker"]["status"] == "TERMINATED"


async def test_a_process_that_leaves_takes_no_lease_from_others_of_its_name_that_renew_theirs(bench: Bench) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    about: dict[str, Any] = {"name": f"w{uuid.uuid4().hex}", "queues": [bench.queue]}
    await bench.wire.call("worker.register", instance_id=first, **about)
    worker_id = (await bench.wire.call("worker.register", instance_id=second, **about))["worker"]["id"]
    job = await bench.enqueue()
    [claimed] = await bench.claim(worker_id=worker_id)

    async def leave(instance_id: str) -> tuple[str, int]:
        left = await bench.wire.call(
            "worker.deregister", worker_id=worker_id, instance_id=instance_id, holds_nothing=True
        )
        return left["worker"]["status"], left["released"]

    async def is_renewed() -> bool:
        [renewed] = (await bench.wire.call("job.heartbeat", jobs=[held(claimed)]))["jobs"]
        before, now = [datetime.datetime.fromisoformat(each["lease_until"]) for each in (claimed, renewed)]
        return now > before + datetime.timedelta(seconds=0.2)

    await eventually(is_renewed, "a process renews its lease")
    assert await leave(second) == ("ACTIVE", 0)
    assert await bench.status(job) == "PROCESSING"
    await bench.wire.call("job.complete", jobs=[held(claimed)])
    await bench.enqueue()
    assert await bench.claim(worker_id=worker_id)
    assert await leave(first) == ("TERMINATED", 1), "nobody has renewed what was given out last"


async def test_a_process_that_says_that_it_holds_nothing_need_not_have_said_who_it_is(bench: Bench, ward: Ward) -> None:
    job = await bench.enqueue()
    [claimed] = await bench.claim(worker_id=ward.worker_id, lease_s=1.0)

    async def leave() -> tuple[str, int]:
        left = await bench.wire.call("worker.deregister", worker_id=ward.worker_id, holds_nothing=True)
        return left["worker"]["status"], left["released"]

    async def is_renewed() -> bool:
        [renewed] = (await bench.wire.call("job.heartbeat", jobs=[held(claimed)]))["jobs"]
        before, now = [datetime.datetime.fromisoformat(each["lease_until"]) for each in (claimed, renewed)]
        return now > before + datetime.timedelta(seconds=0.2)

    await eventually(is_renewed, "another process renews its lease")
    assert await leave() == ("ACTIVE", 0)
    assert await bench.status(job) == "PROCESSING"
    await bench.wire.call("job.complete", jobs=[held(claimed)])
    assert await leave() == ("TERMINATED", 0)
