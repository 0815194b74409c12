"""Jobs, dead letters and queues from the shell: tables, filters, and acts on many with a bar that shows how far."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from devmesh.cli.calling import AsJson, invoke
from devmesh.cli.console import Exit, Failure, note, print_json, say, visible
from devmesh.cli.listing import Cursor, Limit, print_page, print_thing
from devmesh.cli.services import DataDir
from devmesh.core.errors import Kind
from devmesh.core.jobs import Status

JOB_COLUMNS = (
    "id",
    "type",
    "queue",
    "status",
    "priority",
    "attempt",
    "retry_count",
    "worker_id",
    "run_at",
    "created_at",
)
JOB_FIELDS = (
    *JOB_COLUMNS, "payload", "tags", "unique_key", "concurrency_key", "concurrency_limit", "max_retries", "backoff_ms",
    "timeout_ms", "progress", "progress_message", "is_cancel_requested", "result", "error", "lease_until", "started_at",
    "finished_at",
)  # fmt: skip
EXECUTION_COLUMNS = ("attempt", "outcome", "worker_id", "started_at", "duration_ms", "error", "next_run_at")
LETTER_COLUMNS = ("job_id", "type", "queue", "attempt", "retry_count", "error", "failed_at")
LETTER_FIELDS = (*LETTER_COLUMNS, "priority", "created_at")
QUEUE_COLUMNS = (
    "queue",
    "waiting",
    "ready",
    "limited",
    "blocked",
    "processing",
    "rate_per_s",
    "oldest_ready_at",
    "paused_at",
    "reason",
)
STEP = 1_000  # of many, in one call
MISSING_SHOWN = 10
OF_ONE_JOB = (Kind.NOT_FOUND, Kind.CONFLICT, Kind.INVALID_PARAMS)  # refusals that say nothing about the next job

JobId = Annotated[str, typer.Argument(help="The job's id.", show_default=False)]
QueueName = Annotated[str, typer.Argument(help="The queue's name.", show_default=False)]
QueueFilter = Annotated[str | None, typer.Option("--queue", help="Only of this queue.")]
SomeJobIds = Annotated[list[str], typer.Argument(help="Jobs, by id.", show_default=False)]
JobIds = Annotated[list[str] | None, typer.Argument(help="Jobs, by id.", show_default=False)]
Every = Annotated[bool, typer.Option("--all", help="All of them, or all that the filters leave.")]
TypeFilter = Annotated[str | None, typer.Option("--type", help="Only of this type.")]

jobs = typer.Typer(help="Look at jobs, cancel or retry them, ask why they wait.", no_args_is_help=True)
dead_letters = typer.Typer(help="Look at jobs that failed for good; replay or discard them.", no_args_is_help=True)
queues = typer.Typer(help="Count, pause, resume, limit and purge queues.", no_args_is_help=True)


@jobs.command("list")
def list_jobs(
    status: Annotated[list[Status] | None, typer.Option(help="Only these; repeat it.")] = None,
    queue: QueueFilter = None,
    type_: TypeFilter = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List jobs, newest first."""
    asked = {"status": status or None, "queue": queue, "type": type_, "tag": tag, "limit": limit, "cursor": cursor}
    print_page(invoke("job.list", asked, data_dir), "jobs", JOB_COLUMNS, as_json)


@jobs.command("show")
def show_job(job_id: JobId, cursor: Cursor = None, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Show a job and the attempts that have ended."""
    answer = invoke("job.executions", {"job_id": job_id, "cursor": cursor}, data_dir)
    print_thing(answer, "job", JOB_FIELDS, as_json)
    if not as_json and answer["executions"]:
        print_page(answer, "executions", EXECUTION_COLUMNS, as_json)


@jobs.command("explain")
def explain_job(job_id: JobId, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Say why a job is not running."""
    answer = invoke("job.explain", {"job_id": job_id}, data_dir)
    if as_json:
        print_json(answer)
    else:
        found = answer["explanation"]
        typer.echo(visible(f"{found['status']}, {found['reason']}: {found['explanation']}"))


@jobs.command("cancel")
def cancel_jobs(
    job_ids: SomeJobIds,
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Cancel jobs. One that runs is asked to stop."""
    _act_on_each("cancel", job_ids, {"reason": reason}, as_json, data_dir)


@jobs.command("retry")
def retry_jobs(job_ids: SomeJobIds, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Have jobs that are FAILED or CANCELLED run again, with all their retries."""
    _act_on_each("retry", job_ids, {}, as_json, data_dir)


@dead_letters.command("list")
def list_dead_letters(
    queue: QueueFilter = None,
    type_: TypeFilter = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List dead letters, the latest failure first."""
    asked = {"queue": queue, "type": type_, "limit": limit, "cursor": cursor}
    print_page(invoke("dead_letter.list", asked, data_dir), "dead_letters", LETTER_COLUMNS, as_json)


@dead_letters.command("show")
def show_dead_letter(job_id: JobId, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Show the dead letter of a job."""
    print_thing(invoke("dead_letter.get", {"job_id": job_id}, data_dir), "dead_letter", LETTER_FIELDS, as_json)


@dead_letters.command("replay")
def replay(
    job_ids: JobIds = None,
    every: Every = False,
    queue: QueueFilter = None,
    type_: TypeFilter = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Put dead letters back into their queues, to run at once with all their retries."""
    _act_on_many("replay", "replayed", job_ids or [], every, {"queue": queue, "type": type_}, as_json, data_dir)


@dead_letters.command("discard")
def discard(
    job_ids: JobIds = None,
    every: Every = False,
    queue: QueueFilter = None,
    type_: TypeFilter = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Forget dead letters. Their jobs stay FAILED."""
    _act_on_many("discard", "discarded", job_ids or [], every, {"queue": queue, "type": type_}, as_json, data_dir)


@queues.command("list")
def list_queues(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Count what waits and what runs in each queue."""
    print_page(invoke("job.stats", {}, data_dir), "queues", QUEUE_COLUMNS, as_json)


@queues.command("pause")
def pause(
    queue: QueueName,
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Give out nothing of a queue any more. What runs goes on."""
    answer = invoke("queue.pause", {"queue": queue, "reason": reason}, data_dir)
    print_thing(answer, "queue", QUEUE_COLUMNS, as_json)


@queues.command("resume")
def resume(queue: QueueName, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Give out jobs of a queue again."""
    print_thing(invoke("queue.resume", {"queue": queue}, data_dir), "queue", QUEUE_COLUMNS, as_json)


@queues.command("limit")
def limit_queue(
    queue: QueueName,
    rate_per_s: Annotated[
        str, typer.Argument(metavar="RATE|off", help="Jobs a second; off: any number.", show_default=False)
    ],
    burst: Annotated[
        int | None, typer.Option(help="How many at once after a pause; a second's worth.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Give out no more than so many jobs of a queue a second, on all nodes together."""
    from devmesh.cli.values import number_or_off

    answer = invoke("queue.limit", {"queue": queue, "rate_per_s": number_or_off(rate_per_s), "burst": burst}, data_dir)
    print_thing(answer, "queue", QUEUE_COLUMNS, as_json)


@queues.command("purge")
def purge(queue: QueueName, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Cancel everything that waits in a queue. What runs goes on."""
    found = [each for each in invoke("job.stats", {}, data_dir)["queues"] if each["queue"] == queue]
    waiting = sum(each["waiting"] + each["limited"] + each.get("blocked", 0) for each in found)

    def steps() -> Iterator[int]:
        count = STEP
        while count == STEP:  # fewer is all that there was: somebody may go on enqueueing for ever
            count = invoke("queue.purge", {"queue": queue, "limit": STEP}, data_dir)["purged"]
            yield count

    done = _with_bar(steps(), waiting, f"jobs of {queue} were cancelled before")
    if done < waiting:
        note(f"{waiting - done:,} were not there any more")
    if as_json:
        print_json({"purged": done})
    else:
        say(f"cancelled {done:,} jobs of {queue}")


def _act_on_each(verb: str, ids: list[str], more: dict[str, Any], as_json: bool, data_dir: Path | None) -> None:
    """Does it to one job after the other, whatever becomes of those before; one alone is shown whole."""
    from devmesh.cli.wire import require_sendable

    require_sendable({"job_ids": ids, **more})
    ids = list(dict.fromkeys(map(_as_answered, ids)))
    if len(ids) == 1:
        print_thing(invoke(f"job.{verb}", {"job_id": ids[0], **more}, data_dir), "job", JOB_FIELDS, as_json)
        return
    done: list[dict[str, Any]] = []
    refused: dict[str, str] = {}

    def steps() -> Iterator[int]:
        for job_id in ids:
            try:
                done.append(invoke(f"job.{verb}", {"job_id": job_id, **more}, data_dir)["job"])
            except Failure as failure:
                if failure.kind not in OF_ONE_JOB:  # it would be the same of all others
                    raise
                refused[job_id] = failure.message
            yield 1

    try:
        _with_bar(steps(), len(ids))
    finally:  # what was done is told, whatever came between
        _tell_each(done, refused, as_json)
        if (left := len(ids) - len(done) - len(refused)) > 0:
            note(f"{left:,} of {len(ids):,} jobs were not come to")
    if refused:
        raise Failure(f"{len(refused):,} of {len(ids):,} jobs were refused")


def _tell_each(done: list[dict[str, Any]], refused: dict[str, str], as_json: bool) -> None:
    """What became of each job, a line each."""
    if as_json:
        print_json({"jobs": done, "refused": [{"id": job_id, "message": why} for job_id, why in refused.items()]})
    else:
        for job in done:
            asked = ", asked to stop" if job["is_cancel_requested"] and job["status"] == Status.PROCESSING else ""
            typer.echo(f"{job['id']}  {job['status']}{asked}")
    for job_id, why in refused.items():
        note(f"{visible(job_id)}  {why}")


def _act_on_many(
    verb: str,
    done_word: str,
    ids: list[str],
    every: bool,
    filters: dict[str, Any],
    as_json: bool,
    data_dir: Path | None,
) -> None:
    if bool(ids) == (every or any(filters.values())):
        raise typer.BadParameter("name jobs, or say --all, perhaps with --queue and --type")
    ids = list(dict.fromkeys(map(_as_answered, ids)))
    missing = set(ids)
    refused: dict[str, str] = {}

    def act(asked: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
        """How many it was done to, and where there may be more."""
        answer = invoke(f"dead_letter.{verb}", asked, data_dir)
        missing.difference_update(answer["job_ids"])
        left = {each["id"]: each["message"] for each in answer.get("refused", ())}
        missing.difference_update(left)
        refused.update(left)
        where = {name: answer[name] for name in ("up_to", "after")} if answer.get("after") is not None else None
        return len(answer["job_ids"]), where

    def steps() -> Iterator[int]:
        for begin in range(0, len(ids), STEP):
            yield act({"job_ids": ids[begin : begin + STEP]})[0]
        where: dict[str, Any] | None = {} if not ids else None
        # Of what there was at the first step: jobs may fail again as fast as they are replayed.
        while where is not None:
            count, where = act({"all": True, "limit": STEP, **where, **filters})
            yield count

    done = _with_bar(steps(), len(ids) or None, f"dead letters were {done_word} before")
    if as_json:
        print_json({done_word: done})
    else:
        say(f"{done_word} {done:,} dead letters")
    _tell_of_the_rest(refused, missing, is_named=bool(ids))


def _tell_of_the_rest(refused: dict[str, str], missing: set[str], *, is_named: bool) -> None:
    """Says of which it was not done, and why. That is a failure when just these were named."""
    for job_id, message in sorted(refused.items())[:MISSING_SHOWN]:
        note(f"{job_id} stays a dead letter: {message}")
    if len(refused) > MISSING_SHOWN:
        note(f"so do {len(refused) - MISSING_SHOWN:,} others")
    if missing:
        named = ", ".join(sorted(missing)[:MISSING_SHOWN]) + (", …" if len(missing) > MISSING_SHOWN else "")
        raise Failure(f"not_found: {len(missing):,} of them are no dead letters: {named}")
    if is_named and refused:
        raise typer.Exit(Exit.FAILED)


def _as_answered(job_id: str) -> str:
    """An id as the mesh writes it. What is none the mesh will refuse."""
    try:
        return str(uuid.UUID(job_id))
    except ValueError:
        return job_id


def _with_bar(steps: Iterator[int], total: int | None, done_words: str = "") -> int:
    """Takes the steps while a bar on standard error shows how far they are: how many were done.

    When something comes between, Ctrl-C as well, `done_words` tell of what how many were done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    done = 0
    columns, console = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()), Console(stderr=True)
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("", total=total)
            for count in steps:
                done += count
                progress.update(task, completed=done)
    except BaseException:
        if done and done_words:
            note(f"{done:,} {done_words}")
        raise
    return done
