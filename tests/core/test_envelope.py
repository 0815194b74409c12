"""A sealed value opens at its place, under its key, unaltered: nowhere else, under no other, and not with one bit flipped."""

from __future__ import annotations

import base64
import pickle
import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmesh.core import envelope
from devmesh.core.envelope import (
    DataKey,
    EnvelopeError,
    Malformed,
    MasterKey,
    NotAuthentic,
    Place,
    WrongKey,
    WrongVersion,
)
from devmesh.settings import MASTER_KEY

KEY = envelope.new_data_key(uuid.UUID(int=1))
MASTER = MasterKey(bytes(range(32)))
PLACE = Place(uuid.UUID(int=2), "token_issuers.secret", uuid.UUID(int=3))

ids = st.uuids()
places = st.builds(Place, ids, st.text(max_size=40), ids)
secrets = st.binary(max_size=2000)


@given(key_id=ids, place=places, secret=secrets)
def test_what_is_sealed_opens_and_names_its_key(key_id: uuid.UUID, place: Place, secret: bytes) -> None:
    key = envelope.new_data_key(key_id)
    sealed = key.seal(place, secret)
    assert envelope.data_key_of(sealed) == key_id
    assert key.open(place, sealed) == secret
    assert key.seal(place, secret) != sealed
    assert len(secret) < 4 or secret not in sealed


@given(secret=secrets, data=st.data())
def test_any_flipped_bit_is_refused(secret: bytes, data: st.DataObject) -> None:
    sealed = bytearray(KEY.seal(PLACE, secret))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(EnvelopeError):
        KEY.open(PLACE, bytes(sealed))


@given(secret=secrets, data=st.data())
def test_what_was_cut_short_is_refused(secret: bytes, data: st.DataObject) -> None:
    sealed = KEY.seal(PLACE, secret)
    with pytest.raises(EnvelopeError):
        KEY.open(PLACE, sealed[: data.draw(st.integers(0, len(sealed) - 1))])


@given(place=places, other=places, secret=secrets)
def test_at_another_place_it_does_not_open(place: Place, other: Place, secret: bytes) -> None:
    sealed = KEY.seal(place, secret)
    for moved in (
        other,
        place._replace(tenant_id=other.tenant_id),
        place._replace(purpose=other.purpose),
        place._replace(row_id=other.row_id),
        Place(place.row_id, place.purpose, place.tenant_id),
    ):
        if moved != place:
            with pytest.raises(NotAuthentic):
                KEY.open(moved, sealed)


@given(garbage=st.binary(max_size=200))
def test_garbage_is_refused_with_a_known_error(garbage: bytes) -> None:
    with pytest.raises(EnvelopeError):
        KEY.open(PLACE, garbage)
    with pytest.raises(EnvelopeError):
        MASTER.unwrap(KEY.id, garbage)


def test_each_fault_has_its_own_error() -> None:
    sealed = KEY.seal(PLACE, b"s3cret")
    with pytest.raises(Malformed, match="too short"):
        KEY.open(PLACE, sealed[:10])
    with pytest.raises(WrongVersion, match="version 2"):
        KEY.open(PLACE, b"\x02" + sealed[1:])
    with pytest.raises(WrongKey, match=str(KEY.id)):
        envelope.new_data_key(uuid.UUID(int=9)).open(PLACE, sealed)
    with pytest.raises(NotAuthentic):
        envelope.new_data_key(KEY.id).open(PLACE, sealed)


def test_the_name_of_the_key_is_authenticated_too() -> None:
    raw, renamed = bytes(range(32)), uuid.UUID(int=9)
    sealed = DataKey(KEY.id, raw).seal(PLACE, b"s3cret")
    with pytest.raises(NotAuthentic):
        DataKey(renamed, raw).open(PLACE, sealed.replace(KEY.id.bytes, renamed.bytes))


@given(key_id=ids, data=st.data())
def test_a_wrapped_key_unwraps_under_its_master_key_as_itself_only(key_id: uuid.UUID, data: st.DataObject) -> None:
    key = envelope.new_data_key(key_id)
    wrapped = MASTER.wrap(key)
    assert MASTER.unwrap(key_id, wrapped).open(PLACE, key.seal(PLACE, b"s3cret")) == b"s3cret"
    with pytest.raises(NotAuthentic):
        MASTER.unwrap(uuid.uuid4(), wrapped)
    with pytest.raises(WrongKey, match=MASTER.id):
        MasterKey(bytes(32)).unwrap(key_id, wrapped)
    altered = bytearray(wrapped)
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(EnvelopeError):
        MASTER.unwrap(key_id, bytes(altered))


@given(key=st.binary(min_size=32, max_size=32))
def test_a_master_key_is_read_in_either_alphabet_padded_or_not(key: bytes) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(key).decode()
        assert MasterKey.parse(text).id == MasterKey.parse(text.rstrip("=")).id == MasterKey(key).id


@given(text=st.one_of(st.text(max_size=60), st.from_regex(r"[A-Za-z0-9+/_=-]{40,48}", fullmatch=True)))
def test_whatever_the_settings_accept_is_a_master_key(text: str) -> None:
    if re.fullmatch(MASTER_KEY[0], text):
        MasterKey.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "s3cret", base64.b64encode(bytes(31)).decode(), base64.b64encode(bytes(33)).decode(), bytes(range(32)).hex(),
        base64.b64encode(bytes(range(32))).decode() + "\n", "é" * 43, "A" * 42 + "B", "-" * 21 + "+" * 21 + "A",
    ],
)  # fmt: skip
def test_what_is_no_master_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        MasterKey.parse(text)
    assert not text.strip() or text.strip() not in str(caught.value)


def test_a_new_master_key_is_one_and_is_accepted_by_the_settings() -> None:
    text = envelope.new_master_key()
    assert re.fullmatch(MASTER_KEY[0], text)
    assert MasterKey.parse(text).id != MasterKey.parse(envelope.new_master_key()).id


def test_the_same_master_key_twice_is_one_and_their_order_is_kept() -> None:
    first, second = envelope.new_master_key(), envelope.new_master_key()
    found = envelope.master_keys([second, first, second.rstrip("=")])
    assert [key.id for key in found] == [MasterKey.parse(second).id, MasterKey.parse(first).id]


def test_keys_do_not_show_themselves() -> None:
    raw = b"0123456789abcdefghijklmnopqrstuv"
    master, data = MasterKey(raw), DataKey(uuid.UUID(int=1), raw)
    for key in (master, data):
        for shown in (repr(key), str(key), f"{key}", repr([key]), repr({"key": key})):
            assert "0123456789" not in shown
            assert raw.hex() not in shown
        with pytest.raises(TypeError):
            pickle.dumps(key)
    assert re.fullmatch(r"MasterKey\([0-9a-f]{16}\)", repr(master))
