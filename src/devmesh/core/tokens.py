"""JSON Web Tokens: what one looks like, what it says, and when it is refused. Pure: the time and the keys are handed in.

What a token says counts for nothing until a key of its issuer has verified it; until then it only says whose keys to try. Each
refusal has a reason of its own, and none repeats what the token holds.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import Key, OctKey

from devmesh.core.access import Scope
from devmesh.core.errors import Kind, MeshError, unauthenticated
from devmesh.core.signing_keys import ALGORITHMS, Algorithms, Signing, fitting

TOKEN_CHARACTERS_MAX = 16_384
CLAIM_CHARACTERS_MAX = 1000
KEYS_TRIED_MAX = 8  # of one issuer, for a token that names none
SUBJECTS = uuid.UUID("0bd2b0f5-1c61-5b61-9c5e-5a1c2f1b8b2e")  # the namespace of subjects' ids
_ALGORITHMS = Algorithms()
_SCOPES = frozenset(scope.value for scope in Scope)


class Issuer(msgspec.Struct, frozen=True, kw_only=True):
    """Whose tokens are believed. Those of the operator, who has no id here, may name any tenant."""

    issuer_id: uuid.UUID | None = None
    tenant_id: uuid.UUID | None = None
    tenant_name: str | None = None
    issuer: str | None  # the claim `iss`; None: any, which only the operator may
    signing: Signing
    audience: str | None = None
    secret: OctKey | None = None
    jwks_url: str | None = None

    @property
    def is_operators(self) -> bool:
        return self.issuer_id is None

    def answers_to(self, tenant: str | None) -> bool:
        """Whether a token of this issuer that names a tenant, or none, acts in its tenant."""
        return tenant is None or tenant in (self.tenant_name, str(self.tenant_id))


class Claims(msgspec.Struct, frozen=True):
    """What a token says, of all that one may say. Times are in seconds since 1970."""

    iss: str | None = None
    sub: str | None = None
    aud: str | list[str] | None = None
    exp: float | None = None
    nbf: float | None = None
    iat: float | None = None
    scope: str | list[str] | None = None
    tenant: str | None = None
    agent: str | None = None

    @property
    def scopes(self) -> frozenset[Scope]:
        """Those that we know. There may be none left, and then the caller may do nothing."""
        named = self.scope.split() if isinstance(self.scope, str) else self.scope or []
        return frozenset(Scope(name) for name in named if name in _SCOPES)


class Token(NamedTuple):
    signature: jws.CompactSignature
    algorithm: str
    key_id: str | None
    claims: Claims


def is_token(credential: str) -> bool:
    """By its shape: an API key begins with dm_ and has no dots."""
    return credential.count(".") == 2 and not credential.startswith("dm_")


def read(text: str) -> Token:
    """What a token says, not verified. Raises unauthenticated."""
    if len(text) > TOKEN_CHARACTERS_MAX:
        raise unauthenticated("malformed", f"a token has {TOKEN_CHARACTERS_MAX} characters at the most")
    try:
        signature = jws.extract_compact(text.encode(), registry=_ALGORITHMS)
        header: Any = signature.headers()
        _ALGORITHMS.check_header(header)
        claims = msgspec.json.decode(signature.payload, type=Claims)
    except (JoseError, msgspec.MsgspecError, ValueError, TypeError, AttributeError, RecursionError):
        raise unauthenticated("malformed", "this is not a JSON Web Token as we know them") from None
    if "crit" in header or "b64" in header:
        raise unauthenticated("malformed", "this token asks for an extension that is not known here")
    for claim in (claims.iss, claims.sub, claims.tenant, claims.agent):
        if claim is not None and not (0 < len(claim) <= CLAIM_CHARACTERS_MAX and claim.isprintable()):
            message = f"iss, sub, tenant and agent have 1 to {CLAIM_CHARACTERS_MAX} characters that can be printed"
            raise unauthenticated("malformed", message)
    return Token(signature, header["alg"], header.get("kid"), claims)


def require_signature(token: Token, issuer: Issuer, keys: Iterable[Key]) -> None:
    """Raises unauthenticated unless one of the issuer's keys has signed the token, by an algorithm of the issuer's."""
    if token.algorithm not in ALGORITHMS[issuer.signing]:
        raise unauthenticated("algorithm", f"the issuer of this token does not sign with {token.algorithm[:20]}")
    found = fitting(keys, token.algorithm, token.key_id if issuer.signing is Signing.JWKS else None)
    if not found:
        raise unauthenticated("key", "the issuer of this token has no such key")
    if not any(_is_signed_by(token, key) for key in found[:KEYS_TRIED_MAX]):
        raise unauthenticated("signature", "the signature of this token is not its issuer's")
    named = [token.claims.aud] if isinstance(token.claims.aud, str) else token.claims.aud or []
    if issuer.audience is not None and issuer.audience not in named:
        raise unauthenticated("audience", "this token is meant for somebody else: see its claim `aud`")


def require_time(claims: Claims, now_s: float, life_s_max: float, leeway_s: float) -> None:
    """Raises unauthenticated unless the token is valid now and does not live too long.

    An issuer's clock may be ahead by the leeway; what has expired has expired.
    """
    if claims.exp is None or not math.isfinite(claims.exp):
        raise unauthenticated("no_expiry", "a token has the claim `exp`")
    if claims.exp <= now_s:
        raise unauthenticated("expired", "this token has expired")
    begin_s = max((time_s for time_s in (claims.nbf, claims.iat) if time_s is not None), default=now_s)
    if not begin_s <= now_s + leeway_s:
        raise unauthenticated("not_yet_valid", "this token is not valid yet: see its claims `nbf` and `iat`")
    if claims.exp - (claims.iat if claims.iat is not None else now_s) > life_s_max:
        raise unauthenticated("lifetime", f"a token may live for {life_s_max:g} s at the most")


def subject_id(issuer: str | None, subject: str) -> uuid.UUID:
    """What stands in the place of a key's id: the same for every token of a subject, so that its agents stay its own."""
    return uuid.uuid5(SUBJECTS, msgspec.json.encode([issuer, subject]).decode())


def keys_unavailable(why: str, retry_after_ms: int) -> MeshError:
    """Not a refusal: the same token may be good in a moment."""
    message = f"the keys of this token's issuer cannot be had at present: {why}"
    return MeshError(Kind.UNAVAILABLE, message, retry_after_ms=retry_after_ms, reason="credential.keys_unavailable")


# How far a token came with an issuer: with several, the answer is that of the one with whom it came farthest.
PROGRESS = ("credential.algorithm", "credential.key", "credential.signature", "credential.audience")


def farthest(refusals: Iterable[MeshError]) -> MeshError:
    """One that we cannot tell, because keys are not to be had, comes before all that we can."""
    return max(refusals, key=lambda error: PROGRESS.index(reason) if (reason := error.data.reason) in PROGRESS else 99)


def _is_signed_by(token: Token, key: Key) -> bool:
    try:
        return jws.validate_compact(token.signature, key, registry=_ALGORITHMS)
    except (JoseError, ValueError):
        return False
