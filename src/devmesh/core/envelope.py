"""Envelope encryption of secrets at rest: what a sealed value looks like and how one is sealed and opened. Pure.

A secret is sealed under a data key, and data keys are wrapped under a master key, both with AES-256-GCM. A sealed value names
its data key, and it is bound to its place: moved to another row, column or tenant it does not open. Keys never show
themselves: what is printed of one is its id. Must not know where keys or values are kept.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import uuid
from collections.abc import Iterable
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VERSION = 1
KEY_BYTES = 32
NONCE_BYTES = 12  # random: one data key may seal 2^32 values before two of them could be expected to meet
TAG_BYTES = 16
ID_BYTES = 16
FINGERPRINT_BYTES = 8

# What keeps a digest or a ciphertext of one purpose from being taken for one of another.
_FINGERPRINT_LABEL = b"devmesh master key\0"
_WRAPPING_LABEL = b"devmesh data key\0"
_SEALING_LABEL = b"devmesh secret\0"
# 32 bytes in either alphabet of base64: the last of 43 characters carries four bits, its other two are zero.
_BASE64_SHAPE = re.compile(r"([A-Za-z0-9+/]{42}|[A-Za-z0-9_-]{42})[AEIMQUYcgkosw048]=?")


class EnvelopeError(Exception):
    """Something cannot be opened. Its words hold neither a key nor any part of a value."""


class Malformed(EnvelopeError):
    """It is not as long as a sealed value is, or a key is not a key."""


class WrongVersion(EnvelopeError):
    """It was sealed in a way that this program does not know."""


class WrongKey(EnvelopeError):
    """It names another key than the one that was tried."""


class NoKey(EnvelopeError):
    """The key that it names is not at hand."""


class NotAuthentic(EnvelopeError):
    """It was altered, moved here from another place, or sealed under another key of the same name."""


class Place(NamedTuple):
    """Where a sealed value belongs, and the only place where it opens."""

    tenant_id: uuid.UUID
    purpose: str  # its table and column, as in `token_issuers.secret`
    row_id: uuid.UUID


class DataKey:
    """Seals and opens values."""

    __slots__ = ("_cipher", "_key", "id")

    def __init__(self, key_id: uuid.UUID, key: bytes) -> None:
        self.id, self._key, self._cipher = key_id, key, AESGCM(key)

    def __repr__(self) -> str:
        return f"DataKey({self.id})"

    def seal(self, place: Place, secret: bytes) -> bytes:
        header = bytes([VERSION]) + self.id.bytes
        nonce = os.urandom(NONCE_BYTES)
        return header + nonce + self._cipher.encrypt(nonce, secret, _bound(header, place))

    def open(self, place: Place, sealed: bytes) -> bytes:
        """Raises `EnvelopeError`."""
        if data_key_of(sealed) != self.id:
            raise WrongKey(f"it was sealed under the data key {data_key_of(sealed)}, not {self.id}")
        header, rest = sealed[: 1 + ID_BYTES], sealed[1 + ID_BYTES :]
        return _decrypt(self._cipher, rest, _bound(header, place))


class MasterKey:
    """Wraps and unwraps data keys. Its id is a fingerprint, which tells nothing of the key."""

    __slots__ = ("_cipher", "id")

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self.id = hashlib.sha256(_FINGERPRINT_LABEL + key).digest()[:FINGERPRINT_BYTES].hex()

    @classmethod
    def parse(cls, text: str) -> MasterKey:
        """From base64, either alphabet, with or without padding. Raises `Malformed`, which does not repeat it."""
        if not _BASE64_SHAPE.fullmatch(text):
            raise Malformed("a master key is 32 bytes in base64")
        return cls(base64.urlsafe_b64decode(text.rstrip("=").translate(str.maketrans("+/", "-_")) + "="))

    def __repr__(self) -> str:
        return f"MasterKey({self.id})"

    def wrap(self, data_key: DataKey) -> bytes:
        header = bytes([VERSION]) + bytes.fromhex(self.id)
        nonce = os.urandom(NONCE_BYTES)
        bound = _WRAPPING_LABEL + header + data_key.id.bytes
        return header + nonce + self._cipher.encrypt(nonce, data_key._key, bound)

    def unwrap(self, data_key_id: uuid.UUID, wrapped: bytes) -> DataKey:
        """Raises `EnvelopeError`."""
        header, rest = wrapped[: 1 + FINGERPRINT_BYTES], wrapped[1 + FINGERPRINT_BYTES :]
        if len(rest) != NONCE_BYTES + KEY_BYTES + TAG_BYTES:
            raise Malformed("it is not as long as a wrapped data key")
        _require_version(header)
        if header[1:].hex() != self.id:
            raise WrongKey(f"it was wrapped under the master key {header[1:].hex()}, not {self.id}")
        return DataKey(data_key_id, _decrypt(self._cipher, rest, _WRAPPING_LABEL + header + data_key_id.bytes))


def new_master_key() -> str:
    """A master key in base64, as it is set."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def new_data_key(key_id: uuid.UUID) -> DataKey:
    return DataKey(key_id, os.urandom(KEY_BYTES))


def master_keys(texts: Iterable[str]) -> list[MasterKey]:
    """The keys that these are in base64, each once, in their order. Raises `Malformed`."""
    return list({key.id: key for key in map(MasterKey.parse, texts)}.values())


def data_key_of(sealed: bytes) -> uuid.UUID:
    """The id of the data key that a value says it was sealed under. Raises `EnvelopeError`."""
    if len(sealed) < 1 + ID_BYTES + NONCE_BYTES + TAG_BYTES:
        raise Malformed("it is too short for a sealed value")
    _require_version(sealed)
    return uuid.UUID(bytes=bytes(sealed[1 : 1 + ID_BYTES]))


def _require_version(header: bytes) -> None:
    if header[0] != VERSION:
        raise WrongVersion(f"it is of version {header[0]}, and this program knows version {VERSION}")


def _bound(header: bytes, place: Place) -> bytes:
    """What is authenticated but not encrypted. Only the last part varies in length, so no two places give the same."""
    return _SEALING_LABEL + header + place.tenant_id.bytes + place.row_id.bytes + place.purpose.encode()


def _decrypt(cipher: AESGCM, nonce_and_ciphertext: bytes, bound: bytes) -> bytes:
    try:
        return cipher.decrypt(nonce_and_ciphertext[:NONCE_BYTES], nonce_and_ciphertext[NONCE_BYTES:], bound)
    except InvalidTag:
        raise NotAuthentic("it was altered, or belongs to another place or key") from None
