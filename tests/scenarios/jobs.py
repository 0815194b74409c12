"""What the tests of jobs share: a connection with a worker of its own, and a queue that nobody else uses."""

from __future__ import annotations

import uuid
from typing import Any

from tests.wire import Wire


class Bench:
    """One connection with a worker of its own, and a queue that nobody else uses."""

    def __init__(self, wire: Wire, worker_id: str) -> None:
        self.wire, self.worker_id = wire, worker_id
        self.queue = f"q{uuid.uuid4().hex}"

    async def enqueue(self, **spec: Any) -> dict[str, Any]:
        job: dict[str, Any] = (await self.wire.call("job.enqueue", **{"type": "t", "queue": self.queue, **spec}))["job"]
        return job

    async def claim(self, limit: int = 10, **options: Any) -> list[dict[str, Any]]:
        asked = {"worker_id": self.worker_id, "queues": [self.queue], "limit": limit, **options}
        jobs: list[dict[str, Any]] = (await self.wire.call("job.claim", **asked))["jobs"]
        return jobs

    async def get(self, job: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = (await self.wire.call("job.get", job_id=job["id"]))["job"]
        return found

    async def status(self, job: dict[str, Any]) -> str:
        return str((await self.get(job))["status"])

    async def is_now(self, job: dict[str, Any], status: str) -> bool:
        return await self.status(job) == status

    async def executions(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.wire.call("job.executions", job_id=job["id"]))["executions"]
        return found

    async def dead_letters(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.wire.call("dead_letter.list", queue=self.queue))["dead_letters"]
        return found


def held(job: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What a worker says of a job that it was given."""
    return {"job_id": job["id"], "attempt": job["attempt"], **more}


async def register(wire: Wire, capacity: int = 100, **options: Any) -> str:
    worker = await wire.call("worker.register", name=f"w{uuid.uuid4().hex}", capacity=capacity, **options)
    return str(worker["worker"]["id"])


async def do(bench: Bench, verb: str = "complete", **more: Any) -> list[str]:
    """Claims what can be had, and reports it. The ids, in the order in which they came."""
    claimed = await bench.claim(limit=100)
    if claimed:
        await bench.wire.call(f"job.{verb}", jobs=[held(job, **more) for job in claimed])
    return [job["id"] for job in claimed]


async def reason(bench: Bench, job: dict[str, Any]) -> str:
    return str((await bench.wire.call("job.explain", job_id=job["id"]))["explanation"]["reason"])
