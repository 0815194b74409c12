"""What a client's requests are for a worker beside the database: the same operations, called in this process.

No socket, no key and no idempotency record stand between: what fences a report is its attempt. A message has the limit that it
has over a socket: a result is sent or not sent, wherever its worker runs, and what is too long would hold up everybody's loops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from devmesh.client import jsons
from devmesh.client.codecs import unsendable
from devmesh.client.errors import MeshError as ClientError
from devmesh.core.access import Caller
from devmesh.core.errors import Kind
from devmesh.operations.corridor import Corridor
from devmesh.store.faults import translate

T = TypeVar("T")
TIMEOUT_S_DEFAULT = 30.0
OWN_BYTES_MAX = 1 << 20  # what a worker says of itself, of a thousand leases or reports at once, goes in at any limit


class LocalRequests:
    def __init__(self, corridor: Corridor, caller: Caller, message_bytes_max: int) -> None:
        self._corridor, self._caller, self._message_bytes_max = corridor, caller, message_bytes_max
        self.timeout_s = TIMEOUT_S_DEFAULT

    async def request(
        self, method: str, params: Mapping[str, Any], shape: type[T], *, timeout_s: float | None = None
    ) -> T:
        """The answer, decoded into a type. Raises the client's MeshError, as the wire's client does."""
        try:
            raw = jsons.encode(params)
        except jsons.NO_JSON as problem:
            raise unsendable(method, problem) from None
        if len(raw) > (limit := max(self._message_bytes_max, OWN_BYTES_MAX)):
            message = f"a message has {limit} bytes at the most, and {method} would have {len(raw)}"
            raise ClientError(Kind.TOO_LARGE, message)
        try:
            async with asyncio.timeout(self.timeout_s if timeout_s is None else timeout_s):
                answer = await self._corridor.serve(method, self._caller, raw)
        except TimeoutError:
            raise ClientError(Kind.TIMEOUT, f"no answer to {method} in time") from None
        except Exception as problem:
            error = translate(problem)
            data = error.data
            raise ClientError(
                error.kind, error.message, retryable=data.retryable, retry_after_ms=data.retry_after_ms, field=data.field,
                reason=data.reason, error_id=data.error_id,
            ) from problem  # fmt: skip
        return msgspec.json.decode(answer, type=shape)
