"""The application whose workers are ill-treated: a job's payload says what its handler does in each attempt."""

APP = '''
import asyncio, os, resource, time
from pathlib import Path
from devmesh.client import Fail, Mesh

MEMORY_BYTES = 512 << 20
used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
done = os.open("done.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
mesh = Mesh(capacity=20, lease_s=1.0, worker=os.environ["CHAOS_WORKER"])


class Own(BaseException):
    pass


class Wordless(Exception):
    def __str__(self):
        raise ValueError("it cannot even say what it is")


RAISED = {
    each.__name__: each
    for each in (ValueError, Own, Wordless, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, StopAsyncIteration,
                 RecursionError, MemoryError, asyncio.CancelledError, TimeoutError)
}
circle = []
circle.append(circle)
UNUSABLE = {
    "object": object(), "circle": circle, "surrogate": "\\ud800", "int": 10**5000, "set of sets": {frozenset({1})},
    "large": "x" * 3_000_000, "key": {(1, 2): 3},
}


def plain(step):
    """What takes no time, or does not let go of it."""
    match step:
        case ["raise", name]:
            raise RAISED[name]("as planned")
        case ["unusable", name]:
            return UNUSABLE[name]
        case ["fail", retryable]:
            raise Fail({"why": "as planned"}, retryable=retryable)
        case ["hog"]:
            return len(bytearray(MEMORY_BYTES))
        case ["block", seconds]:
            time.sleep(seconds)


def note(job):
    os.write(done, f"{job.id} {job.attempt}\\n".encode())


def step_of(job):
    steps = job.payload["steps"]
    return steps[min(job.attempt, len(steps)) - 1]


@mesh.job("loop")
async def in_the_loop(job):
    step = step_of(job)
    if step[0] == "nap":
        await asyncio.sleep(step[1])
    elif step[0] == "deaf":
        ends_at = time.monotonic() + step[1]
        while time.monotonic() < ends_at:
            try:
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                pass  # it does not want to hear of it
    elif step[0] == "progress":
        await job.progress(0.5, "half")
    result = plain(step)
    note(job)
    return {"attempt": job.attempt} if result is None else result


@mesh.job("thread")
def in_a_thread(job):
    step = step_of(job)
    if step[0] in ("nap", "deaf"):
        time.sleep(step[1])
    elif step[0] == "progress":
        job.progress(0.5, "half")
    result = plain(step)
    note(job)
    return {"attempt": job.attempt} if result is None else result
'''
