"""The keys that tokens are signed with: which of them are taken, and which one a token can have been signed with. Pure.

A secret serves HS256 and nothing else, a published key never serves HS256: otherwise whoever reads a public key could sign
with it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jwk import ECKey, JWKRegistry, Key, OctKey, RSAKey
from joserfc.jws import JWSRegistry

SECRET_BYTES_MIN = 32
SECRET_PURPOSE = "token_issuers.secret"  # noqa: S105  what the vault calls the place, not a secret
RSA_BITS_MIN, RSA_BITS_MAX = 2048, 8192
KEYS_MAX = 100  # of one set
HEADER_BYTES_MAX = 4096


class Signing(enum.StrEnum):
    """How an issuer signs: with a secret that we share, or with keys of which we read the public half."""

    HS256 = "HS256"
    JWKS = "JWKS"


RSA_ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
EDWARDS_ALGORITHMS = frozenset({"EdDSA", "Ed25519"})
ALGORITHMS: dict[Signing, frozenset[str]] = {
    Signing.HS256: frozenset({"HS256"}),
    Signing.JWKS: RSA_ALGORITHMS | CURVES.keys() | EDWARDS_ALGORITHMS,
}


class Algorithms(JWSRegistry):
    """Those of the library that are taken here, whatever else it would recommend or warn of."""

    max_header_length = HEADER_BYTES_MAX  # some issuers put a certificate into it

    def __init__(self) -> None:
        super().__init__(
            algorithms=sorted(ALGORITHMS[Signing.HS256] | ALGORITHMS[Signing.JWKS]), strict_check_header=False
        )

    def get_alg(self, name: str):  # type: ignore[no-untyped-def]  # its type is not exported
        if name not in (self.allowed or ()):
            raise UnsupportedAlgorithmError(f"{name} is not taken")
        return self.algorithms[name]


class KeysUnusable(Exception):
    """What should be keys is none. The message says why, and holds nothing of it."""


def secret_key(secret: bytes) -> OctKey:
    """Raises KeysUnusable."""
    if len(secret) < SECRET_BYTES_MIN:
        raise KeysUnusable(f"a secret has at least {SECRET_BYTES_MIN} bytes")
    if b"-----BEGIN" in secret or secret.startswith((b"ssh-", b"ecdsa-sha2-")):
        raise KeysUnusable("this is a key of another kind, not a secret")
    try:
        return OctKey.import_key(secret)
    except ValueError:
        raise KeysUnusable("this is a public key, not a secret") from None


class _Published(msgspec.Struct):
    keys: list[dict[str, Any]]


def published_keys(document: bytes) -> list[Key]:
    """The usable keys of a JWK set. Those that are not are passed over: a set may hold keys for other purposes.

    Raises KeysUnusable.
    """
    try:
        found = msgspec.json.decode(document, type=_Published).keys
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise KeysUnusable("it is no JWK set") from None
    keys = [key for data in found[:KEYS_MAX] if (key := _published_key(data)) is not None]
    if not keys:
        raise KeysUnusable(f"none of the {len(found)} keys of the JWK set can be used")
    return keys


def fitting(keys: Iterable[Key], algorithm: str, key_id: str | None) -> list[Key]:
    """The keys that a token with this header can have been signed with. One that names no key leaves all of its kind."""
    return [
        key
        for key in keys
        if (key_id is None or key.kid == key_id) and _fits(key, algorithm) and key.get("alg") in (None, algorithm)
    ]


def names(keys: Sequence[Key], key_id: str | None) -> bool:
    """Whether a set has the key that a token names, if it names one."""
    return key_id is None or any(key.kid == key_id for key in keys)


def _published_key(data: dict[str, Any]) -> Key | None:
    try:
        key = JWKRegistry.import_key(data)
        key.check_use("sig")
        key.check_key_op("verify")
    except (JoseError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    if isinstance(key, RSAKey):
        return key if RSA_BITS_MIN <= key.raw_value.key_size <= RSA_BITS_MAX else None
    return None if isinstance(key, OctKey) else key


def _fits(key: Key, algorithm: str) -> bool:
    if isinstance(key, OctKey):
        return algorithm in ALGORITHMS[Signing.HS256]
    if isinstance(key, RSAKey):
        return algorithm in RSA_ALGORITHMS
    if isinstance(key, ECKey):
        return CURVES.get(algorithm) == key.curve_name
    return algorithm in EDWARDS_ALGORITHMS and key.curve_name == "Ed25519"
