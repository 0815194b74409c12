"""One tenant's stream as one process knows it: how far it was read, its latest events in memory, and who listens to what.

Must not read the database, nor know any wire: it is told events and asked for them.
"""

from __future__ import annotations

import collections
import itertools
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from devmesh.core.events import Cursor, Event, topics_heard

if TYPE_CHECKING:
    from devmesh.engine.subscriber import Subscriber

EVERYTHING = "tenant"  # the topic of every event
EVENT_OVERHEAD_BYTES = 500  # of a held event's objects, about


class Codec(Protocol):
    """How events look on one wire. An event is encoded once for each codec, whatever the number of subscribers."""

    @property
    def name(self) -> str: ...
    def event(self, event: Event, cursor: str) -> bytes: ...
    def frame(self, encoded: Sequence[bytes], cursor: str) -> bytes: ...


class Recent:
    """An event that was read, and its encodings."""

    __slots__ = ("_encoded", "epoch", "event")

    def __init__(self, event: Event, epoch: int) -> None:
        self.event, self.epoch = event, epoch
        self._encoded: dict[str, bytes] | None = None  # until somebody wants it

    @property
    def size_bytes(self) -> int:
        return len(self.event.data) + EVENT_OVERHEAD_BYTES

    @property
    def cursor(self) -> str:
        return Cursor(self.epoch, self.event.sequence).encode()

    def encoded(self, codec: Codec) -> bytes:
        if self._encoded is None:
            self._encoded = {}
        found = self._encoded.get(codec.name)
        if found is None:
            found = self._encoded[codec.name] = codec.event(self.event, self.cursor)
        return found


class Stream:
    def __init__(self, tenant_id: uuid.UUID, epoch: int, position: int) -> None:
        """`position` is the sequence of the last event that was read."""
        self.tenant_id, self.epoch, self.position = tenant_id, epoch, position
        self.subscribers: set[Subscriber] = set()
        self.listeners: dict[str, set[Subscriber]] = {}  # by topic
        self._job_topics = 0  # that somebody listens to
        self._ring: collections.deque[Recent] = collections.deque()
        self.ring_bytes = 0
        self.unused_passes = 0
        self.looked_at = time.monotonic()  # when the position was that of the log

    @property
    def ring_floor(self) -> int:
        """Every event after this sequence is in memory."""
        return self.position - len(self._ring)

    def has(self, since: Cursor) -> bool:
        """Whether a reader can go on from there with what is in memory."""
        return since.epoch == self.epoch and self.ring_floor <= since.sequence <= self.position

    def cursor(self) -> Cursor:
        return Cursor(self.epoch, self.position)

    def go_on_from(self, epoch: int, position: int) -> None:
        """Passes over what nobody listened to."""
        self.epoch, self.position = epoch, position
        self._ring.clear()
        self.ring_bytes = 0

    def append(self, events: Iterable[Event]) -> list[Recent]:
        """Takes the events that follow the position. The caller has made sure that they do."""
        fresh = [Recent(event, self.epoch) for event in events]
        self._ring.extend(fresh)
        self.ring_bytes += sum(recent.size_bytes for recent in fresh)
        if fresh:
            self.position = fresh[-1].event.sequence
        return fresh

    def trim(self, bytes_max: int) -> None:
        """Forgets the oldest events in memory; the log still has them."""
        while self.ring_bytes > bytes_max and self._ring:
            self.ring_bytes -= self._ring.popleft().size_bytes

    def forget_until(self, sequence: int) -> None:
        """Forgets what retention has removed: an answer must not depend on what a process happens to remember."""
        while self._ring and self._ring[0].event.sequence <= sequence:
            self.ring_bytes -= self._ring.popleft().size_bytes

    def after(self, sequence: int, limit: int, bytes_max: int) -> list[Recent]:
        """The next events in memory after a sequence that is not below the ring's floor: up to so many, or so many bytes."""
        start = sequence - self.ring_floor
        page: list[Recent] = []
        for recent in itertools.islice(self._ring, start, start + limit):
            page.append(recent)
            bytes_max -= recent.size_bytes
            if bytes_max <= 0:
                break
        return page

    def listen(self, subscriber: Subscriber, topic: str) -> None:
        if topic not in self.listeners:
            self.listeners[topic] = set()
            self._job_topics += topic.startswith("job:")
        self.listeners[topic].add(subscriber)

    def unlisten(self, subscriber: Subscriber, topic: str) -> None:
        found = self.listeners.get(topic)
        if found is not None:
            found.discard(subscriber)
            if not found:
                del self.listeners[topic]
                self._job_topics -= topic.startswith("job:")

    def dispatch(self, fresh: Sequence[Recent]) -> int:
        """Puts events into the outboxes of the live subscribers that they concern; the others read them later.

        Subscribers of the same topics get the very same frame, joined once. Answers with the number of deliveries.
        """
        wanted: dict[Subscriber, list[Recent]] = {}
        for recent in fresh:
            for subscriber in self._concerned(recent.event):
                if subscriber.is_live:
                    wanted.setdefault(subscriber, []).append(recent)
        delivered = 0
        frames: dict[tuple[str, tuple[int, ...]], list[bytes]] = {}
        for subscriber, events in wanted.items():
            key = (subscriber.codec.name, tuple(recent.event.sequence for recent in events))
            made = frames.get(key)
            if made is None:
                made = frames[key] = frames_of(subscriber.codec, events)
            delivered += len(events) if subscriber.send(made, fresh[0].event.sequence - 1) else 0
        return delivered

    def _concerned(self, event: Event) -> Iterable[Subscriber]:
        topics = topics_heard(event) if self._job_topics else event.topics
        found = [heard for topic in (*topics, EVERYTHING) if (heard := self.listeners.get(topic))]
        return found[0] if len(found) == 1 else set().union(*found)


FRAME_BYTES_MAX = 256 << 10


def frames_of(codec: Codec, events: Sequence[Recent]) -> list[bytes]:
    """Events joined into frames, none much longer than it must be."""
    frames: list[bytes] = []
    begin, size = 0, 0
    for end, recent in enumerate(events):
        piece_bytes = len(recent.encoded(codec))
        if end > begin and size + piece_bytes > FRAME_BYTES_MAX:
            frames.append(_frame(codec, events[begin:end]))
            begin, size = end, 0
        size += piece_bytes
    if events:
        frames.append(_frame(codec, events[begin:]))
    return frames


def _frame(codec: Codec, events: Sequence[Recent]) -> bytes:
    return codec.frame([recent.encoded(codec) for recent in events], events[-1].cursor)
