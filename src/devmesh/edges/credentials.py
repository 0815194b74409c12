"""Where a credential stands in a request's headers, and who presents it, on every wire."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any


def presented_secret(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key in `Authorization: Bearer KEY` or `X-API-Key: KEY`, whether or not it is one; None when there is neither."""
    found = {name.lower(): value.decode("latin-1").strip() for name, value in headers}
    authorization = found.get(b"authorization", "")
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return secret.strip()
    if authorization and scheme.lower() != "basic":  # which may be for a proxy on the way
        return authorization
    return found.get(b"x-api-key") or authorization or None


def peer_address(scope: Mapping[str, Any]) -> str:
    """Who has connected, or who has according to a trusted proxy: an address, or "unknown" where that says none."""
    host = str(scope["client"][0]) if scope.get("client") else ""
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return "unknown"
