"""Of what is large a few are listed at a time, be it stored small or not: a page holds 1 MiB at most, and the next goes on."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import pytest

from tests.scenarios.archive import Archive, Bystander
from tests.scenarios.jobs import Bench, held, register
from tests.wire import WireError

TEXTS = ["x" * 400_000, secrets.token_urlsafe(300_000)] * 2


async def pages(bench: Bench, verb: str, noun: str, **asked: Any) -> list[list[Any]]:
    """What is on each page, from the first to the last."""
    found = [await bench.wire.call(verb, **asked)]
    while found[-1]["next_cursor"] is not None:
        assert len(found) < 20
        found.append(await bench.wire.call(verb, **asked, cursor=found[-1]["next_cursor"]))
    return [page[noun] for page in found]


async def ids(bench: Bench, verb: str, noun: str, key: str = "id", **asked: Any) -> list[list[str]]:
    return [[each[key] for each in page] for page in await pages(bench, verb, noun, **asked)]


def in_twos(made: list[str]) -> list[list[str]]:
    return [made[:2], made[2:]]


async def test_jobs_by_what_they_were_given_and_by_how_they_failed(archive: Archive, bench: Bench) -> None:
    made = [(await bench.enqueue(payload=text, max_retries=0))["id"] for text in TEXTS]
    newest_first = in_twos(made[::-1])
    assert await ids(bench, "job.list", "jobs", queue=bench.queue) == newest_first
    assert await ids(bench, "job.list", "jobs", limit=1) == [[job_id] for job_id in made[::-1]] + [[]]
    assert await ids(bench, "job.list", "jobs", status=["PENDING"]) == newest_first
    for text in TEXTS:
        [job] = await bench.claim(limit=1)
        await bench.wire.call("job.fail", jobs=[held(job, error={"message": text})])
    small = await bench.enqueue()
    failed: dict[str, Any] = {"status": ["FAILED"], "limit": 3}
    assert await ids(bench, "job.list", "jobs", **failed) == [[job_id] for job_id in made[::-1]]
    assert await ids(bench, "dead_letter.list", "dead_letters", "job_id") == newest_first
    snapshot = await archive.take()
    in_it = await ids(bench, "snapshot.jobs", "jobs", snapshot_id=snapshot["id"])
    assert in_it == [made[:2], [*made[2:], small["id"]]]


async def test_the_attempts_of_a_job(bench: Bench) -> None:
    job = await bench.enqueue(max_retries=10, backoff_ms=0)
    for text in TEXTS:
        [claimed] = await bench.claim(limit=1, wait_ms=5_000)
        await bench.wire.call("job.fail", jobs=[held(claimed, error={"message": text})])
    found = await pages(bench, "job.executions", "executions", job_id=job["id"])
    assert [[each["error"]["message"] for each in page] for page in found] == in_twos(TEXTS)
    for strange in ("f" * 32, "0" * 16 + "f" * 16):
        with pytest.raises(WireError) as refused:
            await bench.wire.call("job.executions", job_id=job["id"], cursor=strange)
        assert (refused.value.kind, refused.value.data["field"]) == ("invalid_params", "cursor")


async def test_schedules(bench: Bench) -> None:
    made = []
    for name, text in enumerate(TEXTS):
        about = {"name": f"s{name}", "interval_s": 3600, "job": {"type": "t", "payload": text}}
        made.append((await bench.wire.call("schedule.create", **about))["schedule"]["id"])
    assert await ids(bench, "schedule.list", "schedules") == in_twos(made[::-1])


async def test_contexts_and_those_that_a_search_has_found(bench: Bench) -> None:
    made = []
    for text in TEXTS:
        about = {"type": "t", "text": "a song of ice", "data": {"large": text}, "vector": [1.0, 2.0]}
        made.append((await bench.wire.call("context.store", **about))["context"]["id"])
    assert await ids(bench, "context.list", "contexts") == in_twos(made[::-1])
    for sought in ({"text": "song", "by": "text"}, {"vector": [1.0, 2.0]}):
        found = await bench.wire.call("context.search", **sought)
        assert [each["context"]["id"] for each in found["results"]] == made[:1:-1]
        assert found["left_out"] == 2


async def test_a_claim_of_several_queues_takes_32_mib_and_one_job_more(bench: Bench) -> None:
    texts = ["x" * 1_000_000, secrets.token_urlsafe(750_000)]
    queues = [bench.queue, f"{bench.queue}b"]
    made = [
        (await bench.enqueue(queue=queues[number % 2], payload=texts[number % 2], priority=5 - 4 * (number % 2)))["id"]
        for number in range(40)
    ]
    in_order = made[::2] + made[1::2]
    for expected in (in_order[:34], in_order[34:], []):
        assert [job["id"] for job in await bench.claim(limit=1_000, queues=queues)] == expected


async def enqueue_large(archive: Archive, bench: Bench, *sizes: int) -> list[str]:
    """Jobs whose payloads have so many bytes, and are stored small."""
    jobs = [{"type": "t", "queue": bench.queue, "payload": size} for size in sizes]
    made = [job["id"] for job in (await bench.wire.call("job.enqueue_many", jobs=jobs))["jobs"]]
    grown = "update mcp.jobs set payload = to_json(repeat('x', payload::text::integer - 2)) where tenant_id = $1 and queue ="
    archive.run(f"{grown} '{bench.queue}' and payload::text::integer > 2")
    return made


async def test_a_claim_of_small_jobs_before_large_ones_takes_32_mib_and_one_job_more(
    archive: Archive, bench: Bench
) -> None:
    made = await enqueue_large(archive, bench, *[400_000] * 60, *[1_000_000] * 20)
    worker_id = await register(bench.wire, capacity=1_000)
    for expected in (made[:70], made[70:], []):
        assert [job["id"] for job in await bench.claim(1_000, worker_id=worker_id)] == expected


async def test_what_a_large_claim_kept_from_others_and_left_is_given_by_the_next_one(
    archive: Archive, bench: Bench, bystander: Bystander
) -> None:
    assert await bench.claim() == []  # a look from the front
    other_id = await register(bench.wire)
    made = await enqueue_large(archive, bench, *[1_000_000] * 38, 1, 1)
    earlier = "update mcp.jobs_ready set run_at = run_at - interval '1 min' where tenant_id = $1 and job_id <= "
    archive.run(f"{earlier} '{made[37]}'")
    # Claims append their events last.
    await bystander.begin("select pg_advisory_xact_lock(hashtextextended($1, 7))", str(archive.tenant_id))
    large = asyncio.create_task(bench.claim(38))
    await bystander.are_held_up(1)
    small = asyncio.create_task(bench.claim(2, worker_id=other_id))
    await bystander.are_held_up(2)
    await bystander.commit()
    assert [job["id"] for job in await large] == made[:34]
    assert [job["id"] for job in await small] == made[38:]
    assert [job["id"] for job in await bench.claim()] == made[34:38]
