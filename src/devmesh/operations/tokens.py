"""From a token to what it proves: whose it is, and by whom it was signed.

Most tokens are judged from memory. Only when no key at hand has signed a token are keys asked for: those who fetch them decide
how often. Must not know how keys are fetched, nor what becomes of a refusal.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from joserfc.jwk import Key

from devmesh.core import tokens
from devmesh.core.access import Caller, TokenOrigin
from devmesh.core.errors import MeshError, unauthenticated
from devmesh.core.signing_keys import ALGORITHMS, Signing, names, secret_key
from devmesh.core.tokens import Claims, Issuer, Token
from devmesh.operations.known_issuers import KnownIssuers, Named
from devmesh.settings import Settings
from devmesh.store.database import Database, Record, Transaction
from devmesh.store.statements import load
from devmesh.store.vault import Vault

SQL = load("issuers")
SECRET_RETRY_MS = 5_000


class KeySource(Protocol):
    """The public keys of issuers, fetched and kept by somebody who knows the network."""

    def at_hand(self, url: str) -> Sequence[Key] | None: ...

    async def sought(self, url: str, is_operators: bool, key_id: str | None) -> Sequence[Key]:
        """The keys after a look for one that is not at hand. Raises unavailable when nobody can know."""


class Proof(NamedTuple):
    """A token that is what it says, and who signed it."""

    issuer: Issuer
    claims: Claims
    origin: TokenOrigin

    @property
    def tenant(self) -> str | None:
        """The tenant that it acts in, by id or name."""
        return self.claims.tenant if self.issuer.is_operators else str(self.issuer.tenant_id)


class Tokens:
    def __init__(self, database: Database, vault: Vault, source: KeySource, settings: Settings) -> None:
        self._source, self._settings = source, settings
        self._known = KnownIssuers(database, vault, settings)
        self._operators = _operators_issuers(settings)

    async def prove(self, text: str) -> Proof:
        """Raises unauthenticated, each cause by its own reason, or unavailable when it cannot be told."""
        token = tokens.read(text)
        issuer = await self._signer(token)
        claims, settings = token.claims, self._settings
        tokens.require_time(claims, time.time(), settings.jwt_life_s_max, settings.jwt_leeway_s)
        if claims.sub is None:
            raise unauthenticated("subject", "a token says whom it stands for, in the claim `sub`")
        if issuer.is_operators and claims.tenant is None:
            raise unauthenticated("tenant", "a token of this issuer names its tenant, in the claim `tenant`")
        assert claims.exp is not None
        return Proof(issuer, claims, TokenOrigin(issuer.issuer_id, claims.iss, claims.sub, claims.exp))

    async def _signer(self, token: Token) -> Issuer:
        """Who has signed a token: the operator before any tenant. First by the keys at hand, then after a look for others."""
        claims = token.claims
        own = [issuer for issuer in self._operators if issuer.issuer in (None, claims.iss)]
        if signers := self._signers(token, own):
            return signers[0]
        others = await self._known.find(Named(claims.iss, claims.tenant)) if claims.iss is not None else ()
        if signers := self._signers(token, others):
            return _only(signers, claims.tenant)
        candidates = [*own, *others]
        if not candidates:
            raise unauthenticated("issuer", "nobody here believes the issuer of this token: see its claim `iss`")
        refusals = await asyncio.gather(*(self._refusal_after_look(token, issuer) for issuer in candidates))
        signers = [issuer for issuer, refusal in zip(candidates, refusals, strict=True) if refusal is None]
        if not signers:
            raise tokens.farthest(refusal for refusal in refusals if refusal is not None)
        return signers[0] if signers[0].is_operators else _only(signers, claims.tenant)

    def _signers(self, token: Token, issuers: Iterable[Issuer]) -> list[Issuer]:
        return [issuer for issuer in issuers if _refusal(token, issuer, self._at_hand(issuer)) is None]

    def _at_hand(self, issuer: Issuer) -> Sequence[Key]:
        if issuer.jwks_url is not None:
            return self._source.at_hand(issuer.jwks_url) or ()
        return (issuer.secret,) if issuer.secret is not None else ()

    async def _refusal_after_look(self, token: Token, issuer: Issuer) -> MeshError | None:
        """Why an issuer has not signed a token; nothing, when it has after all."""
        if issuer.signing is Signing.HS256 and issuer.secret is None:
            return tokens.keys_unavailable("the secret cannot be opened", SECRET_RETRY_MS)
        keys = self._at_hand(issuer)
        may_be_elsewhere = token.key_id is None or not names(keys, token.key_id)
        if issuer.jwks_url is not None and token.algorithm in ALGORITHMS[Signing.JWKS] and may_be_elsewhere:
            try:
                keys = await self._source.sought(issuer.jwks_url, issuer.is_operators, token.key_id)
            except MeshError as error:
                return error
        return _refusal(token, issuer, keys)


async def bearers(tx: Transaction, proofs: Sequence[Proof]) -> list[Caller | MeshError]:
    """Who comes with each token: the tenant that it acts in and the agent that it is bound to have to be there."""
    tenants = [_id_or_name(proof.tenant) for proof in proofs]
    agents = [_id_or_name(proof.claims.agent) for proof in proofs]
    rows = await tx.fetch(
        SQL.bearers, [tenant.id for tenant in tenants], [tenant.name for tenant in tenants],
        [agent.id for agent in agents], [agent.name for agent in agents],
    )  # fmt: skip
    found = {row["ordinal"] - 1: row for row in rows}
    return [_bearer(proof, found[place]) for place, proof in enumerate(proofs)]


def _bearer(proof: Proof, row: Record) -> Caller | MeshError:
    if row["tenant_id"] is None:
        return unauthenticated("tenant", "there is no tenant as in the claim `tenant` of this token")
    if row["is_suspended"]:
        return unauthenticated("suspended", "this tenant is suspended")
    if proof.claims.agent is not None and row["agent_id"] is None:
        return unauthenticated("agent", "there is no agent as in the claim `agent` of this token")
    subject = tokens.subject_id(proof.origin.issuer, proof.origin.subject)
    return Caller(
        tenant_id=row["tenant_id"], key_id=subject, owner_id=subject, scopes=proof.claims.scopes,
        bound_agent_id=row["agent_id"], token=proof.origin,
    )  # fmt: skip


class _IdOrName(NamedTuple):
    id: uuid.UUID | None
    name: str | None


def _id_or_name(text: str | None) -> _IdOrName:
    try:
        return _IdOrName(uuid.UUID(text), None) if text is not None else _IdOrName(None, None)
    except ValueError:
        return _IdOrName(None, text)


def _refusal(token: Token, issuer: Issuer, keys: Sequence[Key]) -> MeshError | None:
    try:
        tokens.require_signature(token, issuer, keys)
    except MeshError as error:
        return error
    return None


def _only(signers: Sequence[Issuer], tenant: str | None) -> Issuer:
    """The one of them that a token acts for. Tenants may share an issuer: then its tokens have to say whose they are."""
    meant = [issuer for issuer in signers if issuer.answers_to(tenant)]
    if not meant:
        raise unauthenticated("tenant", "the issuer of this token does not sign for the tenant in its claim `tenant`")
    if len({issuer.tenant_id for issuer in meant}) > 1:
        raise unauthenticated("ambiguous", "several tenants believe this issuer: name one in the claim `tenant`")
    return meant[0]


def _operators_issuers(settings: Settings) -> list[Issuer]:
    found = []
    if settings.jwt_secret is not None:
        secret = secret_key(settings.jwt_secret.encode())
        found.append(_operators(settings, signing=Signing.HS256, secret=secret))
    if settings.jwks_url is not None:
        found.append(_operators(settings, signing=Signing.JWKS, jwks_url=settings.jwks_url))
    return found


def _operators(settings: Settings, **signing: Any) -> Issuer:
    return Issuer(issuer=settings.jwt_issuer, audience=settings.jwt_audience, **signing)
