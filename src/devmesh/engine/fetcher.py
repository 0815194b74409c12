"""Fetches a small document by HTTP from an address that somebody else has chosen, and cannot be led astray by it.

A name is looked up here and the address it leads to is the one that is connected to, so that it cannot lead elsewhere a moment
later. Redirects are not followed, proxies of the environment are not used, and both time and length have a limit. Must not know
what is fetched.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import NamedTuple

import httpx

from devmesh.client.threads import ThreadNotBegun, in_thread

ADDRESSES_TRIED_MAX = 3
# Of names at once: the operator's own have room when those of tenants have none.
LOOKUPS_MAX, LOOKUPS_OF_OTHERS_MAX = 12, 8
PORT_MAX = 65_535
# Addresses that stand for others, which may be private.
TRANSLATED = [ipaddress.ip_network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class FetchFailed(Exception):
    """The message says why, in words that may be shown to whoever chose the address."""


class Reach(NamedTuple):
    """Where a fetch may go."""

    private: bool  # addresses that only this machine or its network has
    plain: bool  # http to anywhere; otherwise only to this machine


class Fetcher:
    def __init__(self, timeout_s: float, bytes_max: int) -> None:
        self._timeout_s, self._bytes_max = timeout_s, bytes_max
        self._lookups: set[asyncio.Task[list[Address]]] = set()
        self._client: httpx.AsyncClient | None = None

    async def fetch(self, url: str, reach: Reach) -> bytes:
        """The document at an address. Raises FetchFailed."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._fetch(httpx.URL(url), reach)
        except TimeoutError:
            raise FetchFailed(f"there was no whole answer within {self._timeout_s:g} s") from None
        except httpx.InvalidURL:
            raise FetchFailed("its address is malformed") from None
        except httpx.HTTPError as error:
            raise FetchFailed(f"it cannot be reached: {str(error) or type(error).__name__}") from None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _fetch(self, url: httpx.URL, reach: Reach) -> bytes:
        if url.scheme not in ("http", "https") or not url.host or url.userinfo:
            raise FetchFailed("its address is not one of http or https without a user")
        if url.port is not None and not 0 < url.port <= PORT_MAX:
            raise FetchFailed("its address is malformed")
        addresses = await self._addresses(url, LOOKUPS_MAX if reach.private else LOOKUPS_OF_OTHERS_MAX)
        if not reach.private and not all(map(_is_public, addresses)):
            raise FetchFailed("its address is private, where this server does not go for others")
        is_local = all(address.is_loopback for address in addresses)
        if url.scheme == "http" and not reach.plain and not is_local:
            raise FetchFailed("its address begins with http, and only https is safe from others on the way")
        for address in addresses[: ADDRESSES_TRIED_MAX - 1]:
            try:
                return await self._read(url, address)
            except httpx.ConnectError:
                continue
        return await self._read(url, addresses[-1])

    async def _addresses(self, url: httpx.URL, lookups_max: int) -> list[Address]:
        """In threads of our own: the loop has few for that, and names that nobody answers for would keep them from others."""
        if len(self._lookups) >= lookups_max:
            raise FetchFailed("too many names are being looked up at once")
        lookup = asyncio.get_running_loop().create_task(in_thread(_look_up, url))
        self._lookups.add(lookup)
        lookup.add_done_callback(self._looked_up)
        try:
            return await asyncio.shield(lookup)  # nobody can end it, so it counts until it ends
        except (ThreadNotBegun, RuntimeError) as error:
            raise FetchFailed("its name cannot be looked up at present") from error

    def _looked_up(self, lookup: asyncio.Task[list[Address]]) -> None:
        self._lookups.discard(lookup)
        if not lookup.cancelled():
            lookup.exception()  # whoever waited for it may have gone

    async def _read(self, url: httpx.URL, address: Address) -> bytes:
        if self._client is None:
            # Connections are not kept: one to an address is not one to every name that leads there.
            self._client = httpx.AsyncClient(
                verify=httpx.create_ssl_context(), trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
            )
        headers = {"Host": url.netloc.decode("ascii"), "Accept": "application/json", "Accept-Encoding": "identity"}
        place = url.copy_with(host=str(address))
        async with self._client.stream("GET", place, headers=headers, extensions={"sni_hostname": url.host}) as answer:
            if answer.is_redirect:
                raise FetchFailed(f"it redirects ({answer.status_code}), which is not followed")
            if answer.status_code != 200:
                raise FetchFailed(f"it answers with the status {answer.status_code}")
            document = bytearray()
            async for part in answer.aiter_raw():
                document += part
                if len(document) > self._bytes_max:
                    raise FetchFailed(f"it is longer than {self._bytes_max} bytes")
            return bytes(document)


def _look_up(url: httpx.URL) -> list[Address]:
    try:
        found = socket.getaddrinfo(url.host, url.port or url.scheme, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FetchFailed("its name leads nowhere") from error
    return list(dict.fromkeys(ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found))


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return _is_public(address.ipv4_mapped)
        if any(address in network for network in TRANSLATED):
            return False
    return address.is_global and not address.is_multicast
