"""The key watch: a revoked or expired key ends the connections that it opened, within seconds."""

from __future__ import annotations

import uuid
from typing import Protocol

from devmesh.engine.loop import Loop
from devmesh.operations.authentication import Authenticator


class KeyHolders(Protocol):
    """Open connections and the keys that opened them."""

    def keys_in_use(self) -> set[tuple[uuid.UUID, uuid.UUID]]: ...
    def close_keys(self, key_ids: set[uuid.UUID]) -> None: ...


class KeyWatch(Loop):
    name = "key-watch"

    def __init__(self, authenticator: Authenticator, holders: KeyHolders, interval_s: float) -> None:
        super().__init__(interval_s)
        self._authenticator, self._holders = authenticator, holders

    async def run_once(self) -> bool:
        invalid = await self._authenticator.no_longer_valid(self._holders.keys_in_use())
        if invalid:
            self._holders.close_keys(invalid)
        return False
