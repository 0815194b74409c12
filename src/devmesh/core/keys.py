"""API keys: what they look like, what is stored of them, and how one is recognised. The secret itself is shown once."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import NamedTuple

PREFIX_CHARACTERS = 10
_SHAPE = re.compile(r"^dm_[A-Za-z0-9_-]{43}$")


class NewKey(NamedTuple):
    secret: str  # dm_ and 32 random bytes; never stored
    prefix: str
    key_hash: bytes


def new_key() -> NewKey:
    secret = "dm_" + secrets.token_urlsafe(32)
    return NewKey(secret, secret[:PREFIX_CHARACTERS], hash_of(secret))


def hash_of(secret: str) -> bytes:
    """A plain SHA-256 is enough: the secret has 256 random bits, so there is nothing to guess."""
    return hashlib.sha256(secret.encode()).digest()


def is_well_formed(secret: str) -> bool:
    return _SHAPE.fullmatch(secret) is not None


def matches(secret_hash: bytes, stored_hash: bytes) -> bool:
    """Compares in constant time."""
    return hmac.compare_digest(secret_hash, stored_hash)
