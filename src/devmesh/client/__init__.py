"""The Python client: ask anything of a mesh with `Client`, be an agent of it with `Mesh`. An ordinary user of the wire."""

from devmesh.client.agents import Agent
from devmesh.client.client import Client
from devmesh.client.connection import Event
from devmesh.client.context import BlockingTaskContext, TaskContext
from devmesh.client.errors import EventsMissed, Fail, LeaseLost, MeshError, Reject, Snooze
from devmesh.client.events import EventStream
from devmesh.client.job_context import BlockingJobContext, JobContext
from devmesh.client.mesh import Mesh
from devmesh.client.shapes import make_ready
from devmesh.client.tasks import Task

__all__ = [
    "Agent",
    "BlockingJobContext",
    "BlockingTaskContext",
    "Client",
    "Event",
    "EventStream",
    "EventsMissed",
    "Fail",
    "JobContext",
    "LeaseLost",
    "Mesh",
    "MeshError",
    "Reject",
    "Snooze",
    "Task",
    "TaskContext",
]

make_ready()
