"""Where a fetch may not go, by whatever name or spelling it is led there."""

from __future__ import annotations

import pytest

from devmesh.engine.fetcher import Fetcher, FetchFailed, Reach

NOWHERE_PRIVATE = Reach(private=False, plain=True)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "localhost", "[::1]", "[::]",
        "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255",
        "[::ffff:10.0.0.1]", "[64:ff9b::a00:1]", "[2002:a00:1::]", "[fe80::1]", "[fc00::1]", "[ff02::1]",
    ],
)  # fmt: skip
async def test_private_addresses_are_not_reached(host: str) -> None:
    with pytest.raises(FetchFailed, match="private"):
        await Fetcher(1.0, 1024).fetch(f"http://{host}:9/keys", NOWHERE_PRIVATE)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://keys.example/", "http or https"),
        ("http:///keys", "http or https"),
        ("http://user:word@127.0.0.1/", "without a user"),
        ("http://127.0.0.1:99999/", "malformed"),
        ("http://[::1/", "malformed"),
        ("http://no-such-name.invalid/", "leads nowhere"),
        ("http://" + "x" * 300 + "/", "leads nowhere|malformed"),
    ],
)
async def test_addresses_that_lead_nowhere_are_said_to(url: str, why: str) -> None:
    with pytest.raises(FetchFailed, match=why):
        await Fetcher(2.0, 1024).fetch(url, Reach(private=True, plain=True))


async def test_http_to_others_is_not_for_production() -> None:
    with pytest.raises(FetchFailed, match="only https"):
        await Fetcher(1.0, 1024).fetch("http://192.0.2.1/keys", Reach(private=True, plain=False))
    with pytest.raises(FetchFailed, match="cannot be reached"):
        await Fetcher(1.0, 1024).fetch("http://127.0.0.1:9/keys", Reach(private=True, plain=False))
