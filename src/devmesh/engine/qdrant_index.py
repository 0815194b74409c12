"""Vectors of contexts in Qdrant, where it is configured: a copy that can be made again, never the truth.

A point's id is its context's bare UUID, and its payload has the tenant, which every search names. Vectors of one length are in
one collection. While Qdrant is away, searches by vector are refused; the breaker says when it is tried again.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from devmesh.core.components import Component, degraded
from devmesh.core.errors import MeshError, unavailable
from devmesh.engine.breaker import Breaker
from devmesh.operations.recall import Match, Wanted

T = TypeVar("T")
FAILURES = (ApiException, OSError, TimeoutError, ValueError)  # the last: answers that are none
FIELDS = ("job_id", "type", "tags", "model")


class Point(NamedTuple):
    """A context as the index has it."""

    context_id: uuid.UUID
    tenant_id: uuid.UUID
    vector: Sequence[float]
    model: str
    job_id: uuid.UUID | None
    type: str
    tags: Sequence[str]


class QdrantIndex:
    def __init__(self, client: AsyncQdrantClient, timeout_s: float, breaker: Breaker) -> None:
        self._client, self._timeout_s, self._breaker = client, timeout_s, breaker
        self._known: set[int] = set()  # lengths of vectors that have their collection
        self._prepared: set[int] = set()  # … and what its points are found by

    @classmethod
    def at(cls, url: str, api_key: str | None, timeout_s: float, breaker: Breaker) -> QdrantIndex:
        # Whether the versions fit would be asked at once, with a request that holds everybody up.
        client = AsyncQdrantClient(
            url=url, api_key=api_key, timeout=max(1, round(timeout_s)), check_compatibility=False
        )
        return cls(client, timeout_s, breaker)

    async def search(self, wanted: Wanted) -> list[Match]:
        dimensions = len(wanted.vector)
        if not await self._has_collection(dimensions):
            return []
        asked = {
            "tenant_id": str(wanted.tenant_id), "model": wanted.model, "type": wanted.type, "tags": wanted.tag,
            "job_id": str(wanted.job_id) if wanted.job_id is not None else None,
        }  # fmt: skip
        found = await self._ask(
            lambda: self._client.query_points(
                _collection(dimensions), query=list(wanted.vector), query_filter=_filter(asked), limit=wanted.limit,
                score_threshold=wanted.min_score, with_payload=False,
            )
        )  # fmt: skip
        return [Match(uuid.UUID(str(point.id)), point.score) for point in found.points]

    async def put(self, points: Sequence[Point]) -> None:
        """Once it has returned, the points are stored and found. Putting one twice is as good as once."""
        for dimensions in {len(point.vector) for point in points}:
            if dimensions not in self._prepared:
                await self._prepare(dimensions)
            same = [_struct(point) for point in points if len(point.vector) == dimensions]
            await self._ask(lambda: self._client.upsert(_collection(dimensions), same, wait=True))  # noqa: B023  awaited

    async def forget(self, dimensions: int, ids: Sequence[uuid.UUID]) -> None:
        if await self._has_collection(dimensions):
            chosen = models.PointIdsList(points=[str(each) for each in ids])
            await self._ask(lambda: self._client.delete(_collection(dimensions), chosen, wait=True))

    async def check(self) -> Component:
        """How it is, with how long it took to answer."""
        began = time.monotonic()
        try:
            await self._ask(self._client.get_collections)
        except MeshError as error:
            return degraded(f"no search by vectors: {error.message}")
        return Component("healthy", "qdrant", latency_ms=round((time.monotonic() - began) * 1000, 3))

    async def close(self) -> None:
        await self._client.close()

    async def _has_collection(self, dimensions: int) -> bool:
        if dimensions not in self._known and await self._ask(
            lambda: self._client.collection_exists(_collection(dimensions))
        ):
            self._known.add(dimensions)
        return dimensions in self._known

    async def _prepare(self, dimensions: int) -> None:
        """Makes what is missing of a collection. Another process may make it in this moment; then the next try finds it."""
        name = _collection(dimensions)
        params = models.VectorParams(size=dimensions, distance=models.Distance.COSINE)
        if not await self._has_collection(dimensions):
            await self._ask(lambda: self._client.create_collection(name, vectors_config=params))
        keyword = models.PayloadSchemaType.KEYWORD
        tenant = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
        await self._ask(lambda: self._client.create_payload_index(name, "tenant_id", tenant))
        for field in FIELDS:
            await self._ask(lambda: self._client.create_payload_index(name, field, keyword))  # noqa: B023  awaited
        self._prepared.add(dimensions)

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        if not self._breaker.allows(time.monotonic()):
            raise unavailable(f"Qdrant is away: {self._breaker.failure}", self._wait_ms())
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await question()
        except FAILURES as error:
            failure = _words(error, self._timeout_s)
            self._breaker.failed(time.monotonic(), failure)
            self._known.clear()
            self._prepared.clear()
            raise unavailable(f"Qdrant is away: {failure}", self._wait_ms()) from error
        self._breaker.succeeded()
        return answer

    def _wait_ms(self) -> int:
        return max(500, round(self._breaker.wait_s(time.monotonic()) * 1000))


def _collection(dimensions: int) -> str:
    return f"devmesh_contexts_{dimensions}"


def _struct(point: Point) -> models.PointStruct:
    payload = {
        "tenant_id": str(point.tenant_id), "model": point.model, "type": point.type, "tags": list(point.tags),
        "job_id": str(point.job_id) if point.job_id is not None else None,
    }  # fmt: skip
    return models.PointStruct(id=str(point.context_id), vector=list(point.vector), payload=payload)


def _filter(asked: Mapping[str, str | None]) -> models.Filter:
    """Everything that is asked for must be so; of tags, one."""
    return models.Filter(
        must=[
            models.FieldCondition(key=field, match=models.MatchValue(value=value))
            for field, value in asked.items()
            if value is not None
        ]
    )


def _words(error: Exception, timeout_s: float) -> str:
    """What went wrong, without what was asked."""
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    if isinstance(error, UnexpectedResponse):
        return f"it answers {error.status_code} {error.reason_phrase}".strip()
    if isinstance(error, ResponseHandlingException):
        error = error.source
    return str(error) or type(error).__name__
