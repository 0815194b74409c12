"""The token issuers of tenants, remembered for a few seconds, so that most tokens cost no look for who signed them.

Must not know tokens: it answers whose keys to try for what one claims to be.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from joserfc.jwk import OctKey

from devmesh.core.errors import MeshError
from devmesh.core.signing_keys import SECRET_PURPOSE, Signing, secret_key
from devmesh.core.tokens import Issuer
from devmesh.operations.gather import Gather
from devmesh.settings import Settings
from devmesh.store.database import Database, Record
from devmesh.store.statements import load
from devmesh.store.vault import Vault

SQL = load("issuers")
AGE_S_MAX = 3.0  # what an administrator changes holds within 5 s
NAMES_MAX = 10_000  # remembered at once; any caller may name any issuer
CANDIDATES_MAX = 16  # under one name


class Named(NamedTuple):
    """What a token claims to be."""

    issuer: str
    tenant: str | None


class _Known(NamedTuple):
    issuers: tuple[Issuer, ...]
    known_at_s: float


class KnownIssuers:
    def __init__(self, database: Database, vault: Vault, settings: Settings) -> None:
        self._database, self._vault = database, vault
        self._known: dict[Named, _Known] = {}  # the oldest first
        self._looks: Gather[Named, tuple[Issuer, ...]] = Gather(
            self._look,
            batch_max=settings.gather_batch_max,
            in_flight_max=settings.gather_in_flight_max,
            waiting_max=settings.gather_queue_max,
            deadline_s=settings.transaction_deadline_s,
        )

    async def find(self, named: Named) -> tuple[Issuer, ...]:
        """Those of any tenant that sign under a name; there may be several, or none. Raises MeshError."""
        known = self._known.get(named)
        if known is not None and time.monotonic() - known.known_at_s < AGE_S_MAX:
            return known.issuers
        return await self._looks.add(named)

    async def _look(self, named: Sequence[Named]) -> list[tuple[Issuer, ...]]:
        asked_at_s = time.monotonic()
        names, tenants = [name.issuer for name in named], [name.tenant for name in named]
        found: list[list[Issuer]] = [[] for _ in named]
        for row in await self._database.read(SQL.by_issuer, names, tenants, CANDIDATES_MAX):
            found[row["ordinal"] - 1].append(await self._issuer(row))
        for name, issuers in zip(named, found, strict=True):
            self._known.pop(name, None)
            while len(self._known) >= NAMES_MAX:
                del self._known[next(iter(self._known))]
            self._known[name] = _Known(tuple(issuers), asked_at_s)
        return [tuple(issuers) for issuers in found]

    async def _issuer(self, row: Record) -> Issuer:
        return Issuer(
            issuer_id=row["issuer_id"], tenant_id=row["tenant_id"], tenant_name=row["tenant_name"], issuer=row["issuer"],
            signing=Signing(row["algorithm"]), audience=row["audience"], jwks_url=row["jwks_url"],
            secret=await self._secret(row) if row["secret"] is not None else None,
        )  # fmt: skip

    async def _secret(self, row: Record) -> OctKey | None:
        """None when it cannot be opened for the moment; the vault has logged why."""
        try:
            place = (row["tenant_id"], SECRET_PURPOSE, row["issuer_id"])
            return secret_key(await self._vault.open(self._database, *place, row["secret"]))
        except MeshError:
            return None
