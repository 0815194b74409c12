"""What is taken for a key, and when a token is valid: whatever an issuer publishes and says."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.issuing import new_key

from devmesh.core import tokens
from devmesh.core.errors import MeshError
from devmesh.core.signing_keys import ALGORITHMS, KeysUnusable, Signing, fitting, published_keys, secret_key
from devmesh.core.tokens import Claims

EC, RSA, EDWARDS = (new_key(algorithm).as_dict(private=False) for algorithm in ("ES256", "RS256", "EdDSA"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def published(*keys: Any) -> bytes:
    return json.dumps({"keys": keys}).encode()


@pytest.mark.parametrize(
    "unusable",
    [
        {},
        {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"},
        {"kty": "post-quantum"},
        {**RSA, "n": "AQAB"},
        {**RSA, "use": "enc"},
        {**RSA, "key_ops": ["encrypt"]},
        {**EC, "x": EC["y"]},
        {**EC, "crv": "P-999"},
        {**EDWARDS, "x": "c2hvcnQ"},
        {"kty": "RSA", "n": 7, "e": []},
    ],
)
def test_a_key_that_cannot_be_used_does_not_spoil_the_set(unusable: dict[str, Any]) -> None:
    assert [key.kid for key in published_keys(published(unusable, EC))] == [EC["kid"]]
    with pytest.raises(KeysUnusable):
        published_keys(published(unusable))


@given(st.binary(max_size=50) | json_values.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_set_of_keys_is_said_to_be_none(document: bytes) -> None:
    with pytest.raises(KeysUnusable):
        published_keys(document)


@given(st.lists(json_values, max_size=5), st.sampled_from([EC, RSA, EDWARDS]), st.text(max_size=3), json_values)
def test_no_published_key_makes_the_others_unusable(
    noise: list[Any], key: dict[str, Any], member: str, value: Any
) -> None:
    keys = [each for each in noise if isinstance(each, dict)]
    found = published_keys(published(*keys, {**key, member: value}, EC))
    assert found[-1].kid == EC["kid"]


def test_each_algorithm_has_its_own_kind_of_key() -> None:
    keys = published_keys(published(EC, RSA, EDWARDS))
    secret = secret_key(b"x" * 32)
    for algorithm in ALGORITHMS[Signing.JWKS]:
        kinds = {key.key_type for key in fitting([*keys, secret], algorithm, None)}
        expected = {"E": "EC", "R": "RSA", "P": "RSA"}.get(algorithm[0], "OKP")
        assert kinds == ({expected} if algorithm not in ("ES384", "ES512", "EdDSA", "Ed25519") else kinds & {"OKP"})
    assert fitting([*keys, secret], "HS256", None) == [secret]
    assert fitting([*keys, secret], "none", None) == []
    assert fitting(keys, "ES256", "another") == []


def test_a_key_that_says_its_algorithm_serves_that_one_only() -> None:
    [key] = published_keys(published({**RSA, "alg": "PS256"}))
    assert fitting([key], "PS256", None) == [key]
    assert fitting([key], "RS256", None) == []


seconds = st.none() | st.floats(-100, 100)


@given(exp=seconds, iat=seconds, nbf=seconds)
def test_a_token_is_valid_between_its_times(exp: float | None, iat: float | None, nbf: float | None) -> None:
    now_s, life_s_max, leeway_s = 0.0, 60.0, 10.0
    is_valid = (
        exp is not None
        and exp > now_s
        and (iat is None or iat <= now_s + leeway_s)
        and (nbf is None or nbf <= now_s + leeway_s)
        and exp - (now_s if iat is None else iat) <= life_s_max
    )
    with contextlib.nullcontext() if is_valid else pytest.raises(MeshError):
        tokens.require_time(Claims(exp=exp, iat=iat, nbf=nbf), now_s, life_s_max, leeway_s)


@given(st.text(max_size=200) | st.builds(lambda *parts: ".".join(parts), st.text(), st.text(), st.text()))
def test_what_is_no_token_is_refused_and_never_more_than_that(text: str) -> None:
    with pytest.raises(MeshError) as refusal:
        tokens.read(text)
    assert refusal.value.data.reason == "credential.malformed"


@given(st.lists(st.tuples(st.none() | st.text(max_size=5), st.text(max_size=5)), min_size=2, max_size=5, unique=True))
def test_subjects_are_never_mixed_up(subjects: list[tuple[str | None, str]]) -> None:
    assert len({tokens.subject_id(*subject) for subject in subjects}) == len(subjects)
    assert tokens.subject_id(*subjects[0]) == tokens.subject_id(*subjects[0])
