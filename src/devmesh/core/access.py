"""Who is calling and what they may do. Pure: looking keys up is the store's business."""

from __future__ import annotations

import enum
import uuid
from typing import NamedTuple

import msgspec

from devmesh.core import errors


class Scope(enum.StrEnum):
    READ = "read"
    WRITE = "write"
    AGENT = "agent"
    WORKER = "worker"
    ADMIN = "admin"


class KeyKind(enum.StrEnum):
    USER = "user"
    AGENT = "agent"
    WORKER = "worker"
    ADMIN = "admin"


DEFAULT_SCOPES: dict[KeyKind, frozenset[Scope]] = {
    KeyKind.USER: frozenset({Scope.READ, Scope.WRITE}),
    KeyKind.AGENT: frozenset({Scope.READ, Scope.WRITE, Scope.AGENT}),
    KeyKind.WORKER: frozenset({Scope.READ, Scope.WORKER}),
    KeyKind.ADMIN: frozenset(Scope),
}


class TokenOrigin(msgspec.Struct, frozen=True):
    """Of a caller that came with a token instead of a key: who vouches for it, and until when."""

    issuer_id: uuid.UUID | None  # None: the operator's own issuer
    issuer: str | None
    subject: str
    expires_at_s: float  # since 1970


class Credential(NamedTuple):
    """What an open connection stands on."""

    tenant_id: uuid.UUID
    key_id: uuid.UUID
    token: TokenOrigin | None

    def has_expired(self, now_s: float) -> bool:
        """A key's expiry is in the database."""
        return self.token is not None and self.token.expires_at_s <= now_s


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated caller: one tenant, one key, at most one agent that it is known to be."""

    tenant_id: uuid.UUID
    key_id: uuid.UUID  # of a token: what stands for its subject
    owner_id: uuid.UUID  # the first key of the rotation chain, or the subject again; agents belong to it
    scopes: frozenset[Scope]
    bound_agent_id: uuid.UUID | None = None  # the key may act as this agent only
    session_agent_id: uuid.UUID | None = None  # proven when the session began
    session_id: uuid.UUID | None = None
    address: str = ""
    token: TokenOrigin | None = None

    @property
    def credential(self) -> Credential:
        return Credential(self.tenant_id, self.key_id, self.token)

    @property
    def agent_id(self) -> uuid.UUID | None:
        return self.bound_agent_id or self.session_agent_id

    @property
    def is_admin(self) -> bool:
        return Scope.ADMIN in self.scopes


def require(caller: Caller, scope: Scope) -> None:
    """Raises forbidden unless the caller holds the scope. `admin` holds every other."""
    if scope not in caller.scopes and Scope.ADMIN not in caller.scopes:
        raise errors.forbidden(f"this needs a key with the scope {scope.value!r}")


def acting_agent(caller: Caller, named: uuid.UUID | None) -> uuid.UUID | None:
    """The agent a call acts as: the one it names, else the caller's own. A bound key cannot name another."""
    if named is None:
        return caller.agent_id
    if caller.bound_agent_id is not None and named != caller.bound_agent_id:
        raise errors.forbidden("this key is bound to another agent")
    return named


def is_vouched(caller: Caller, agent_id: uuid.UUID) -> bool:
    """Whether the caller is already known to be this agent, so that its ownership need not be looked up."""
    return agent_id == caller.agent_id
