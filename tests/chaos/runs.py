"""One run: what is planned is done, then everything heals, and when all jobs are over their history is judged."""

from __future__ import annotations

import asyncio
import datetime
import time
import uuid
from typing import Any

import asyncpg

from devmesh.client import Client
from devmesh.client.errors import MeshError
from tests.chaos.field import Field
from tests.chaos.plans import APP_QUEUE, HAND_QUEUE, HAND_VERBS, Fault, JobPlan, Plan
from tests.judging import broken_rules

OVER_LIMIT_S = 40.0
HAND_LEASE_S = 0.6
HAND_ATTEMPTS = 6  # in which it behaves badly
UNFINISHED = """
select (select count(*) from mcp.jobs_ready where created_at >= $1)
     + (select count(*) from mcp.jobs_leased where created_at >= $1)
"""
STRANDED = "select count(*) from mcp.jobs_blocked where created_at >= $1"
COMPLETED = (
    "select job_id, attempt, worker_id from mcp.job_executions where outcome = 'COMPLETED' and job_id = any($1::uuid[])"
)
KNOWN = "select job_id from mcp.jobs where job_id = any($1::uuid[])"
BEFORE_PARENTS = """
select e.child, e.parent from unnest($1::uuid[], $2::uuid[]) as e (child, parent)
join mcp.job_executions c on c.job_id = e.child and c.started_at is not null
join mcp.job_executions p on p.job_id = e.parent and p.outcome = 'COMPLETED' and p.finished_at > c.started_at
"""


class Run:
    def __init__(self, field: Field, plan: Plan) -> None:
        self.field, self.plan = field, plan
        self.ids: dict[int, uuid.UUID] = {}  # of the jobs that were acknowledged, by their places in the plan
        self.completed: set[tuple[str, int]] = set()  # by hand, and acknowledged
        self._has_replayed = False

    async def play(self) -> None:
        self._began, since = time.monotonic(), datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=10)
        self._since = since
        mesh = self.field.mesh
        async with Client(mesh.ws_url, mesh.admin_key, timeout_s=20.0) as self.client:
            by_hand = asyncio.create_task(self._work_by_hand())
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._enqueue())
                    for fault in self.plan.faults:
                        group.create_task(self._suffer(fault))
                    for begin_s, end_s, queue in self.plan.pauses:
                        group.create_task(self._pause(begin_s, end_s, queue))
                await self.field.heal()
                await self._all_over()
                if by_hand.done():
                    by_hand.result()
            finally:
                by_hand.cancel()
                await asyncio.wait([by_hand])
        await self._judge()

    async def _at(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, self._began + at_s - time.monotonic()))

    async def _suffer(self, fault: Fault) -> None:
        await self._at(fault.at_s)
        await self.field.suffer(fault)

    async def _pause(self, begin_s: float, end_s: float, queue: str) -> None:
        await self._at(begin_s)
        await self.client.call("queue.pause", queue=queue)
        await self._at(end_s)
        await self.client.call("queue.resume", queue=queue)

    async def _enqueue(self) -> None:
        """In the order of the plan, so that parents come before their children."""
        meddling = []
        for place, job in enumerate(self.plan.jobs):
            parents = [str(self.ids[parent]) for parent in job.parents if parent in self.ids]
            try:
                made = await self.client.call("job.enqueue", **job.spec, depends_on=parents)
                self.ids[place] = uuid.UUID(made["job"]["id"])
            except MeshError as refused:
                if refused.reason != "job.parent_failed":
                    raise
            if job.cancelled_at_s is not None and place in self.ids:
                meddling.append(asyncio.create_task(self._cancel(place, job)))
        await asyncio.gather(*meddling)

    async def _cancel(self, place: int, job: JobPlan) -> None:
        assert job.cancelled_at_s is not None
        await self._at(job.cancelled_at_s)
        try:
            await self.client.call("job.cancel", job_id=str(self.ids[place]))
        except MeshError as refused:
            if refused.reason != "job.state":
                raise

    async def _work_by_hand(self) -> None:
        """A worker that forgets, comes late and says things twice."""
        chance, late = self.plan.hand, list[tuple[float, dict[str, Any]]]()
        worker = (await self.client.call("worker.register", name="hand", capacity=1000, queues=[HAND_QUEUE]))["worker"]
        while True:
            asked = {"worker_id": worker["id"], "queues": [HAND_QUEUE], "limit": 5, "lease_s": HAND_LEASE_S}
            jobs = (await self.client.call("job.claim", **asked, wait_ms=100))["jobs"]
            for job in jobs:
                held = {"job_id": job["id"], "attempt": job["attempt"]}
                verb = chance.choice(HAND_VERBS) if job["attempt"] <= HAND_ATTEMPTS else "complete"
                if verb == "late":
                    late.append((time.monotonic() + HAND_LEASE_S * chance.uniform(0.5, 3), held))
                elif verb != "forget":
                    await self._report(verb, held)
            for entry in [entry for entry in late if entry[0] < time.monotonic()]:
                late.remove(entry)
                await self._report("complete", entry[1])

    async def _report(self, verb: str, held: dict[str, Any]) -> None:
        said_with: dict[str, dict[str, Any]] = {"fail": {"error": "as planned"}, "snooze": {"delay_ms": 20}}
        said = "complete" if verb == "twice" else verb
        for _ in range(2 if verb == "twice" else 1):
            try:
                answer = await self.client.call(f"job.{said}", jobs=[{**held, **said_with.get(said, {})}])
            except MeshError as refused:
                if refused.reason != "job.stale_attempt":
                    raise
            else:
                if said == "complete" and answer["jobs"][0]["status"] == "COMPLETED":
                    assert (held["job_id"], held["attempt"]) not in self.completed, "it was completed twice"
                    self.completed.add((held["job_id"], held["attempt"]))

    async def _all_over(self) -> None:
        """Until nothing is left that will end. What waits for a dead letter sees it replayed, or given up."""
        is_replaying = self.plan.hand.random() < 0.5
        for queue in (APP_QUEUE, HAND_QUEUE):
            await self.client.call("queue.resume", queue=queue)
        connection = await asyncpg.connect(self.field.mesh.dsn)
        try:
            ends_at = time.monotonic() + OVER_LIMIT_S
            while True:
                while left := await connection.fetchval(UNFINISHED, self._since):
                    assert time.monotonic() < ends_at, f"{left} jobs do not end: {await self._left(connection)}"
                    await asyncio.sleep(0.03)
                stranded = await connection.fetchval(STRANDED, self._since)
                letters = (await self.client.call("dead_letter.list", limit=1))["dead_letters"]
                if is_replaying and letters:
                    is_replaying, self._has_replayed = False, True
                    await self.client.call("dead_letter.replay", all=True, limit=10)
                    continue
                if letters and stranded:
                    await self.client.call("dead_letter.discard", all=True)
                    continue
                assert not stranded, f"{stranded} jobs wait for others and will wait for ever"
                return
        finally:
            await connection.close()

    async def _left(self, connection: asyncpg.Connection) -> str:
        rows = await connection.fetch(
            "select job_id, attempt, worker_id, started_at, lease_until, timeout_at, now() from mcp.jobs_leased limit 5"
        )
        rows += await connection.fetch("select *, now() from mcp.jobs_ready limit 5")
        return "\n".join(str(dict(row)) for row in rows)

    async def _judge(self) -> None:
        mesh = self.field.mesh
        wrong = await broken_rules(mesh.dsn, since=self._since)
        connection = await asyncpg.connect(mesh.dsn)
        try:
            wrong += await self._disagreements(connection)
        finally:
            await connection.close()
        assert not wrong, "\n".join(wrong)

    async def _disagreements(self, connection: asyncpg.Connection) -> list[str]:
        """What those who were told something have been told wrongly."""
        ids = list(self.ids.values())
        known = {row["job_id"] for row in await connection.fetch(KNOWN, ids)}
        wrong = [f"job {job_id} was acknowledged and is not there" for job_id in ids if job_id not in known]
        completed = {(str(row["job_id"]), row["attempt"]) for row in await connection.fetch(COMPLETED, ids)}
        by_hand = {str(self.ids[place]) for place, job in enumerate(self.plan.jobs)
                   if job.spec["type"] == "by_hand" and place in self.ids}  # fmt: skip
        wrong += [
            f"{each} was acknowledged as completed, and is not"
            for each in self.completed - completed
            if each[0] in by_hand
        ]
        noted = {(job, int(attempt)) for job, attempt in map(str.split, self.field.done_log.read_text().splitlines())}
        wrong += [f"{each} is completed, and nobody has done it"
                  for each in completed - noted if each[0] not in by_hand]  # fmt: skip
        if not self._has_replayed and not any(fault.name == "step_clock" for fault in self.plan.faults):
            edges = [(self.ids[place], self.ids[parent]) for place, job in enumerate(self.plan.jobs) if place in self.ids
                     for parent in job.parents if parent in self.ids]  # fmt: skip
            rows = await connection.fetch(
                BEFORE_PARENTS, [child for child, _ in edges], [parent for _, parent in edges]
            )
            wrong += [f"job {row['child']} began before job {row['parent']} had ended" for row in rows]
        return wrong
