"""Every event type, declared once, and the cursor that says how far a reader has come.

An event is a patch: its data holds the noun it changes with `id` and the fields that changed, so that an old state with
the events after it gives the fresh state. What is not a field of the noun lies beside it.
"""

from __future__ import annotations

import datetime
import enum
import re
import uuid
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from devmesh.core import errors
from devmesh.core.names import UUID_PATTERN

TYPES: dict[str, str] = {
    "agent.registered": "an agent came to the mesh, or registered again under its name",
    "agent.updated": "an agent changed what it says of itself",
    "agent.status": "an agent's derived status changed",
    "agent.deregistered": "an agent left for good",
    "task.created": "a task was created; the whole task",
    "task.assigned": "a task was given to an agent under a new lease; the whole task, so that the agent can begin",
    "task.accepted": "the agent took the task on",
    "task.rejected": "the agent would not take the task; it waits for another",
    "task.progress": "the agent reported progress",
    "task.completed": "the task ended well; with its result",
    "task.retrying": "an attempt failed and another will follow after a back-off",
    "task.failed": "the task ended badly; with its error",
    "task.cancelled": "the task was cancelled",
    "task.timed_out": "the task ran out of time",
    "task.lease_expired": "the agent was not heard of within its lease; the task waits for another",
    "task.delegated": "the task was handed on",
    "task.reassigned": "the task was taken from the agent that had it or was meant to; by hand, or because that one left",
    "task.retried": "a finished task was put back by hand",
    "task.unblocked": "what the task waited for has ended; it may run now",
    "job.enqueued": "jobs came into a queue",
    "job.unblocked": "what jobs waited for has ended well; they may run now",
    "job.blocked": "jobs wait for others",
    "job.claimed": "a worker was given jobs under leases",
    "job.progress": "a worker reported how far jobs are",
    "job.completed": "jobs ended well",
    "job.retrying": "attempts failed, ran out of time or lost their lease; others follow after a back-off",
    "job.released": "a worker gave jobs back, or put them off",
    "job.failed": "jobs failed for good; they are dead letters",
    "job.cancelled": "jobs were cancelled",
    "job.cancel_requested": "workers are asked to stop working on jobs",
    "job.replayed": "jobs that were over were put back into their queue",
    "job.discarded": "dead letters were given up; their jobs stay failed",
    "job.promoted": "jobs that had waited for long have a higher priority",
    "queue.paused": "nothing is given out of a queue any more",
    "queue.resumed": "jobs of a queue are given out again",
    "job.restored": "jobs were put back as a snapshot has them",
    "snapshot.created": "what is under way was written down",
    "snapshot.restored": "what a snapshot has was put back",
    "snapshot.deleted": "a snapshot was forgotten",
    "context.stored": "an execution has left something behind for those after it",
    "context.embedded": "a context without a vector was given one by an embedder",
    "context.deleted": "a context was forgotten",
    "schedule.created": "a job is to be enqueued again and again",
    "schedule.updated": "a schedule was changed",
    "schedule.paused": "a schedule fires no more",
    "schedule.resumed": "a schedule fires again",
    "schedule.fired": "times of a schedule have come, and its jobs were enqueued, or the times were missed",
    "schedule.deleted": "a schedule has ended",
    "queue.limited": "a queue has another rate, or none",
    "worker.registered": "a worker came, or registered again under its name",
    "worker.alert": "something is wrong with a worker, or more so than before",
    "worker.alert_cleared": "what was wrong with a worker is over, or the worker is gone",
    "worker.status": "a worker's status changed",
}


class Concern(enum.StrEnum):
    """What may have come about by an event for those who wait: who waits for one does not look again because of the other."""

    TASKS = "t"  # an agent may get a task, or a task has ended
    JOBS = "j"  # a worker may get a job


_GIVES_JOBS = frozenset({
    "job.enqueued", "job.unblocked", "job.retrying", "job.released", "job.replayed", "job.promoted", "job.restored",
    "queue.resumed", "queue.limited", "worker.registered", "worker.status",
})  # fmt: skip
_OF_JOBS = ("job.", "queue.", "worker.", "schedule.", "snapshot.", "context.")


def concerns_of(event_type: str) -> frozenset[Concern]:
    if not event_type.startswith(_OF_JOBS):
        return frozenset({Concern.TASKS})
    return frozenset({Concern.JOBS} if event_type in _GIVES_JOBS else ())


class Event(msgspec.Struct, frozen=True):
    """An event as it is stored: `data` is JSON text, `topics[0]` is the thing that changed."""

    sequence: int
    at: datetime.datetime
    type: str
    topics: tuple[str, ...]
    data: str


class NewEvent(NamedTuple):
    type: str
    topics: tuple[str, ...]
    data: bytes


class Cursor(NamedTuple):
    """A place in a tenant's stream. Opaque on the wire; the epoch changes when history is lost."""

    epoch: int
    sequence: int

    def encode(self) -> str:
        return f"{self.epoch:08x}{self.sequence:016x}"


_CURSOR = r"^[0-7][0-9a-f]{7}[0-7][0-9a-f]{15}$"
CursorText = Annotated[str, Meta(extra_json_schema={"pattern": _CURSOR})]


def decode_cursor(text: str) -> Cursor:
    """Raises invalid_params for what no server of this kind has ever handed out."""
    if len(text) != 24 or re.match(_CURSOR, text) is None:
        raise errors.invalid("this is not a cursor that DevMesh handed out", "cursor")
    return Cursor(int(text[:8], 16), int(text[8:], 16))


def agent_topic(agent_id: uuid.UUID) -> str:
    return f"agent:{agent_id}"


def task_topic(task_id: uuid.UUID) -> str:
    return f"task:{task_id}"


JOBS = "jobs"  # among the topics of an event that concerns the jobs in its data: their own topics are not written out


class _JobId(msgspec.Struct):
    id: str


class _Jobs(msgspec.Struct):
    jobs: list[_JobId]


def topics_heard(event: Event) -> tuple[str, ...]:
    """Whom an event concerns: its topics, and those of the jobs in it, which may be a thousand."""
    if JOBS not in event.topics:
        return event.topics
    return (*event.topics, *(f"job:{job.id}" for job in msgspec.json.decode(event.data, type=_Jobs).jobs))


PLAIN_TOPICS = frozenset({"tenant", "inbox"})
NOUN_TOPICS = ("agent", "task", "workflow", "workspace", "document", "job", "worker", "schedule", "snapshot", "context")
_QUEUE = r"[A-Za-z0-9][A-Za-z0-9_.:/+-]{0,199}"  # no comma, which stands between topics in a URL
_TOPIC = f"^(tenant|inbox|queue:{_QUEUE}|({'|'.join(NOUN_TOPICS)}):{UUID_PATTERN})$"
Topic = Annotated[str, Meta(extra_json_schema={"pattern": _TOPIC})]


def check_topic(topic: str, own_agent_id: uuid.UUID | None) -> str:
    """The topic as the log knows it (`inbox` is the session's own agent's), or invalid_params."""
    if topic == "inbox":
        if own_agent_id is None:
            raise errors.conflict("session.no_agent", "the inbox belongs to an agent, and this session has none")
        return agent_topic(own_agent_id)
    if topic in PLAIN_TOPICS:
        return topic
    noun, _, rest = topic.partition(":")
    if noun == "queue" and re.fullmatch(_QUEUE, rest):
        return topic
    if noun in NOUN_TOPICS:
        try:
            return f"{noun}:{uuid.UUID(rest)}"
        except ValueError:
            pass
    raise errors.invalid(f"{topic[:80]!r} is not a topic: use tenant, inbox, queue:NAME or NOUN:ID", "topics")
