"""The key watch: a key that is revoked, or a token that has expired, ends the connections that stand on it.

A token's end is known beforehand, so its connections end at that time, whether or not the database can be asked. What else
makes a credential invalid is found within seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from devmesh.core.access import Credential
from devmesh.engine.loop import Loop
from devmesh.operations.authentication import Authenticator


class CredentialHolders(Protocol):
    """Open connections, or calls that wait, and what they stand on."""

    def credentials_in_use(self) -> set[Credential]: ...
    def close_credentials(self, credentials: set[Credential]) -> None: ...


class KeyWatch(Loop):
    name = "key-watch"

    def __init__(self, authenticator: Authenticator, holders: Sequence[CredentialHolders], interval_s: float) -> None:
        super().__init__(interval_s)
        self._authenticator, self._holders = authenticator, holders
        self._next_expiry: asyncio.TimerHandle | None = None

    async def run_once(self) -> bool:
        in_use = self._close_expired()
        if in_use:
            self._close(await self._authenticator.no_longer_valid(in_use))
        return False

    async def stop(self, limit_s: float = 5.0) -> None:
        await super().stop(limit_s)
        if self._next_expiry is not None:
            self._next_expiry.cancel()

    def _close_expired(self) -> set[Credential]:
        """The credentials that have not expired. It comes again when the next one does."""
        now_s = time.time()
        in_use = {credential for holder in self._holders for credential in holder.credentials_in_use()}
        expired = {credential for credential in in_use if credential.has_expired(now_s)}
        self._close(expired)
        if self._next_expiry is not None:
            self._next_expiry.cancel()
            self._next_expiry = None
        ends_s = [credential.token.expires_at_s for credential in in_use - expired if credential.token is not None]
        if ends_s:
            loop = asyncio.get_running_loop()
            self._next_expiry = loop.call_later(min(ends_s) - now_s, self._close_expired)
        return in_use - expired

    def _close(self, credentials: set[Credential]) -> None:
        for holder in self._holders if credentials else ():
            holder.close_credentials(credentials)
