"""The public keys of token issuers, fetched from their addresses and kept: the only part of tokens that knows the network.

A set is fetched when it is first asked for, at intervals while it is in use, and out of turn when a token names a key that it
has not, though not more often than the retry time. While an address does not answer, its last good set goes on serving; its
breaker says when to try again. The operator's set is always kept, and what becomes of it is told in health; tenants' addresses
are their own affair, and do not make this server ill.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from joserfc.jwk import Key

from devmesh import telemetry
from devmesh.core.components import Component, degraded, healthy, unhealthy
from devmesh.core.signing_keys import KeysUnusable, names, published_keys
from devmesh.core.tokens import keys_unavailable
from devmesh.engine.breaker import Breaker, log_change, watched
from devmesh.engine.fetcher import Fetcher, FetchFailed, Reach
from devmesh.engine.loop import Loop
from devmesh.settings import Settings

LOOK_INTERVAL_S = 0.5
UNUSED_S_MAX = 3600.0  # then a tenant's set is let go
SETS_MAX = 10_000
FETCHES_AT_ONCE_MAX = 50  # of tenants' sets


class KeySet:
    """The keys at one address, as they were when it last answered."""

    def __init__(self, url: str, is_operators: bool, breaker: Breaker) -> None:
        self.url, self.is_operators, self.breaker = url, is_operators, breaker
        self.shown = _shown(url)
        self.keys: Sequence[Key] | None = None
        self.failure = ""  # of the last fetch, if it failed
        self.fetched_at_s: float | None = None  # the last good one
        self.used_at_s = time.monotonic()
        self.due_at_s = 0.0
        self.sought_at_s = float("-inf")  # when the last fetch began
        self.fetching: asyncio.Task[None] | None = None


class KeySets(Loop):
    name = "key-sets"

    def __init__(self, settings: Settings) -> None:
        super().__init__(LOOK_INTERVAL_S)
        self._settings = settings
        self._fetcher = Fetcher(settings.jwks_timeout_s, settings.jwks_bytes_max)
        self._limit = asyncio.Semaphore(FETCHES_AT_ONCE_MAX)
        self._sets: dict[str, KeySet] = {}
        self._operators = self._set(settings.jwks_url, True) if settings.jwks_url is not None else None

    def at_hand(self, url: str) -> Sequence[Key] | None:
        found = self._sets.get(url)
        if found is None:
            return None
        found.used_at_s = time.monotonic()
        return found.keys

    async def sought(self, url: str, is_operators: bool, key_id: str | None) -> Sequence[Key]:
        """The keys after a look for one that is not at hand. Raises unavailable when nobody can know."""
        found = self._set(url, is_operators)
        if found.fetching is None and time.monotonic() - found.sought_at_s >= self._settings.jwks_retry_s:
            self._begin(found)
        if found.fetching is not None:
            await asyncio.wait([found.fetching], timeout=self._settings.jwks_timeout_s)
        is_there = found.keys is not None and (key_id is None or names(found.keys, key_id))
        if found.keys is None or (found.failure and not is_there):
            wait_s = max(found.breaker.wait_s(time.monotonic()), self._settings.jwks_retry_s)
            raise keys_unavailable(found.failure or "they are being fetched", int(wait_s * 1000))
        return found.keys

    async def run_once(self) -> bool:
        """Fetches what is due, and lets go of what nobody has asked for in a while."""
        now_s = time.monotonic()
        for found in list(self._sets.values()):
            if not found.is_operators and now_s - found.used_at_s > UNUSED_S_MAX:
                del self._sets[found.url]
            elif found.fetching is None and now_s >= found.due_at_s:
                self._begin(found)
        return False

    async def check_operators(self) -> Component:
        """How it stands with the operator's keys: without any, no token of the operator's can be told from a forged one."""
        found = self._operators
        assert found is not None
        if found.keys is None:
            return unhealthy(f"the keys at {found.shown} were never had: {found.failure or 'they are being fetched'}")
        assert found.fetched_at_s is not None
        if found.failure:
            age_s = time.monotonic() - found.fetched_at_s
            return degraded(f"the keys at {found.shown} are {age_s:.0f} s old, because {found.failure}")
        return healthy(f"keys: {len(found.keys)}")

    async def stop(self, limit_s: float = 5.0) -> None:
        await super().stop(limit_s)
        fetches = [found.fetching for found in self._sets.values() if found.fetching is not None]
        for task in fetches:
            task.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)
        await self._fetcher.close()

    def _set(self, url: str, is_operators: bool) -> KeySet:
        found = self._sets.get(url)
        if found is None:
            if len(self._sets) >= SETS_MAX:
                raise keys_unavailable("too many sets of keys are in use", 60_000)
            limits = (self._settings.breaker_failures_max, self._settings.breaker_open_s)
            breaker = (
                watched("jwks", *limits) if is_operators else Breaker(f"jwks at {_shown(url)}", *limits, log_change)
            )
            found = self._sets[url] = KeySet(url, is_operators, breaker)
        return found

    def _begin(self, found: KeySet) -> None:
        """Starts a fetch, if the breaker allows one."""
        now_s = time.monotonic()
        if not found.breaker.allows(now_s):
            found.due_at_s = now_s + found.breaker.wait_s(now_s)
            return
        found.sought_at_s = now_s
        found.fetching = asyncio.get_running_loop().create_task(self._fetch(found))

    async def _fetch(self, found: KeySet) -> None:
        """Never raises: what comes of it stands in the set."""
        try:
            async with contextlib.nullcontext() if found.is_operators else self._limit:
                keys = published_keys(await self._fetcher.fetch(found.url, self._reach(found.is_operators)))
        except (FetchFailed, KeysUnusable) as error:
            telemetry.KEY_SET_FETCHES.labels("failed").inc()
            found.failure = str(error)
            found.breaker.failed(time.monotonic(), found.failure)
            found.due_at_s = time.monotonic() + self._settings.jwks_retry_s
        else:
            telemetry.KEY_SET_FETCHES.labels("done").inc()
            found.keys, found.failure, found.fetched_at_s = keys, "", time.monotonic()
            found.breaker.succeeded()
            jitter = random.uniform(0.9, 1.0)  # noqa: S311  jitter is no secret
            found.due_at_s = found.fetched_at_s + self._settings.jwks_refresh_interval_s * jitter
        finally:
            found.fetching = None

    def _reach(self, is_operators: bool) -> Reach:
        is_open = self._settings.environment != "production"
        return Reach(private=is_operators or is_open or self._settings.jwks_private_addresses, plain=is_open)


def _shown(url: str) -> str:
    """An address for logs and health: what else stands in it may be a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
