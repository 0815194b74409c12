"""The verbs of token issuers: whose tokens a tenant believes."""

from __future__ import annotations

import datetime
import uuid
from typing import Annotated

import msgspec
from msgspec import Meta

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.ids import new_id
from devmesh.core.names import WITHOUT_NUL, Name, PageCursor, PageLimit, decode_page_cursor, like, page_cursor
from devmesh.core.signing_keys import SECRET_BYTES_MIN, SECRET_PURPOSE, KeysUnusable, Signing, secret_key
from devmesh.operations.registry import Call, Mutation, Params, one_given, operation
from devmesh.operations.work import Work
from devmesh.store.statements import load

SQL = load("issuers")
ISSUERS_MAX = 20  # of a tenant

WITHOUT_SPACES = like(r"^[^\x00-\x20\x7f]+$(?!\n)", "a text without spaces, line breaks and other control characters")
Claim = Annotated[str, Meta(min_length=1, max_length=1000, pattern=WITHOUT_SPACES)]
Secret = Annotated[str, Meta(min_length=SECRET_BYTES_MIN, max_length=1024, pattern=WITHOUT_NUL)]
_WORD = r"[0-9A-Fa-f]{1,4}"  # of an IPv6 address: eight of them, or fewer with a gap
_IPV6 = rf"\[(({_WORD}:){{7}}{_WORD}|({_WORD}:){{1,6}}:{_WORD}|::{_WORD})\]"
_HOST = rf"([A-Za-z0-9]([A-Za-z0-9.-]{{0,200}}[A-Za-z0-9])?|{_IPV6})"
_PORT = r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_ADDRESS = like(
    rf"^https?://{_HOST}(:{_PORT})?([/?][^\x00-\x20\x7f#]*)?$(?!\n)", "an address as in https://example.org/keys.json"
)
Address = Annotated[str, Meta(max_length=2000, pattern=_ADDRESS)]


class TokenIssuer(msgspec.Struct):
    """An issuer without its secret."""

    id: uuid.UUID
    name: str
    issuer: str
    algorithm: Signing
    jwks_url: str | None
    audience: str | None
    created_at: datetime.datetime


class IssuerResult(msgspec.Struct):
    issuer: TokenIssuer


class CreateIssuer(Mutation, kw_only=True):
    """`issuer` is the claim `iss` of the tokens. HS256 has a `secret` of at least 32 bytes, which is never shown again; JWKS
    has the `jwks_url` of the public keys. With `audience`, tokens have to name it in `aud`."""

    together = (one_given({"secret": ..., "algorithm": "HS256"}, {"jwks_url": ..., "algorithm": "JWKS"}),)

    name: Name
    issuer: Claim
    algorithm: Signing
    secret: Secret | None = None
    jwks_url: Address | None = None
    audience: Claim | None = None


@operation("issuer.create", scope=Scope.ADMIN, http="POST /issuers", single=True, audited=True)
async def create_issuer(work: Work, call: Call[CreateIssuer]) -> IssuerResult:
    """Believe the tokens of an issuer from now on. They act in this tenant only.

    Two issuers may have the same `iss`: so a secret is replaced without a gap, by adding the new one before deleting the old.
    """
    asked, issuer_id = call.params, new_id()
    _require_fitting(asked)
    if await work.tx.fetch_value(SQL.count, work.tenant_id, ISSUERS_MAX) >= ISSUERS_MAX:
        raise errors.MeshError(errors.Kind.QUOTA_EXCEEDED, f"a tenant has {ISSUERS_MAX} issuers at the most")
    sealed = None
    if asked.secret is not None:
        secret = asked.secret.encode()
        sealed = await work.vault.seal(work.tx, work.tenant_id, SECRET_PURPOSE, issuer_id, secret)
    row = await work.tx.fetch_row(
        SQL.insert, work.tenant_id, issuer_id, asked.name, asked.issuer, asked.algorithm.value, sealed, asked.jwks_url,
        asked.audience,
    )  # fmt: skip
    if row is None:
        raise errors.conflict("issuer.name", f"there is an issuer {asked.name!r} already")
    return IssuerResult(TokenIssuer(*row))


class ListIssuers(Params, kw_only=True):
    limit: PageLimit = 50
    cursor: PageCursor | None = None


class IssuersResult(msgspec.Struct):
    issuers: list[TokenIssuer]
    next_cursor: str | None = None


@operation("issuer.list", scope=Scope.ADMIN, http="GET /issuers", single=True)
async def list_issuers(work: Work, call: Call[ListIssuers]) -> IssuersResult:
    """List the issuers whose tokens are believed, newest first. Secrets are not shown."""
    rows = await work.tx.fetch(SQL.page, work.tenant_id, decode_page_cursor(call.params.cursor), call.params.limit)
    found = [TokenIssuer(*row) for row in rows]
    return IssuersResult(found, page_cursor([issuer.id for issuer in found], call.params.limit))


class IssuerById(Mutation, kw_only=True):
    issuer_id: uuid.UUID


@operation("issuer.delete", scope=Scope.ADMIN, http="DELETE /issuers/{issuer_id}", single=True, audited=True)
async def delete_issuer(work: Work, call: Call[IssuerById]) -> IssuerResult:
    """Refuse an issuer's tokens, and close the connections that stand on them, within 5 s."""
    row = await work.tx.fetch_row(SQL.delete, work.tenant_id, call.params.issuer_id)
    if row is None:
        raise errors.not_found("issuer", call.params.issuer_id)
    return IssuerResult(TokenIssuer(*row))


def _require_fitting(asked: CreateIssuer) -> None:
    """What an issuer has depends on how it signs."""
    if asked.algorithm is Signing.HS256:
        if asked.jwks_url is not None:
            raise errors.invalid("jwks_url: HS256 has a secret instead", "jwks_url")
        if asked.secret is None:
            raise errors.invalid("secret: HS256 needs one", "secret")
        try:
            secret_key(asked.secret.encode())
        except KeysUnusable as problem:
            raise errors.invalid(f"secret: {problem}", "secret") from None
        return
    if asked.secret is not None:
        raise errors.invalid("secret: with JWKS there are public keys instead", "secret")
    if asked.jwks_url is None:
        raise errors.invalid("jwks_url: JWKS needs one", "jwks_url")
