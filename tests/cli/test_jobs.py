"""`devmesh jobs`, `dead-letters`, `queues` and `workers`, as an operator meets them."""

from __future__ import annotations

import json
import re
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import devmesh
from tests.cli.stand_in import Asked, Said, as_json, stand_in
from tests.harness import Mesh

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(mesh: Mesh, tenant: str, tmp_path: Path) -> Command:
    settings = {"DEVMESH_URL": mesh.rest_url, "DEVMESH_API_KEY": tenant, "COLUMNS": "200"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return devmesh(tmp_path, *arguments, settings=settings)

    return run


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def enqueue(command: Command, count: int, queue: str, **more: Any) -> list[str]:
    specs = [{"type": "t", "queue": queue, **more}] * count
    return [job["id"] for job in answer(command("call", "job.enqueue_many", f"jobs={json.dumps(specs)}"))["jobs"]]


def fail_all(command: Command, queue: str) -> None:
    """A worker takes what waits and fails it for good."""
    name = f"name=w{uuid.uuid4().hex}"
    worker = answer(command("call", "worker.register", name, "capacity=1000"))["worker"]["id"]
    claimed = answer(command("call", "job.claim", f"worker_id={worker}", f"queues={queue}", "limit=1000"))["jobs"]
    reports = [{"job_id": job["id"], "attempt": job["attempt"], "error": "broken"} for job in claimed]
    answer(command("call", "job.fail", f"jobs={json.dumps(reports)}"))


def test_jobs_are_listed_shown_explained_and_cancelled(command: Command) -> None:
    queue = f"q{uuid.uuid4().hex}"
    job_id, other_id = enqueue(command, 2, queue)
    listed = command("jobs", "list", "--queue", queue)
    assert [job_id in listed.stdout, other_id in listed.stdout, "PENDING" in listed.stdout] == [True] * 3
    assert answer(command("jobs", "list", "--status", "FAILED", "--queue", queue, "--json"))["jobs"] == []
    assert command("jobs", "explain", job_id).stdout.startswith(
        "PENDING, no_worker: no ACTIVE worker is registered for"
    )
    assert answer(command("jobs", "cancel", job_id, "--json"))["job"]["status"] == "CANCELLED"
    shown = command("jobs", "show", job_id)
    assert "CANCELLED" in shown.stdout
    again = command("jobs", "cancel", str(uuid.uuid4()))
    assert (again.returncode, again.stderr.startswith("error: not_found")) == (1, True)


def test_a_dead_letter_whose_unique_key_is_another_s_stays_one_and_that_is_said(command: Command) -> None:
    queue, key = f"q{uuid.uuid4().hex}", uuid.uuid4().hex
    [first] = enqueue(command, 1, queue, max_retries=0, unique_key=key)
    fail_all(command, queue)
    [second] = enqueue(command, 1, queue, unique_key=key)
    for how, code in (([first], 1), (["--queue", queue], 0)):
        done = command("dead-letters", "replay", *how)
        assert (done.returncode, done.stdout.strip()) == (code, "replayed 0 dead letters")
        assert f"{first} stays a dead letter: job {second} of its unique key is under way" in done.stderr
    retried = command("jobs", "retry", first)
    assert (retried.returncode, "unique key" in retried.stderr) == (1, True)


def test_dead_letters_are_replayed_and_discarded_one_by_one_or_all(command: Command) -> None:
    queue = f"q{uuid.uuid4().hex}"
    ids = enqueue(command, 5, queue, max_retries=0)
    fail_all(command, queue)
    assert ids[0] in command("dead-letters", "list", "--queue", queue).stdout
    shown = command("dead-letters", "show", ids[0]).stdout
    assert [ids[0] in shown, "broken" in shown, "failed_at" in shown] == [True] * 3
    assert command("dead-letters", "replay", ids[0]).stdout.strip() == "replayed 1 dead letters"
    assert command("dead-letters", "show", ids[0]).stderr.startswith("error: not_found: there is no dead letter")
    assert answer(command("dead-letters", "replay", "--queue", queue, "--json")) == {"replayed": 4}
    fail_all(command, queue)
    assert answer(command("dead-letters", "discard", "--all", "--queue", queue, "--json")) == {"discarded": 5}
    assert command("dead-letters", "list", "--queue", queue).stdout.strip() == "no dead letters"
    refused = command("dead-letters", "discard")
    assert refused.returncode == 2
    assert "--all" in refused.stderr


def test_queues_are_paused_resumed_and_purged(command: Command) -> None:
    queue = f"q{uuid.uuid4().hex}"
    enqueue(command, 1_500, queue)
    assert "paused_at" in command("queues", "pause", queue, "--reason", "deploy").stdout
    [shown] = [each for each in answer(command("queues", "list", "--json"))["queues"] if each["queue"] == queue]
    assert (shown["waiting"], shown["reason"], shown["paused_at"] is not None) == (1_500, "deploy", True)
    assert answer(command("queues", "resume", queue, "--json"))["queue"]["paused_at"] is None
    [first_id] = enqueue(command, 1, f"{queue}-first")
    enqueue(command, 2, queue, depends_on=[first_id])
    assert "blocked" in command("queues", "list").stdout
    purged = command("queues", "purge", queue)
    assert (purged.stdout, purged.stderr) == (f"cancelled 1,502 jobs of {queue}\n", "")


@pytest.mark.parametrize(("verb", "done_word"), [("replay", "replayed"), ("discard", "discarded")])
def test_ids_that_are_no_dead_letters_are_named_and_the_others_are_done(
    command: Command, verb: str, done_word: str
) -> None:
    queue = f"q{uuid.uuid4().hex}"
    ids = enqueue(command, 2, queue, max_retries=0)
    fail_all(command, queue)
    strangers = sorted(str(uuid.uuid4()) for _ in range(12))
    done = command("dead-letters", verb, ids[0], ids[0].upper(), *strangers)
    assert (done.returncode, done.stdout.strip()) == (1, f"{done_word} 1 dead letters")
    [line] = done.stderr.splitlines()
    assert line == f"error: not_found: 12 of them are no dead letters: {', '.join(strangers[:10])}, …"
    assert command("dead-letters", verb, ids[0]).returncode == 1
    assert command("dead-letters", verb, ids[1]).returncode == 0


def test_a_job_that_runs_shows_that_it_was_asked_to_stop(command: Command) -> None:
    queue = f"q{uuid.uuid4().hex}"
    [job_id] = enqueue(command, 1, queue, backoff_ms=1_234)
    worker = answer(command("call", "worker.register", f"name=w{uuid.uuid4().hex}"))["worker"]["id"]
    answer(command("call", "job.claim", f"worker_id={worker}", f"queues={queue}"))
    assert re.search(r"is_cancel_requested +no +\n", command("jobs", "show", job_id).stdout)
    assert re.search(r"is_cancel_requested +yes +\n", command("jobs", "cancel", job_id).stdout)
    assert re.search(r"backoff_ms +1234 +\n", command("jobs", "show", job_id).stdout)


def test_several_jobs_are_cancelled_and_retried_whatever_becomes_of_the_others(command: Command) -> None:
    queue, stranger = f"q{uuid.uuid4().hex}", str(uuid.uuid4())
    running, *waiting = enqueue(command, 4, queue)
    worker = answer(command("call", "worker.register", f"name=w{uuid.uuid4().hex}"))["worker"]["id"]
    answer(command("call", "job.claim", f"worker_id={worker}", f"queues={queue}"))
    cancelled = command("jobs", "cancel", stranger, "rubbish", running, *waiting, waiting[0].upper(), "--reason", "why")
    assert cancelled.returncode == 1
    assert cancelled.stdout.splitlines() == [
        f"{running}  PROCESSING, asked to stop", *(f"{each}  CANCELLED" for each in waiting)
    ]  # fmt: skip
    unknown, senseless, last = cancelled.stderr.splitlines()
    assert unknown.startswith(f"{stranger}  not_found: ")
    assert senseless.startswith("rubbish  invalid_params: job_id")
    assert last == "error: 2 of 6 jobs were refused"
    retried = command("jobs", "retry", waiting[0], running, waiting[1], "--json")
    told = json.loads(retried.stdout)
    assert [(job["id"], job["status"]) for job in told["jobs"]] == [(each, "PENDING") for each in waiting[:2]]
    [refused] = told["refused"]
    assert (refused["id"], refused["message"].startswith("conflict")) == (running, True)
    assert retried.returncode == 1
    assert command("jobs", "cancel", *waiting).returncode == 0
    assert command("jobs", "cancel").returncode == 2


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("dead-letters", "replay", "--all"), "1,000 dead letters were replayed before"),
        (("dead-letters", "discard", "--queue", "q"), "1,000 dead letters were discarded before"),
        (("queues", "purge", "q"), "1,000 jobs of q were cancelled before"),
    ],
)
def test_what_was_done_of_many_is_told_whatever_came_between(
    tmp_path: Path, command: tuple[str, ...], told: str
) -> None:
    acts: list[Asked] = []

    def second_fails(asked: Asked) -> Said:
        if asked.path.endswith("/stats"):
            return as_json({"queues": [{"queue": "q", "waiting": 2_000, "limited": 0}]})
        acts.append(asked)
        ids = [str(number) for number in range(1_000)]
        done = {"purged": 1_000, "job_ids": ids, "up_to": "z", "after": "y"}
        return as_json(done) if len(acts) == 1 else as_json({"kind": "unavailable", "detail": "so it is"}, 503)

    with stand_in(second_fails) as url:
        done = devmesh(tmp_path, *command, settings={"DEVMESH_URL": url, "DEVMESH_API_KEY": "dm_x"})
    assert (len(acts), done.returncode, done.stdout) == (2, 3, "")
    assert done.stderr.splitlines()[:2] == [told, "error: unavailable: so it is"]


@pytest.mark.parametrize(("status", "kind", "code"), [(401, "unauthenticated", 1), (503, "unavailable", 3)])
def test_what_concerns_all_jobs_ends_a_command_about_many_and_what_was_done_is_told(
    tmp_path: Path, status: int, kind: str, code: int
) -> None:
    asked_of: list[str] = []

    def second_fails(asked: Asked) -> Said:
        asked_of.append(asked.path.split("/")[-2])
        job = {"id": asked_of[-1], "status": "PENDING", "is_cancel_requested": False}
        return as_json({"job": job}) if len(asked_of) == 1 else as_json({"kind": kind, "detail": "so it is"}, status)

    with stand_in(second_fails) as url:
        settings = {"DEVMESH_URL": url, "DEVMESH_API_KEY": "dm_x"}
        done = devmesh(tmp_path, "jobs", "retry", "a", "b", "c", "d", settings=settings)
    assert (asked_of, done.returncode, done.stdout) == (["a", "b"], code, "a  PENDING\n")
    assert "3 of 4 jobs were not come to" in done.stderr
    assert f"error: {kind}: so it is" in done.stderr


def test_what_is_not_all_says_so(tmp_path: Path) -> None:
    execution = {"attempt": 1, "outcome": "FAILED"}

    def long_story(asked: Asked) -> Said:
        found = {"job": {"id": "x", "is_cancel_requested": False}, "executions": [execution]}
        if "many" in asked.path:
            found["next_cursor"] = "1" * 32
        return as_json(found if "executions" in asked.path else {"jobs": [], "next_cursor": "0" * 32})

    with stand_in(long_story) as url:
        settings = {"DEVMESH_URL": url, "DEVMESH_API_KEY": "dm_x"}
        assert f"more: --cursor {'1' * 32}" in devmesh(tmp_path, "jobs", "show", "many", settings=settings).stdout
        assert "more" not in devmesh(tmp_path, "jobs", "show", "few", settings=settings).stdout
        listed = devmesh(tmp_path, "jobs", "list", "--status", "FAILED", settings=settings).stdout
    assert listed.splitlines() == ["no jobs on this page", f"more: --cursor {'0' * 32}"]


def test_what_others_write_neither_begins_lines_nor_steers_the_terminal(command: Command) -> None:
    queue = f"q{uuid.uuid4().hex}"
    reason = "\x1b[2J" + "x" * 300 + "\nprocessing  0"
    shown = command("queues", "pause", queue, "--reason", reason).stdout
    assert f"\\u001b[2J{'x' * 300}\\nprocessing  0" in shown
    assert "\x1b" not in shown
    assert f"\\u001b[2J{'x' * 300}\\nprocessing  0" in command("queues", "list").stdout
    [job_id] = enqueue(command, 1, queue)
    assert command("jobs", "explain", job_id).stdout.count("\n") == 1
    assert answer(command("queues", "list", "--json"))["queues"][0]["reason"] == reason


def test_a_purge_ends_though_somebody_goes_on_enqueueing(tmp_path: Path) -> None:
    left = [1_000, 1_000, 7, *[1] * 20]

    def busy_queue(asked: Asked) -> Said:
        return as_json({"queues": []} if asked.path.endswith("/stats") else {"queue": {}, "purged": left.pop(0)})

    with stand_in(busy_queue) as url:
        done = devmesh(tmp_path, "queues", "purge", "q", settings={"DEVMESH_URL": url, "DEVMESH_API_KEY": "dm_x"})
    assert (done.stdout.strip(), len(left)) == ("cancelled 2,007 jobs of q", 20)


@pytest.mark.parametrize("verb", ["replay", "discard"])
def test_many_dead_letters_are_those_there_were_when_the_command_began(tmp_path: Path, verb: str) -> None:
    """However many fail again meanwhile."""
    asked_between = []

    def failing_jobs(asked: Asked) -> Said:
        asked_between.append((asked.params.get("after"), asked.params.get("up_to")))
        after = f"{len(asked_between)}" if len(asked_between) < 3 else None
        said = {"job_ids": ["x"] * (len(asked_between) % 2), "up_to": "0" * 32, "after": after}
        return as_json(said, 200 if len(asked_between) < 6 else 500)

    with stand_in(failing_jobs) as url:
        settings = {"DEVMESH_URL": url, "DEVMESH_API_KEY": "dm_x"}
        done = devmesh(tmp_path, "dead-letters", verb, "--all", settings=settings)
    assert (done.returncode, asked_between) == (0, [(None, None), ("1", "0" * 32), ("2", "0" * 32)])
    assert done.stdout.strip().endswith(" 2 dead letters"), "a step in which all were refused is not the last"


@pytest.mark.parametrize("name", ["eu/images", "eu/pause", "eu/"])
def test_a_queue_s_name_may_hold_slashes(command: Command, name: str) -> None:
    queue = f"q{uuid.uuid4().hex}/{name}"
    enqueue(command, 3, queue)
    assert answer(command("queues", "pause", queue, "--json"))["queue"]["paused_at"] is not None
    assert answer(command("queues", "resume", queue, "--json"))["queue"]["paused_at"] is None
    assert answer(command("queues", "limit", queue, "5", "--json"))["queue"]["rate_per_s"] == 5
    assert answer(command("queues", "purge", queue, "--json")) == {"purged": 3}


def test_workers_are_listed_and_emptied(command: Command) -> None:
    queue = f"q{uuid.uuid4().hex}"
    enqueue(command, 3, queue)
    worker = answer(command("call", "worker.register", f"name=w{uuid.uuid4().hex}"))["worker"]["id"]
    answer(command("call", "job.claim", f"worker_id={worker}", f"queues={queue}", "limit=3"))
    assert worker in command("workers", "list").stdout
    assert worker in command("workers", "list", "--status", "ACTIVE", "--status", "FAILED").stdout
    assert worker not in command("workers", "list", "--status", "DRAINING").stdout
    assert command("workers", "list", "--status", "nonsense").returncode == 2
    assert "3 jobs wait for others" in command("workers", "evacuate", worker, "--reason", "maintenance").stdout


def test_schedules_are_added_shown_triggered_paused_and_deleted(command: Command) -> None:
    queue = f"q{uuid.uuid4().hex}"
    added = command(
        "schedules", "add", "nightly run", "--type", "report", "--cron", "0 2 * * *", "--queue", queue, "--json"
    )
    schedule = answer(added)["schedule"]
    assert "nightly run" in command("schedules", "list").stdout
    shown = command("schedules", "show", "nightly run")
    assert [schedule["id"] in shown.stdout, "next: " in shown.stdout] == [True] * 2
    assert "job " in command("schedules", "trigger", "nightly run").stdout
    assert len(answer(command("jobs", "list", "--queue", queue, "--json"))["jobs"]) == 1
    assert answer(command("schedules", "pause", schedule["id"], "--json"))["schedule"]["next_fire_at"] is None
    assert "paused; if it were resumed now: " in command("schedules", "show", "nightly run").stdout
    assert answer(command("schedules", "resume", schedule["id"], "--json"))["schedule"]["next_fire_at"] is not None
    assert command("schedules", "delete", "nightly run").returncode == 0
    gone = command("schedules", "show", "nightly run")
    assert (gone.returncode, gone.stderr.startswith("error: not_found: there is no schedule")) == (1, True)
    wrong = command("schedules", "add", "x", "--type", "t", "--interval-s", "60", "--payload", "{")
    assert (wrong.returncode, "no JSON" in wrong.stderr) == (2, True)


def test_a_queue_s_rate_is_set_and_a_job_is_retried(command: Command) -> None:
    queue = f"q{uuid.uuid4().hex}"
    [job_id] = enqueue(command, 1, queue, max_retries=0)
    assert answer(command("queues", "limit", queue, "5", "--json"))["queue"]["rate_per_s"] == 5
    assert [command("queues", "limit", queue, *wrong).returncode for wrong in ([], ["many"])] == [2, 2]
    assert answer(command("queues", "limit", queue, "off", "--json"))["queue"]["rate_per_s"] is None
    fail_all(command, queue)
    assert answer(command("jobs", "retry", job_id, "--json"))["job"]["status"] == "PENDING"
    assert command("jobs", "retry", job_id).stderr.startswith("error: conflict")


def test_the_health_of_workers_is_shown(command: Command) -> None:
    worker = answer(command("call", "worker.register", f"name=w{uuid.uuid4().hex}"))["worker"]["id"]
    for usage in (0.3, 0.3, 0.3, 0.31, 0.3, 0.9):
        answer(
            command("call", "worker.heartbeat", f"worker_id={worker}", f"metrics={json.dumps({'cpu_usage': usage})}")
        )
    shown = command("workers", "health", worker)
    assert ["heartbeat" in shown.stdout, "health_score" in shown.stdout] == [True] * 2
    assert answer(command("workers", "predict", worker, "--json"))["recommendation"] == "CONTINUE"
    assert "CONTINUE" in command("workers", "predict", worker).stdout
    assert "cpu_usage" in command("workers", "anomalies", worker).stdout
    assert worker in command("workers", "optimal").stdout
    assert answer(command("workers", "alerts", "--worker", worker, "--json"))["alerts"] == []


def test_snapshots_are_taken_shown_and_put_back(command: Command) -> None:
    [job_id] = enqueue(command, 1, f"q{uuid.uuid4().hex}")
    snapshot = answer(command("snapshots", "create", "--reason", "first", "--json"))["snapshot"]
    assert "first" in command("snapshots", "list").stdout
    assert job_id in command("snapshots", "show", snapshot["id"]).stdout
    assert command("snapshots", "restore", snapshot["id"]).stdout.startswith("put back nothing from snapshot")
    assert command("snapshots", "restore").returncode == 2
    tried = command("snapshots", "restore", snapshot["id"], "--on-conflict", "overwrite", "--dry-run")
    assert tried.stdout.startswith("nothing was put back yet from snapshot")
    assert command("snapshots", "restore", snapshot["id"], "--cursor", "6a").returncode == 2
    assert "every 60 s" in command("snapshots", "auto", "60").stdout
    assert "every 60 s, 24 are kept" in command("snapshots", "auto").stdout, "they are not ended by what was forgotten"
    assert "--keep goes with an interval" in command("snapshots", "auto", "off", "--keep", "3").stderr
    assert "no snapshots" in command("snapshots", "auto", "off").stdout
    assert "no snapshots" in command("snapshots", "auto").stdout
    assert command("snapshots", "delete", snapshot["id"]).returncode == 0


def test_contexts_are_listed_searched_and_deleted(command: Command) -> None:
    context = answer(command("call", "context.store", "type=t", "text=the invoices of march were summed"))["context"][
        "id"
    ]
    assert context in command("contexts", "list").stdout
    found = command("contexts", "search", "sum the invoices")
    assert [context in found.stdout, "searched by text" in found.stdout] == [True] * 2
    assert context not in command("contexts", "search", "sum the mails", "--min-score", "0.9").stdout
    refused = command("contexts", "search", "sum the invoices", "--by", "vector")
    assert "DEVMESH_EMBEDDER" in refused.stderr
    assert command("contexts", "delete", context).returncode == 0
    assert command("contexts", "show", context).stderr.startswith("error: not_found")
