"""The row of a token bucket under many hands: real draws, side by side, by the database's clock."""

from __future__ import annotations

import asyncio
import time
import uuid

import asyncpg
import pytest

from devmesh.store.statements import load

SQL = load("rates")


async def draw(pool: asyncpg.Pool, buckets: list[uuid.UUID], wanted: int, rate_per_s: float) -> list[int]:
    """How many tokens each bucket gave. A new one gives some when it is asked again."""
    count = len(buckets)
    rows = await pool.fetch(SQL.draw.text, buckets, buckets, [wanted] * count, [rate_per_s] * count, 1.0)
    if any(row["is_new"] for row in rows):
        again = await draw(
            pool, [bucket for bucket, row in zip(buckets, rows, strict=True) if row["is_new"]], wanted, rate_per_s
        )
        return [again.pop(0) if row["is_new"] else row["drawn"] for row in rows]
    return [row["drawn"] for row in rows]


@pytest.mark.parametrize(("rate_per_s", "wanted"), [(5.0, 1), (100.0, 3), (2_000.0, 40)])
async def test_draws_side_by_side_never_exceed_rate_and_burst(
    fresh_database: str, rate_per_s: float, wanted: int
) -> None:
    buckets = [uuid.uuid4() for _ in range(5)]
    async with asyncpg.create_pool(fresh_database, min_size=8, max_size=8) as pool:
        began = time.monotonic()

        async def hand(number: int) -> list[int]:
            """Draws from all of them, each hand in an order of its own, a few hundred times."""
            order = buckets[number % 5 :] + buckets[: number % 5]
            totals = dict.fromkeys(buckets, 0)
            for _ in range(40):
                for bucket, drawn in zip(order, await draw(pool, order, wanted, rate_per_s), strict=True):
                    totals[bucket] += drawn
            return [totals[bucket] for bucket in buckets]

        by_hand = await asyncio.gather(*(hand(number) for number in range(8)))
        allowed = rate_per_s * (1 + time.monotonic() - began)
        for of_bucket in zip(*by_hand, strict=True):
            assert sum(of_bucket) <= allowed
            assert sum(of_bucket) >= min(rate_per_s, 8 * 40 * wanted)


async def test_a_draw_tells_whose_rate_applies(fresh_database: str) -> None:
    tenant, key, other = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    async with asyncpg.create_pool(fresh_database, min_size=1, max_size=1) as pool:
        await pool.execute("insert into mcp.tenants (tenant_id, name, rate_per_s) values ($1, 'one', 70)", tenant)
        await pool.execute(
            "insert into mcp.api_keys (tenant_id, key_id, owner_id, prefix, key_hash, kind, scopes, rate_per_s)"
            " values ($1, $2, $2, 'dm_', '', 'user', '{}', 7)",
            tenant,
            key,
        )
        asked = [tenant] * 3, [other, key, tenant], [1, 100, 100], [20_000.0, 20_000.0, 50_000.0], 1.0
        new = await pool.fetch(SQL.draw.text, *asked)
        assert [(row["is_new"], row["drawn"]) for row in new] == [(True, 0)] * 3
        rows = await pool.fetch(SQL.draw.text, *asked)
        assert [(row["rate_per_s"], row["drawn"]) for row in rows] == [(20_000, 1), (7, 7), (70, 70)]
        rows = await pool.fetch(SQL.draw.text, [tenant], [other], [5], [0.0], 1.0)
        assert rows[0]["rate_per_s"] == 0
        assert await pool.fetchval("select count(*) from mcp.rate_buckets") == 3


async def test_a_clock_that_was_set_back_leaves_no_bucket_empty(fresh_database: str) -> None:
    bucket, slow = uuid.uuid4(), uuid.uuid4()
    async with asyncpg.create_pool(fresh_database, min_size=1, max_size=1) as pool:
        assert await draw(pool, [bucket], 100, 100.0) == [100]
        assert await draw(pool, [bucket], 100, 100.0) < [20]
        await pool.execute("update mcp.rate_buckets set full_at = full_at + interval '1 hour'")
        assert await draw(pool, [bucket], 60, 100.0) == [60]
        assert await draw(pool, [bucket], 100, 100.0) < [60]  # and what is drawn is counted by the clock as it is now
        assert await draw(pool, [slow], 1, 0.02) == [1]
        assert await draw(pool, [slow], 1, 0.02) == [0]  # one that fills for 50 s is empty, and no mistake
