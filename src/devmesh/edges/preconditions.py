"""`If-Match`: an act that is for a thing as its caller has seen it, and for no later one (RFC 9110, section 13.1.1).

What counts is the version in the tag. What is shown of a thing and changes without one, such as an agent's status, is no reason
to refuse a change. A version is compared where the thing is locked, so that nothing comes between.
"""

from __future__ import annotations

import re

from starlette.requests import Request

from devmesh.core.errors import Kind, MeshError

HEADER = "If-Match"
NO_VERSION = 0  # what no thing has
VERSION_REASONS = frozenset({"agent.version", "task.version"})

_TAGS = re.compile(r'(W/)?"([^"]*)"')
_OURS = re.compile(r"([1-9][0-9]{0,8})(-[0-9a-f]{8})?")


class PreconditionFailed(MeshError):
    """A conflict of versions that `If-Match` has asked to be told of."""

    def __init__(self, conflict: MeshError, wanted: frozenset[int]) -> None:
        hint = "" if wanted != {NO_VERSION} else '; If-Match holds no ETag of such a thing, as in `"3-0badcafe"`'
        super().__init__(conflict.kind, conflict.message + hint, reason=conflict.data.reason, field=HEADER)

    @property
    def http_status(self) -> int:
        return 412


def wanted_versions(request: Request) -> frozenset[int] | None:
    """The versions of which the thing must have one; None for any. A tag that is weak, or none of ours, is no version."""
    given = ", ".join(request.headers.getlist(HEADER)).strip()
    if given == "*" or HEADER not in request.headers:  # `*`: that the thing exists is for the operation to see
        return None
    tags = [_OURS.fullmatch(tag) for weak, tag in _TAGS.findall(given) if not weak]
    return frozenset(int(tag[1]) for tag in tags if tag) or frozenset({NO_VERSION})


def refuse() -> MeshError:
    """For what has no version."""
    message = "If-Match is not honoured here, and leaving it out of account could overwrite another's change"
    return MeshError(Kind.INVALID_REQUEST, message, field=HEADER)
