"""Operations called in this process, as loops of the engine meet what they have done."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from devmesh.core.access import Caller, Scope
from devmesh.core.ids import new_id
from devmesh.operations.corridor import Corridor


async def call(corridor: Corridor, tenant_id: uuid.UUID, method: str, **params: Any) -> dict[str, Any]:
    """The answer to somebody of the tenant who may do everything."""
    caller = Caller(tenant_id=tenant_id, key_id=new_id(), owner_id=new_id(), scopes=frozenset(Scope))
    found: dict[str, Any] = msgspec.json.decode(await corridor.serve(method, caller, msgspec.json.encode(params)))
    return found
