"""From a presented credential to a caller: looked up together with the others that came meanwhile, counted when refused."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import structs

from devmesh import telemetry
from devmesh.core import keys
from devmesh.core.access import Caller, Credential, Scope
from devmesh.core.errors import Kind, MeshError, unauthenticated
from devmesh.core.tokens import is_token
from devmesh.operations.gather import Gather
from devmesh.operations.tokens import Proof, Tokens, bearers
from devmesh.settings import Settings
from devmesh.store.database import Database, Record, Transaction
from devmesh.store.statements import load

SQL = load("keys")
ISSUERS = load("issuers")
BLAMELESS = frozenset({"credential.ambiguous"})  # who presents it has been made ambiguous by others


class Presented(NamedTuple):
    secret: str
    address: str
    proof: Proof | MeshError | None  # of a token, or why it is refused; None: it is none

    @property
    def is_key(self) -> bool:
        return self.proof is None and keys.is_well_formed(self.secret)


class Authenticator:
    def __init__(self, database: Database, settings: Settings, tokens: Tokens | None = None) -> None:
        """Without `tokens`, none is believed."""
        self._database, self._settings, self._tokens = database, settings, tokens
        self._gather: Gather[Presented, Caller] = Gather(
            self._check,
            batch_max=settings.gather_batch_max,
            in_flight_max=settings.gather_in_flight_max,
            waiting_max=settings.gather_queue_max,
            deadline_s=settings.transaction_deadline_s,
        )

    async def authenticate(self, secret: str | None, address: str) -> Caller:
        """The caller whom a key or a token belongs to.

        Raises unauthenticated, each cause by its own `reason`, rate_limited, or unavailable.
        """
        if not secret:
            raise unauthenticated("missing", "no credential: send `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        return await self._gather.add(Presented(secret, address, await self._proof(secret)))

    async def _proof(self, secret: str) -> Proof | MeshError | None:
        """Raises unavailable. What is refused goes on, to be counted."""
        if not is_token(secret):
            return None
        if self._tokens is None:
            return unauthenticated("issuer", "no tokens are taken here, only keys")
        try:
            return await self._tokens.prove(secret)
        except MeshError as error:
            if error.kind is not Kind.UNAUTHENTICATED:
                raise
            return error

    async def _check(self, presented: Sequence[Presented]) -> Sequence[Caller | BaseException]:
        return await self._database.run(lambda tx: self._look_up(tx, presented))

    async def _look_up(self, tx: Transaction, presented: Sequence[Presented]) -> list[Caller | BaseException]:
        prefixes = [item.secret[: keys.PREFIX_CHARACTERS] if item.is_key else "" for item in presented]
        rows = await tx.fetch(SQL.look_up, prefixes, [item.address for item in presented])
        locked = {row["ordinal"] - 1: locked_out(row["locked_s"]) for row in rows if row["locked_s"] is not None}
        matched = {
            place: row for row in rows if (place := row["ordinal"] - 1) not in locked and _is_of(row, presented[place])
        }
        proven = {
            place: item.proof
            for place, item in enumerate(presented)
            if isinstance(item.proof, Proof) and place not in locked
        }
        callers = {place: _caller(row) for place, row in matched.items()}
        callers |= dict(zip(proven, await bearers(tx, list(proven.values())), strict=True)) if proven else {}
        answers: list[Caller | BaseException] = []
        for place, item in enumerate(presented):
            answer = locked.get(place) or callers.get(place) or _refusal(item)
            answers.append(structs.replace(answer, address=item.address) if isinstance(answer, Caller) else answer)
        await self._note_use(tx, [row for place, row in matched.items() if isinstance(callers[place], Caller)])
        await self._note_failures(tx, presented, answers)
        return answers

    async def _note_use(self, tx: Transaction, rows: Sequence[Record]) -> None:
        unnoted = [row for row in rows if row["is_use_unnoted"]]
        if unnoted:
            await tx.execute(SQL.note_use, [row["tenant_id"] for row in unnoted], [row["key_id"] for row in unnoted])

    async def _note_failures(
        self, tx: Transaction, presented: Sequence[Presented], answers: Sequence[Caller | BaseException]
    ) -> None:
        failed = [
            item.address
            for item, answer in zip(presented, answers, strict=True)
            if isinstance(answer, MeshError)
            and answer.kind is Kind.UNAUTHENTICATED
            and answer.data.reason not in BLAMELESS
        ]
        if failed:
            telemetry.AUTHENTICATION_FAILURES.inc(len(failed))
            await tx.execute(SQL.note_failures, failed)
            limit, lockout_s = self._settings.auth_failures_per_minute_max, self._settings.auth_lockout_s
            await tx.execute(SQL.lock_out, sorted(set(failed)), limit, float(lockout_s))

    async def no_longer_valid(self, in_use: set[Credential]) -> set[Credential]:
        """Which of these were revoked, have expired, have lost their issuer or belong to a suspended tenant."""
        of_keys = [credential for credential in in_use if credential.token is None]
        of_tokens = [(credential, credential.token) for credential in in_use if credential.token is not None]
        invalid: set[Credential] = {credential for credential in in_use if credential.has_expired(time.time())}
        if of_keys:
            tenants, key_ids = [key.tenant_id for key in of_keys], [key.key_id for key in of_keys]
            gone = {row["key_id"] for row in await self._database.read(SQL.invalid, tenants, key_ids)}
            invalid |= {key for key in of_keys if key.key_id in gone}
        if of_tokens:
            tenants, issuers = [of.tenant_id for of, _ in of_tokens], [token.issuer_id for _, token in of_tokens]
            rows = await self._database.read(ISSUERS.invalid, tenants, issuers)
            invalid |= {of_tokens[row["ordinal"] - 1][0] for row in rows}
        return invalid


def locked_out(locked_s: float) -> MeshError:
    message = (
        "too many refused credentials came from this address: good ones are refused as well until it is let in again"
    )
    return MeshError(
        Kind.RATE_LIMITED, message, retry_after_ms=int(locked_s * 1000) + 1, reason="credential.locked_out"
    )


def _refusal(item: Presented) -> MeshError:
    """Why nothing was found for it."""
    if isinstance(item.proof, MeshError):
        return item.proof
    if item.is_key:
        return unauthenticated("unknown", "this key is not known")
    message = "this is neither a key, which begins with dm_ and has 46 characters, nor a JSON Web Token"
    return unauthenticated("malformed", message)


def _is_of(row: Record, item: Presented) -> bool:
    return row["key_hash"] is not None and keys.matches(keys.hash_of(item.secret), row["key_hash"])


def _caller(row: Record) -> Caller | MeshError:
    if row["is_revoked"]:
        return unauthenticated("revoked", "this key was revoked")
    if row["is_expired"]:
        return unauthenticated("expired", "this key has expired")
    if row["is_suspended"]:
        return unauthenticated("suspended", "this tenant is suspended")
    return Caller(
        tenant_id=row["tenant_id"], key_id=row["key_id"], owner_id=row["owner_id"],
        scopes=_scopes(tuple(row["scopes"])), bound_agent_id=row["agent_id"],
    )  # fmt: skip


@functools.lru_cache(maxsize=1000)
def _scopes(names: tuple[str, ...]) -> frozenset[Scope]:
    """Shared by all callers that hold the same: there are many connections and few sorts of them."""
    return frozenset(Scope(name) for name in names)
