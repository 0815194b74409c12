"""The client: one object to ask anything of the mesh, connected as long as it is open."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import msgspec

from devmesh.client.address import find
from devmesh.client.agents import Agents
from devmesh.client.codecs import CODECS, CodecName, check_codec
from devmesh.client.connection import HEARTBEAT_INTERVAL_S, Connection, Event
from devmesh.client.errors import MeshError
from devmesh.client.events import EventStream
from devmesh.client.session import Session
from devmesh.client.tasks import Tasks
from devmesh.core.errors import Kind

T = TypeVar("T")
TIMEOUT_S_DEFAULT = 30.0


class Client:
    """`async with Client() as client: task = await client.tasks.create("count words")`

    `agent` is the id of an agent, or the name under which this key registered it: the client then stands for that agent.
    Requests may be made side by side, as many as one likes; a client belongs to one event loop.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        agent: uuid.UUID | str | None = None,
        *,
        codec: CodecName = "json",
        timeout_s: float = TIMEOUT_S_DEFAULT,
        connect_timeout_s: float | None = TIMEOUT_S_DEFAULT,
    ) -> None:
        """Without `url` and `api_key`, those of the environment, of `.env`, or of the `devmesh up` that runs here.

        `timeout_s` is how long a request may take, with all its retries; `connect_timeout_s` how long the first connection
        may take to come about, None for ever.
        """
        check_codec(codec)
        self.timeout_s, self._connect_timeout_s = timeout_s, connect_timeout_s
        self._agent = str(agent) if agent is not None else None
        self._registered: str | None = None  # the agent that this client became by registering it
        self._codec = CODECS[codec]
        self._session = Session(find(url, api_key), self._codec, self._greet, self._deliver)
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()
        self.agent_id: uuid.UUID | None = None
        """The agent that this client stands for."""
        self.tasks, self.agents = Tasks(self), Agents(self)

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Raises MeshError when it is refused, or nobody answers in time."""
        await self._session.start(self._connect_timeout_s)

    async def close(self) -> None:
        for stream in list(self._streams):
            await stream.close()
        await self._session.close()

    async def ended(self) -> MeshError:
        """Waits until the client has ended for good, and says why."""
        return await self._session.wait_ended()

    @property
    def is_usable(self) -> bool:
        """Whether it stands for an agent whose requests have a chance: it is connected, or will be again."""
        return self._session.ended is None and self.agent_id is not None

    @property
    def url(self) -> str:
        return self._session.address.url

    @property
    def cursor(self) -> str | None:
        """A place in the tenant's stream of events that this client has seen: `events(…, since=cursor)` goes on there."""
        connection = self._session.connection
        return connection.cursor if connection is not None else None

    @property
    def heartbeat_interval_s(self) -> float:
        """How often an agent should be heard of."""
        connection = self._session.connection
        return connection.initialized.heartbeat_interval_s if connection is not None else HEARTBEAT_INTERVAL_S

    async def call(self, method: str, /, **params: Any) -> dict[str, Any]:
        """Any operation by its name, the answer as it is: `await client.call("task.create", title="count words")`."""
        return await self.request(method, params, dict[str, Any])

    async def request(
        self, method: str, params: Mapping[str, Any], shape: type[T], *, timeout_s: float | None = None
    ) -> T:
        """Any operation, its answer decoded into a type; within `timeout_s`, by default the client's.

        What changes something gets an idempotency key unless `params` has one, so that it is done once however often it
        must be asked. Errors that may pass are tried again meanwhile.
        """
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        if method in ("agent.register", "agent.deregister"):
            answer = await self._session.request(method, params, dict[str, Any], limit_s)
            self._follow(method, answer["agent"]["id"])
            return msgspec.convert(answer, shape)
        return await self._session.request(method, params, shape, limit_s)

    def _follow(self, method: str, agent_id: str) -> None:
        """Becomes the first agent that it registers, until that one leaves: as the server does, and for the next connection."""
        if method == "agent.deregister":
            if self.agent_id == uuid.UUID(agent_id):
                self.agent_id = self._agent = self._registered = None
        elif self._agent is None and self._registered is None:
            self._registered, self.agent_id = agent_id, uuid.UUID(agent_id)

    def events(self, *topics: str, since: str | None = None) -> EventStream:
        """Events of topics (`tenant`, `inbox`, `task:ID`, …), from now on or after a cursor, as an endless iterator.

        It survives lost connections without missing or repeating an event. Raises EventsMissed when that cannot be.
        """
        named = [self._inbox() if topic == "inbox" else topic for topic in topics]
        stream = EventStream(self._session.address, self._codec, named, since, self._connect_timeout_s)
        self._streams.add(stream)
        return stream

    def _inbox(self) -> str:
        if self.agent_id is None:
            raise MeshError(
                Kind.INVALID_PARAMS, "the inbox is an agent's, and this client stands for none", field="topics"
            )
        return f"agent:{self.agent_id}"

    async def _greet(self, connection: Connection) -> None:
        try:
            initialized = await connection.initialize(self._agent or self._registered)
        except MeshError as error:
            if self._registered is None or error.kind != Kind.NOT_FOUND:
                raise
            self._registered = None  # it was deregistered meanwhile
            initialized = await connection.initialize(None)
        self.agent_id = initialized.agent_id

    async def _deliver(self, events: Sequence[Event]) -> None:
        """What comes unasked to an agent's session is for those who work there (worker.py)."""
