"""Where a fetch may not go, by whatever name or spelling it is led there."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from devmesh.engine.fetcher import LOOKUPS_OF_OTHERS_MAX, Fetcher, FetchFailed, Reach
from tests.harness import eventually

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


async def test_names_that_nobody_answers_for_are_no_harm_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    silence, looked_up = threading.Event(), socket.getaddrinfo

    def look_up(host: str, *about: Any, **more: Any) -> Any:
        if host.startswith("silent"):
            silence.wait(20)
        return looked_up(host, *about, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    fetcher = Fetcher(2.0, 1024)
    tries = [
        fetcher.fetch(f"http://silent{number}.example/", NOWHERE_PRIVATE) for number in range(LOOKUPS_OF_OTHERS_MAX)
    ]
    for failed in await asyncio.gather(*tries, return_exceptions=True):
        assert "no whole answer" in str(failed)
    with pytest.raises(FetchFailed, match="too many names"):
        await fetcher.fetch("http://silent.example/", NOWHERE_PRIVATE)
    with pytest.raises(FetchFailed, match="cannot be reached"):
        await fetcher.fetch("http://127.0.0.1:9/keys", Reach(private=True, plain=True))
    assert await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 9), "the loop's own are free"
    silence.set()
    await eventually(lambda: not fetcher._lookups, "they end")
