"""What is asked beside PostgreSQL, where it is configured: Redis, Qdrant, and the address of the operator's public keys.

Most have configured neither, and their libraries are slow to import: each is imported by the check that needs it.
"""

from __future__ import annotations

import time

from devmesh.cli.checks.case import Case
from devmesh.cli.checks.finding import Finding, ok, problem, warning

LIMIT_S = 3.0


async def redis_server(case: Case) -> list[Finding]:
    """Whether Redis answers. Without it nothing is lost, and PostgreSQL has more to do."""
    url, limit_s = case.settings.redis_url, case.settings.redis_timeout_s
    if url is None:
        return [ok("none is set: PostgreSQL carries the bell")]
    import redis.asyncio
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError

    case.begin_again()
    began = time.perf_counter()
    try:
        async with redis.asyncio.Redis.from_url(
            url, socket_timeout=limit_s, socket_connect_timeout=limit_s, retry=Retry(NoBackoff(), 0)
        ) as client:
            await client.ping()
    except (RedisError, OSError, ValueError) as error:
        found = f"does not answer, so PostgreSQL carries the bell: {str(error) or type(error).__name__}"
        return [warning(found, "start Redis, or correct or remove REDIS_URL")]
    return [ok(f"answers in {(time.perf_counter() - began) * 1000:.1f} ms")]


async def contexts(case: Case) -> list[Finding]:
    """Whether what contexts are to be found by can be had: an embedder, and a Qdrant that answers."""
    from devmesh.engine.breaker import Breaker
    from devmesh.engine.recalling import Unusable, require_usable

    settings = case.settings
    try:
        require_usable(settings)
    except Unusable as error:
        return [problem(str(error), "or take the setting back")]
    maker = "texts get no vectors" if settings.embedder == "none" else f"{settings.embedder} makes vectors of texts"
    if settings.qdrant_url is None:
        return [ok(f"{maker}; PostgreSQL compares vectors")]
    from devmesh.engine.qdrant_index import QdrantIndex

    case.begin_again()
    breaker = Breaker("qdrant", 1, 0.0, lambda *_: None)
    limit_s = min(settings.qdrant_timeout_s, LIMIT_S)
    index = QdrantIndex.at(settings.qdrant_url, settings.qdrant_api_key, limit_s, breaker)
    found = await index.check()
    await index.close()
    if found.status != "healthy":
        return [warning(found.message, "start Qdrant, or correct QDRANT_URL and QDRANT_API_KEY")]
    return [ok(f"{maker}; Qdrant compares vectors, and answers in {found.latency_ms:.1f} ms")]


async def token_keys(case: Case) -> list[Finding]:
    """Whether the public keys can be had that the operator's own tokens are checked with."""
    settings = case.settings
    if settings.jwks_url is None:
        return [ok("no address is set: no tokens of the operator's are checked with public keys")]
    from devmesh.core.signing_keys import KeysUnusable, published_keys
    from devmesh.engine.fetcher import Fetcher, FetchFailed, Reach

    case.begin_again()
    fetcher = Fetcher(settings.jwks_timeout_s, settings.jwks_bytes_max)
    reach = Reach(private=True, plain=settings.environment != "production")
    try:
        keys = published_keys(await fetcher.fetch(settings.jwks_url, reach))
    except (FetchFailed, KeysUnusable) as error:
        found = f"the keys at {settings.jwks_url} cannot be had: {error}"
        return [problem(found, "correct DEVMESH_JWKS_URL, or see to what answers there")]
    finally:
        await fetcher.close()
    return [ok(f"{len(keys)} at {settings.jwks_url}")]
