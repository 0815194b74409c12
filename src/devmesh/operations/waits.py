"""Calls that wait for something to happen. One whose caller has gone, or may not go on, is not asked for again.

Otherwise a claim that waits would be given a task that nobody hears of, or one that its key is not worth any more. Must not
know what is waited for.
"""

from __future__ import annotations

import collections
import contextlib
import uuid
from collections.abc import Iterator

from devmesh.core.access import Caller, Credential
from devmesh.core.errors import Kind, MeshError, unavailable


class Waits:
    """Those of this process. Each looks whether it goes on before it asks again."""

    def __init__(self) -> None:
        self._sessions: set[uuid.UUID] = set()  # whose connections are there
        self._ended: dict[Credential, MeshError] = {}
        self._open: collections.Counter[Credential] = collections.Counter()  # of those without a session

    def begin_session(self, session_id: uuid.UUID) -> None:
        self._sessions.add(session_id)

    def end_session(self, session_id: uuid.UUID) -> None:
        """The connection that asks has ended."""
        self._sessions.discard(session_id)

    @contextlib.contextmanager
    def begun(self, caller: Caller) -> Iterator[None]:
        """Of a caller without a session, a wait counts among the credentials in use."""
        if caller.session_id is not None:
            yield
            return
        credential = caller.credential
        self._open[credential] += 1
        try:
            yield
        finally:
            self._open[credential] -= 1
            if not self._open[credential]:
                del self._open[credential]
                self._ended.pop(credential, None)

    def require_going_on(self, caller: Caller) -> None:
        """Raises why a wait does not."""
        if caller.session_id is not None and caller.session_id not in self._sessions:
            raise unavailable("the connection that asked has ended")
        if caller.session_id is None and caller.credential in self._ended:
            raise self._ended[caller.credential]

    def credentials_in_use(self) -> set[Credential]:
        """Of waits without a connection that would end with its credential."""
        return set(self._open)

    def close_credentials(self, credentials: set[Credential]) -> None:
        message = "the credential is not valid any more"
        for credential in credentials & self._open.keys():
            self._ended[credential] = MeshError(Kind.UNAUTHENTICATED, message, reason="credential.ended")
