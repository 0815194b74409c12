"""What one connection has become: whose it is, which agent it stands for, what it listens to.

The methods of the session itself are here; every other method is an operation and goes down the corridor. Must not know
frames, codecs or sockets.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Raw

from devmesh import __version__
from devmesh.core import errors, events
from devmesh.core.access import Caller, Scope, require
from devmesh.core.errors import Kind, MeshError
from devmesh.core.ids import new_id
from devmesh.engine.fanout import Fanout
from devmesh.engine.outbox import Outbox
from devmesh.engine.stream import Codec
from devmesh.engine.subscriber import Subscriber
from devmesh.operations.authentication import Authenticator
from devmesh.operations.connections import Connections
from devmesh.operations.corridor import Corridor
from devmesh.operations.registry import refusal
from devmesh.operations.sessions import Sessions
from devmesh.settings import Settings

Token = Annotated[str, Meta(max_length=16_384)]


class ClientInfo(msgspec.Struct, frozen=True):
    name: Annotated[str, Meta(max_length=200)] = ""
    version: Annotated[str, Meta(max_length=200)] = ""


class Initialize(msgspec.Struct, forbid_unknown_fields=True):
    """`agent` is an agent's id or the name under which this key registered it; `resume` a cursor; `token` a key or a token."""

    client: ClientInfo = ClientInfo()
    agent: Annotated[str, Meta(max_length=200)] | None = None
    resume: events.CursorText | None = None
    token: Token | None = None


class Limits(msgspec.Struct):
    message_bytes_max: int
    request_batch_max: int
    payload_depth_max: int
    subscriptions_max: int
    requests_in_flight_max: int
    outbox_bytes_max: int


class Server(msgspec.Struct):
    name: str
    version: str


class Initialized(msgspec.Struct):
    """`cursor` is where this session's events begin; `recovered` is false when some after `resume` are lost."""

    session_id: uuid.UUID
    tenant_id: uuid.UUID
    agent_id: uuid.UUID | None
    cursor: str
    recovered: bool
    heartbeat_interval_s: float
    limits: Limits
    server: Server


class Subscribe(msgspec.Struct, forbid_unknown_fields=True):
    topics: Annotated[list[events.Topic], Meta(min_length=1, max_length=100_000)]
    since: events.CursorText | None = None


class SubscribeResult(msgspec.Struct):
    """Events after `cursor` come; `recovered` is false when some between `since` and it are lost."""

    cursor: str
    recovered: bool


class Unsubscribe(msgspec.Struct, forbid_unknown_fields=True):
    topics: Annotated[list[events.Topic], Meta(min_length=1, max_length=100_000)]


class Subscriptions(msgspec.Struct):
    topics: list[str]


class Refresh(msgspec.Struct, forbid_unknown_fields=True):
    token: Token


class Refreshed(msgspec.Struct):
    session_id: uuid.UUID
    tenant_id: uuid.UUID


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Pong(msgspec.Struct):
    pong: bool = True


class Session:
    """Made for a connection, alive once `initialize` has succeeded."""

    __slots__ = (
        "_counted_tenant_id",
        "_identity",
        "_is_closed",
        "_is_initializing",
        "_parts",
        "address",
        "agent_tenant_id",
        "caller",
        "outbox",
        "session_id",
        "subscriber",
        "wire_codec",
    )

    def __init__(self, parts: Parts, wire_codec: Codec, outbox: Outbox, address: str) -> None:
        self._parts, self.wire_codec, self.outbox, self.address = parts, wire_codec, outbox, address
        self.session_id = new_id()
        self.caller: Caller | None = None
        self.subscriber: Subscriber | None = None
        self._is_closed = self._is_initializing = False
        self._identity: asyncio.Lock | None = None  # held by who changes whom the session acts as; most never do
        self._counted_tenant_id: uuid.UUID | None = None  # whose connection this is, for the limit
        self.agent_tenant_id: uuid.UUID | None = None  # set while the session makes an agent present

    async def call(self, method: str, params: bytes | Raw, header_token: str | None) -> bytes | Raw:
        """The result of a request as JSON. Raises MeshError."""
        if method == "initialize":
            return _json(await self._initialize(_decode(params, Initialize), header_token))
        if self.caller is None and method != "ping":
            raise MeshError(Kind.INVALID_REQUEST, "the first call of a connection is `initialize`")
        declared = METHODS.get(method)
        if declared is not None:
            if self.caller is not None and method != "ping":
                await self._parts.corridor.rates.admit(self.caller)
            asked = _decode(params, declared.params)
            async with self._parts.corridor.denials_noted(self.caller, method):
                return _json(await declared.handler(self, asked))
        assert self.caller is not None
        if method == "agent.register" and self.caller.session_agent_id is None:
            async with self._changing_identity():
                if self.caller.session_agent_id is None:
                    return await self._register(params)
        result = await self._parts.corridor.serve(method, self.caller, params)
        if method == "agent.deregister":
            self._forget(_agent_id_of(result))
        return result

    async def close(self) -> None:
        """The connection has ended."""
        self._is_closed = True
        self._uncount()
        self._parts.corridor.waits.end_session(self.session_id)
        if self.subscriber is not None:
            self.subscriber.close()
        if self.agent_tenant_id is not None:
            await self._parts.sessions.close(self.agent_tenant_id, self.session_id)

    async def _initialize(self, asked: Initialize, header_token: str | None) -> Initialized:
        """Once, also when several ask for it in one batch."""
        if self.caller is not None or self._is_initializing:
            raise MeshError(Kind.INVALID_REQUEST, "this connection is initialized already, or is about to be")
        self._is_initializing = True
        try:
            return await self._open(asked, header_token)
        finally:
            self._is_initializing = False

    async def _open(self, asked: Initialize, header_token: str | None) -> Initialized:
        resume = events.decode_cursor(asked.resume) if asked.resume is not None else None
        caller = await self._parts.authenticator.authenticate(asked.token or header_token, self.address)
        caller = msgspec.structs.replace(caller, session_id=self.session_id)
        await self._parts.corridor.rates.admit(caller)
        self._parts.connections.open(caller.tenant_id)
        self._counted_tenant_id = caller.tenant_id
        try:
            return await self._begin(caller, asked.agent, resume)
        except BaseException:
            self._uncount()
            raise

    async def _begin(self, caller: Caller, agent: str | None, resume: events.Cursor | None) -> Initialized:
        """What follows once it is known who is calling."""
        subscriber = await self._parts.fanout.subscriber(caller.tenant_id, self.wire_codec, self.outbox)
        try:
            named = agent or (str(caller.bound_agent_id) if caller.bound_agent_id is not None else None)
            if named is not None:
                async with self._parts.corridor.denials_noted(caller, "initialize"):
                    require(caller, Scope.AGENT)
                    agent_id = await self._stand_for(caller, named)
                    caller = msgspec.structs.replace(caller, session_agent_id=agent_id)
            topics = [events.agent_topic(caller.agent_id)] if caller.agent_id is not None else []
            begun = await subscriber.subscribe(topics, resume)
        except BaseException:
            subscriber.close()
            raise
        self.caller, self.subscriber = caller, subscriber
        self._parts.corridor.waits.begin_session(self.session_id)
        settings = self._parts.settings
        return Initialized(
            session_id=self.session_id, tenant_id=caller.tenant_id, agent_id=caller.agent_id, cursor=begun.cursor,
            recovered=begun.recovered, heartbeat_interval_s=settings.ping_interval_s, limits=_limits(settings),
            server=Server("devmesh", __version__),
        )  # fmt: skip

    async def _register(self, params: bytes | Raw) -> Raw:
        """A session without an agent stands for the first one that it registers, and listens to what concerns it."""
        assert self.caller is not None
        assert self.subscriber is not None
        before = await self.subscriber.position()
        result = await self._parts.corridor.serve("agent.register", self.caller, params)
        agent_id = await self._stand_for(self.caller, str(_agent_id_of(result)))
        self.caller = msgspec.structs.replace(self.caller, session_agent_id=agent_id)
        await self.subscriber.subscribe([events.agent_topic(agent_id)], before)
        return result

    def _forget(self, agent_id: uuid.UUID) -> None:
        """An agent has left for good. If it was the session's own, that may become another; it still hears of what it held."""
        assert self.caller is not None
        if self.caller.session_agent_id == agent_id:
            self.caller = msgspec.structs.replace(self.caller, session_agent_id=None)

    async def _stand_for(self, caller: Caller, agent: str) -> uuid.UUID:
        """Makes an agent present for as long as the session lives. Which one that is."""
        agent_id = await self._parts.sessions.open(caller, self.session_id, agent)
        self.agent_tenant_id = caller.tenant_id
        if self._is_closed:  # the connection has ended meanwhile: nobody else would ever take this back
            await self._parts.sessions.close(caller.tenant_id, self.session_id)
        return agent_id

    def _changing_identity(self) -> asyncio.Lock:
        if self._identity is None:
            self._identity = asyncio.Lock()
        return self._identity

    async def _subscribe(self, asked: Subscribe) -> SubscribeResult:
        """Listen to topics from now on, or from a cursor on. Topics: `tenant`, `inbox`, `queue:NAME`, `NOUN:ID`."""
        caller, subscriber = self._caller_and_subscriber(Scope.READ)
        topics = [events.check_topic(topic, caller.agent_id) for topic in asked.topics]
        since = events.decode_cursor(asked.since) if asked.since is not None else None
        limit = self._parts.settings.subscriptions_per_connection_max
        if len(subscriber.topics.keys() | set(topics)) > limit:
            raise MeshError(Kind.QUOTA_EXCEEDED, f"a connection may listen to {limit} topics", field="topics")
        begun = await subscriber.subscribe(topics, since)
        return SubscribeResult(begun.cursor, begun.recovered)

    async def _unsubscribe(self, asked: Unsubscribe) -> Subscriptions:
        """Stop listening to topics. The answer holds those that are left."""
        caller, subscriber = self._caller_and_subscriber(Scope.READ)
        subscriber.unsubscribe([events.check_topic(topic, caller.agent_id) for topic in asked.topics])
        return Subscriptions(sorted(subscriber.topics))

    async def _subscriptions(self, _: Nothing) -> Subscriptions:
        """Show the topics that this connection listens to."""
        return Subscriptions(sorted(self._caller_and_subscriber(Scope.READ)[1].topics))

    async def _refresh(self, asked: Refresh) -> Refreshed:
        """Go on under another key or token of the same tenant, before the present one expires."""
        assert self.caller is not None
        fresh = await self._parts.authenticator.authenticate(asked.token, self.address)
        if fresh.tenant_id != self.caller.tenant_id:
            raise errors.forbidden("this key belongs to another tenant; open another connection")
        async with self._changing_identity():
            agent_id = self.caller.session_agent_id
            if agent_id is not None and fresh.bound_agent_id not in (None, agent_id):
                raise errors.forbidden("this key is bound to another agent")
            is_its_own = fresh.owner_id == self.caller.owner_id and self.caller.bound_agent_id is None
            if agent_id is not None and fresh.bound_agent_id is None and not is_its_own:
                raise errors.forbidden("this session's agent belongs to another key or subject")
            self.caller = msgspec.structs.replace(fresh, session_id=self.session_id, session_agent_id=agent_id)
            return Refreshed(self.session_id, self.caller.tenant_id)

    async def _ping(self, _: Nothing) -> Pong:
        """See whether the server answers."""
        return Pong()

    def _uncount(self) -> None:
        if self._counted_tenant_id is not None:
            self._parts.connections.close(self._counted_tenant_id)
            self._counted_tenant_id = None

    def _caller_and_subscriber(self, scope: Scope) -> tuple[Caller, Subscriber]:
        assert self.caller is not None
        assert self.subscriber is not None
        require(self.caller, scope)
        return self.caller, self.subscriber


class Parts(NamedTuple):
    """What every session stands on."""

    corridor: Corridor
    authenticator: Authenticator
    sessions: Sessions
    connections: Connections
    fanout: Fanout
    settings: Settings


class Method(NamedTuple):
    """A method of the session itself, for the reference as well."""

    params: type[msgspec.Struct]
    result: type[msgspec.Struct]
    handler: Callable[[Session, Any], Awaitable[msgspec.Struct]]


METHODS: dict[str, Method] = {
    "subscribe": Method(Subscribe, SubscribeResult, Session._subscribe),
    "unsubscribe": Method(Unsubscribe, Subscriptions, Session._unsubscribe),
    "subscriptions.list": Method(Nothing, Subscriptions, Session._subscriptions),
    "ping": Method(Nothing, Pong, Session._ping),
    "session.refresh": Method(Refresh, Refreshed, Session._refresh),
}


class _Agent(msgspec.Struct):
    id: uuid.UUID


class _OfAgent(msgspec.Struct):
    agent: _Agent


def _agent_id_of(result: Raw) -> uuid.UUID:
    return msgspec.json.decode(result, type=_OfAgent).agent.id


def _limits(settings: Settings) -> Limits:
    return Limits(
        message_bytes_max=settings.message_bytes_max,
        request_batch_max=settings.request_batch_max,
        payload_depth_max=settings.payload_depth_max,
        subscriptions_max=settings.subscriptions_per_connection_max,
        requests_in_flight_max=settings.requests_in_flight_max,
        outbox_bytes_max=settings.outbox_bytes_max,
    )


def _decode(params: bytes | Raw, shape: type[Any]) -> Any:
    try:
        return msgspec.json.decode(params, type=shape)
    except msgspec.ValidationError as problem:
        raise refusal(problem) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise errors.invalid("the parameters are not well-formed") from None


def _json(result: msgspec.Struct) -> bytes:
    return msgspec.json.encode(result)
