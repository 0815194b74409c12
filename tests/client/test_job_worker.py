"""Handlers of jobs at work, beside the database and over the WebSocket: what they do, and what becomes of their jobs."""

from __future__ import annotations

import asyncio
import signal
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from devmesh.client import BlockingJobContext, Client, Fail, JobContext
from devmesh.client import Mesh as Agents
from devmesh.client.codecs import CodecName
from tests.client.agents import at_work
from tests.harness import Child, Mesh, are_gone, eventually

APP = """
import asyncio, hashlib, os, time
from devmesh.client import Fail, Mesh

PID = os.getpid()  # of whoever has imported this
mesh = Mesh(capacity=50, lease_s={lease_s}, worker={worker!r})

@mesh.agent("beside")
def beside(task): pass

@mesh.job("double")
async def double(job):
    return {{"n": job.payload["n"] * 2, "attempt": job.attempt}}

@mesh.job("thread")
def in_a_thread(job):
    job.progress(0.5, "half")
    job.remember("what a thread has learned", data={{"n": 1}}, tags=["half"])
    return job.payload

@mesh.job("busy")
async def busy(job):
    ends_at = time.monotonic() + job.payload
    while time.monotonic() < ends_at:  # keeps the event loop as well
        hashlib.sha256(b"x" * 1000).digest()
    return "done"

@mesh.job("boom")
async def boom(job):
    raise RuntimeError("bang")

@mesh.job("never")
async def never(job):
    raise Fail({{"why": "never"}}, retryable=False)

@mesh.job("object")
async def an_object(job):
    return object()

@mesh.job("large")
async def large(job):
    return "x" * 3_000_000

class Wordless(BaseException):
    def __str__(self):
        raise KeyError("no words")

@mesh.job("wordless")
async def wordless(job):
    raise Wordless

@mesh.job("exit")
async def ends_the_process(job):
    raise SystemExit(3)

@mesh.job("process", in_process=True)
def in_a_process(job):
    if job.payload["dies"]:
        os._exit(9)
    return {{"pid": os.getpid(), "loaded_in": PID, "attempt": job.attempt}}

class Unpicklable(Exception):
    def __init__(self, code, message):
        super().__init__(message)

class Unopened:
    def __reduce__(self):
        return (int, ("no number",))

@mesh.job("odd-process", in_process=True)
def odd_in_a_process(job):
    match job.payload:
        case "sleep":
            open(f"{{os.getpid()}}.pid", "w").close()
            time.sleep(60)
        case "die":
            os.kill(os.getpid(), 9)
        case "stop":
            raise StopIteration("stop")
        case "raise":
            raise Unpicklable(1, "raise")
        case "lambda":
            return lambda: 1
        case "object":
            return Unopened()
        case _:
            return "well"

@mesh.job("cancelled")
async def cancelled_by_itself(job):
    raise asyncio.CancelledError("its own")

@mesh.job("watchful")
def watchful(job):
    while not job.is_lost:
        time.sleep(0.01)

@mesh.job("slow")
async def slow(job):
    await asyncio.sleep(job.payload)
    return "slept"
"""


class Jobs:
    """A tenant's jobs, as their owner sees them."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def enqueue(self, job_type: str, payload: Any = None, **more: Any) -> str:
        job = (await self.client.call("job.enqueue", type=job_type, payload=payload, **more))["job"]
        return str(job["id"])

    async def get(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.client.call("job.get", job_id=job_id))["job"]
        return found

    async def ended(self, job_id: str, within_s: float = 20.0) -> dict[str, Any]:
        async def has_ended() -> bool:
            return (await self.get(job_id))["status"] in ("COMPLETED", "FAILED", "CANCELLED")

        await eventually(has_ended, "the job ends", within_s)
        return await self.get(job_id)

    async def is_held(self, job_id: str) -> bool:
        return bool((await self.get(job_id))["status"] == "PROCESSING")


@pytest_asyncio.fixture
async def apart(own_mesh: Callable[..., Mesh], tmp_path: Path) -> AsyncIterator[tuple[Mesh, Jobs]]:
    """A mesh of its own without a worker, in whose directory an application can be put."""
    mesh = own_mesh("rest-api", "mcp-server")
    async with Client(mesh.ws_url, mesh.admin_key) as client:
        yield mesh, Jobs(client)


def start_worker(mesh: Mesh, directory: Path, *, lease_s: float = 2.0, name: str = "one") -> Child:
    """A worker service with the application's handlers."""
    (directory / f"app_{name}.py").write_text(APP.format(lease_s=lease_s, worker=name))
    child = mesh.add("worker", DEVMESH_WORKER_APP=f"app_{name}:mesh")
    child.start()
    child.wait_ready()
    return child


async def test_handlers_of_every_sort_end_as_they_should(apart: tuple[Mesh, Jobs], tmp_path: Path) -> None:
    mesh, jobs = apart
    worker = start_worker(mesh, tmp_path)
    assert "agents are not run beside the database" in worker.log.read_text()
    ids = {
        name: await jobs.enqueue(name, {"n": 21}, max_retries=0)
        for name in ("double", "thread", "boom", "never", "object", "wordless", "large")
    }
    ids["nobody"] = await jobs.enqueue("nobody", max_retries=0)
    ids["exit"] = await jobs.enqueue("exit", max_retries=0)
    ended = {name: await jobs.ended(job_id) for name, job_id in ids.items()}
    assert ended["double"]["result"] == {"n": 42, "attempt": 1}
    assert ended["thread"]["result"] == {"n": 21}
    assert ended["boom"]["error"] == {"type": "RuntimeError", "message": "bang"}
    assert ended["never"]["error"] == {"why": "never"}
    assert ended["object"]["error"]["type"] == "UnusableResult"
    assert ended["large"]["error"]["type"] == "UnusableResult"
    assert ended["wordless"]["error"] == {"type": "Wordless", "message": "(its words cannot be had: KeyError)"}
    assert ended["nobody"]["error"]["type"] == "NoHandler"
    assert ended["exit"]["error"]["type"] == "SystemExit"
    assert {each["status"] for name, each in ended.items() if name not in ("double", "thread")} == {"FAILED"}
    again = await jobs.enqueue("double", {"n": 1})
    assert (await jobs.ended(again))["status"] == "COMPLETED"  # the worker has outlived all of them
    [context] = (await jobs.client.call("context.list", job_id=ids["thread"]))["contexts"]
    assert (context["text"], context["attempt"], context["type"]) == ("what a thread has learned", 1, "thread")


async def test_a_worker_that_was_killed_and_started_again_waits_for_no_lease_of_its_former_self(
    apart: tuple[Mesh, Jobs], tmp_path: Path
) -> None:
    mesh, jobs = apart
    killed = start_worker(mesh, tmp_path, lease_s=600.0)
    slow = await jobs.enqueue("slow", 0.2, backoff_ms=1)
    stuck = [await jobs.enqueue("slow", 300, backoff_ms=1) for _ in range(49)]  # with the other, all that it takes
    await eventually(lambda: jobs.is_held(stuck[-1]), "it is full")
    killed.kill()
    for job_id in stuck[1:]:
        await jobs.client.call("job.cancel", job_id=job_id)
    killed.start()
    killed.wait_ready()
    assert (await jobs.ended(slow))["attempt"] in (1, 2)
    again = await jobs.enqueue("double", {"n": 1})
    assert (await jobs.ended(again))["status"] == "COMPLETED"


async def test_a_handler_in_a_process_of_its_own_may_die_there(apart: tuple[Mesh, Jobs], tmp_path: Path) -> None:
    mesh, jobs = apart
    start_worker(mesh, tmp_path)
    done = (await jobs.ended(await jobs.enqueue("process", {"dies": False})))["result"]
    assert (done["pid"] == done["loaded_in"], done["attempt"]) == (True, 1)
    dead = await jobs.ended(await jobs.enqueue("process", {"dies": True}, max_retries=0))
    assert (dead["status"], dead["error"]["type"]) == ("FAILED", "ProcessDied")
    again = (await jobs.ended(await jobs.enqueue("process", {"dies": False})))["result"]
    assert again["pid"] != done["pid"]
    assert (await jobs.ended(await jobs.enqueue("double", {"n": 1})))["status"] == "COMPLETED"


async def test_what_a_handler_does_in_its_process_is_no_harm_to_others_there(
    apart: tuple[Mesh, Jobs], tmp_path: Path
) -> None:
    mesh, jobs = apart
    start_worker(mesh, tmp_path)
    ids = {
        what: await jobs.enqueue("odd-process", what, max_retries=0)
        for what in ("raise", "stop", "lambda", "object", "well", "more")
    }
    ended = {what: await jobs.ended(job_id, within_s=40) for what, job_id in ids.items()}
    assert [ended[what]["status"] for what in ("well", "more")] == ["COMPLETED"] * 2
    assert ended["raise"]["error"] == {"type": "Unpicklable", "message": "raise"}
    assert ended["stop"]["error"] == {"type": "StopIteration", "message": "stop"}
    assert [ended[what]["status"] for what in ("lambda", "object")] == ["FAILED"] * 2


async def test_when_a_process_dies_those_beside_it_end_too_and_their_jobs_are_done_again(
    apart: tuple[Mesh, Jobs], tmp_path: Path
) -> None:
    mesh, jobs = apart
    worker = start_worker(mesh, tmp_path)
    beside = await jobs.enqueue("odd-process", "sleep", max_retries=0)
    await eventually(lambda: list(tmp_path.rglob("*.pid")), "one is at work", within_s=40)
    [sleeper] = [psutil.Process(int(path.stem)) for path in tmp_path.rglob("*.pid")]
    await jobs.enqueue("odd-process", "die", max_retries=0)
    assert (await jobs.ended(beside))["error"]["type"] == "ProcessDied"
    await eventually(lambda: are_gone([sleeper]), "nobody goes on with what has failed")
    assert (await jobs.ended(await jobs.enqueue("odd-process", "well"), within_s=40))["status"] == "COMPLETED"
    worker.signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait) == 0


async def test_a_cancellation_that_a_handler_makes_itself_is_a_failure(
    apart: tuple[Mesh, Jobs], tmp_path: Path
) -> None:
    mesh, jobs = apart
    start_worker(mesh, tmp_path)
    ended = await jobs.ended(await jobs.enqueue("cancelled", max_retries=0))
    assert (ended["status"], ended["attempt"]) == ("FAILED", 1)
    assert ended["error"] == {"type": "CancelledError", "message": "its own"}


async def test_processes_of_a_worker_that_was_killed_end_with_it(apart: tuple[Mesh, Jobs], tmp_path: Path) -> None:
    mesh, jobs = apart
    worker = start_worker(mesh, tmp_path)
    pid = (await jobs.ended(await jobs.enqueue("process", {"dies": False})))["result"]["pid"]
    process = psutil.Process(pid)
    assert not are_gone([process])
    worker.kill()
    await eventually(lambda: are_gone([process]), "the process has ended")


async def test_j40_a_handler_that_keeps_the_processor_busy_keeps_its_job(
    apart: tuple[Mesh, Jobs], tmp_path: Path
) -> None:
    mesh, jobs = apart
    start_worker(mesh, tmp_path, lease_s=1.0)
    job_id = await jobs.enqueue("busy", 4.0)
    done = await jobs.ended(job_id)
    assert (done["status"], done["result"], done["attempt"]) == ("COMPLETED", "done", 1)
    worker = (await jobs.client.call("worker.get", worker_id=done["worker_id"]))["worker"]
    assert worker["heartbeat_interval_s"] == pytest.approx(1 / 3), (
        "it says how often it beats, which a long lease makes seldom"
    )


@pytest.mark.parametrize("handler", ["slow", "watchful"])
async def test_a_cancellation_reaches_the_running_handler(
    apart: tuple[Mesh, Jobs], tmp_path: Path, handler: str
) -> None:
    mesh, jobs = apart
    start_worker(mesh, tmp_path, lease_s=1.0)
    job_id = await jobs.enqueue(handler, 60)
    await eventually(lambda: jobs.is_held(job_id), "it runs")
    await jobs.client.call("job.cancel", job_id=job_id, reason="no need")
    assert (await jobs.ended(job_id))["status"] == "CANCELLED"


async def test_j39_a_killed_worker_s_jobs_are_done_by_another_and_none_is_lost(
    apart: tuple[Mesh, Jobs], tmp_path: Path
) -> None:
    mesh, jobs = apart
    first = start_worker(mesh, tmp_path, lease_s=1.0)
    specs = [{"type": "slow", "payload": 0.2, "backoff_ms": 0, "max_retries": 10} for _ in range(300)]
    made = (await jobs.client.call("job.enqueue_many", jobs=specs))["jobs"]
    await eventually(lambda: jobs.is_held(made[0]["id"]), "it works")
    start_worker(mesh, tmp_path, lease_s=1.0, name="two")
    first.kill()
    for job in made:
        assert (await jobs.ended(job["id"], 30.0))["status"] == "COMPLETED"
    for job in made:
        ends = (await jobs.client.call("job.executions", job_id=job["id"]))["executions"]
        assert [each["outcome"] for each in ends].count("COMPLETED") == 1
        # One that lives gives back what it could not renew within a second, on a machine that stands still for as long.
        assert {each["outcome"] for each in ends[:-1]} <= {"LEASE_LOST", "RELEASED"}
        assert [each["attempt"] for each in ends] == list(range(1, len(ends) + 1))


async def test_a_worker_that_is_stopped_gives_back_what_it_has_not_done(
    apart: tuple[Mesh, Jobs], tmp_path: Path
) -> None:
    mesh, jobs = apart
    worker = start_worker(mesh, tmp_path)
    short, long = await jobs.enqueue("slow", 1.0), await jobs.enqueue("slow", 60)
    for job_id in (short, long):
        await eventually(lambda: jobs.is_held(job_id), "it runs")  # noqa: B023
    worker.signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait, 30.0) == 0
    done = await jobs.get(short)
    assert done["status"] == "COMPLETED"
    assert (await jobs.client.call("worker.get", worker_id=done["worker_id"]))["worker"]["status"] == "TERMINATED"
    given_back = await jobs.get(long)
    assert (given_back["status"], given_back["retry_count"]) == ("PENDING", 0)


async def test_j38_zombies_write_nothing(apart: tuple[Mesh, Jobs], tmp_path: Path) -> None:
    mesh, jobs = apart
    zombie = start_worker(mesh, tmp_path, lease_s=1.0)
    specs = [{"type": "slow", "payload": 1.0, "backoff_ms": 0} for _ in range(50)]
    made = (await jobs.client.call("job.enqueue_many", jobs=specs))["jobs"]
    await eventually(lambda: jobs.is_held(made[-1]["id"]), "all are held")
    zombie.signal(signal.SIGSTOP)
    other = start_worker(mesh, tmp_path, name="two")
    try:
        for job in made:
            await jobs.ended(job["id"], 30.0)
        zombie.signal(signal.SIGCONT)
        probe = await jobs.enqueue("double", {"n": 1})
        await jobs.ended(probe)
        for job in made:
            ends = (await jobs.client.call("job.executions", job_id=job["id"]))["executions"]
            assert [each["outcome"] for each in ends] == ["LEASE_LOST", "COMPLETED"]
    finally:
        zombie.signal(signal.SIGCONT)
        other.end()


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_a_lease_begins_when_a_job_comes_however_long_it_was_waited_for(
    mesh: Mesh, tenant: str, codec: CodecName
) -> None:
    queue = f"q{uuid.uuid4().hex}"
    agents = Agents(mesh.ws_url, tenant, codec=codec, worker=queue, lease_s=1.0)

    @agents.job("tell", queue=queue)
    async def tell(job: JobContext) -> str:
        await job.progress(0.5)
        return "told"

    async with at_work(agents), Client(mesh.ws_url, tenant) as client:
        jobs = Jobs(client)
        for _ in range(2):
            ended = await jobs.ended(await jobs.enqueue("tell", queue=queue, max_retries=0))
            assert (ended["status"], ended["result"]) == ("COMPLETED", "told"), ended["error"]
            await asyncio.sleep(1.5)  # longer than the lease: meanwhile it waits for the next one


async def test_over_the_websocket_as_well(mesh: Mesh, tenant: str) -> None:
    queue = f"q{uuid.uuid4().hex}"
    agents = Agents(mesh.ws_url, tenant, worker=queue, capacity=20, lease_s=1.0)
    let_go, seen = threading.Event(), list[str]()

    @agents.job("add", queue=queue)
    async def add(job: JobContext) -> int:
        await job.progress(0.5)
        return sum(job.payload)

    @agents.job("wait", queue=queue)
    def wait(job: BlockingJobContext) -> str:
        assert let_go.wait(20)
        return f"attempt {job.attempt}"

    @agents.job("hang", queue=queue)
    async def hang(job: JobContext) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            seen.append(job.lost_reason or "")

    @agents.job("fail", queue=queue)
    async def fail(job: JobContext) -> None:
        raise Fail("no", retryable=False)

    @agents.job("large", queue=queue)
    async def large(_: JobContext) -> str:
        return "x" * 3_000_000

    async with Client(mesh.ws_url, tenant) as client, at_work(agents):
        jobs = Jobs(client)
        added = await jobs.enqueue("add", [1, 2, 3], queue=queue)
        assert (await jobs.ended(added))["result"] == 6
        waiting = await jobs.enqueue("wait", queue=queue)
        await eventually(lambda: jobs.is_held(waiting), "it waits")
        await asyncio.sleep(1.5)  # longer than a lease, which the heart keeps
        let_go.set()
        assert (await jobs.ended(waiting))["result"] == "attempt 1"
        hanging = await jobs.enqueue("hang", queue=queue)
        await eventually(lambda: jobs.is_held(hanging), "it hangs")
        await client.call("job.cancel", job_id=hanging)
        assert (await jobs.ended(hanging))["status"] == "CANCELLED"
        assert seen == ["it was cancelled"]
        assert (await jobs.ended(await jobs.enqueue("fail", queue=queue)))["status"] == "FAILED"
        refused = await jobs.ended(await jobs.enqueue("large", queue=queue))
        assert (refused["status"], refused["error"]["type"]) == ("FAILED", "UnusableResult")
        many = (await client.call("job.enqueue_many", jobs=[{"type": "add", "payload": [1], "queue": queue}] * 400))[
            "jobs"
        ]
        for job in many:
            assert (await jobs.ended(job["id"]))["status"] == "COMPLETED"


def test_a_type_of_jobs_has_one_handler() -> None:
    mesh = Agents("ws://127.0.0.1:1/ws", "dm_x")
    mesh.job("same")(lambda _: None)
    with pytest.raises(ValueError, match="two handlers"):
        mesh.job("same")
