"""Where a credential stands in a request's headers, on every wire."""

from __future__ import annotations

from collections.abc import Iterable


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
