"""What a worker beside the database is answered: what a client would be, whatever happened."""

from __future__ import annotations

import uuid
from typing import Any, cast

import msgspec
import pytest

from devmesh.client.errors import MeshError as ClientError
from devmesh.client.errors import may_pass
from devmesh.core.access import Caller, Scope
from devmesh.core.errors import Kind, MeshError, conflict, unavailable
from devmesh.engine.local_requests import OWN_BYTES_MAX, LocalRequests
from devmesh.operations.corridor import Corridor


class Broken:
    """A corridor in which everything fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def serve(self, _name: str, _caller: Caller, _raw: bytes) -> msgspec.Raw:
        raise self._error


class Counting:
    """A corridor that notes how long the parameters were."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    async def serve(self, _name: str, _caller: Caller, raw: bytes) -> msgspec.Raw:
        self.sizes.append(len(raw))
        return msgspec.Raw(b"{}")


def requests_to(corridor: Broken | Counting, message_bytes_max: int = 1_024) -> LocalRequests:
    someone = uuid.uuid4()
    caller = Caller(tenant_id=someone, key_id=someone, owner_id=someone, scopes=frozenset({Scope.WORKER}))
    return LocalRequests(cast("Corridor", corridor), caller, message_bytes_max)


@pytest.mark.parametrize(
    ("error", "kind", "passes"),
    [
        (ZeroDivisionError("nobody foresaw that"), Kind.INTERNAL, True),
        (MeshError(Kind.INTERNAL, "a mistake", error_id="f3b1"), Kind.INTERNAL, True),
        (unavailable("not now"), Kind.UNAVAILABLE, True),
        (conflict("worker.terminated", "it has left"), Kind.CONFLICT, False),
    ],
    ids=["unforeseen", "internal", "unavailable", "conflict"],
)
async def test_errors_are_those_of_the_wire(error: Exception, kind: Kind, *, passes: bool) -> None:
    with pytest.raises(ClientError) as raised:
        await requests_to(Broken(error)).request("job.claim", {}, dict[str, Any])
    assert (raised.value.kind, may_pass(raised.value)) == (kind, passes)
    assert (raised.value.error_id is not None) == (kind is Kind.INTERNAL)


@pytest.mark.parametrize(("limit", "bytes_max"), [(1_024, OWN_BYTES_MAX), (2 << 20, 2 << 20)])
async def test_a_message_has_a_limit_here_as_well(limit: int, bytes_max: int) -> None:
    """But what a worker says of a thousand leases goes in at any limit."""
    corridor = Counting()
    requests = requests_to(corridor, message_bytes_max=limit)
    assert await requests.request("job.complete", {"r": "x" * (bytes_max - 8)}, dict[str, Any]) == {}
    with pytest.raises(ClientError, match=rf"and job\.complete would have {bytes_max + 1}") as raised:
        await requests.request("job.complete", {"r": "x" * (bytes_max - 7)}, dict[str, Any])
    assert (raised.value.kind, raised.value.retryable, corridor.sizes) == (Kind.TOO_LARGE, False, [bytes_max])


async def test_what_no_message_can_carry_is_refused_as_a_client_does() -> None:
    requests = requests_to(Broken(AssertionError("it was asked")))
    for odd in (float("nan"), object()):
        with pytest.raises(ClientError, match="the parameters ") as refused:
            await requests.request("context.store", {"data": {"n": odd}}, dict[str, Any])
        assert refused.value.kind == Kind.INVALID_PARAMS
