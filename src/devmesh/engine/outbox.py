"""What waits to be sent on one connection: bounded in bytes, so that a consumer that does not read costs only itself.

Nothing is dropped silently: an outbox that overflows is emptied, and whoever sends from it must then disconnect the consumer
with a code that says "reconnect and resume". Must not know any wire.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Iterable, Sequence

from devmesh import telemetry

STALL_LIMIT_S = 5.0  # a consumer that takes nothing for so long while it is waited for is given up,
LIVE_STALL_LIMIT_S = 1.0  # or for so long when more comes than may wait for it


class Outbox:
    __slots__ = ("_frames", "_next_take", "_wake", "bytes_max", "held_bytes", "is_overflowed", "taken")

    def __init__(self, bytes_max: int, wake: Callable[[], None]) -> None:
        """`wake` is called whenever there is something new to send, or the outbox has overflowed."""
        self.bytes_max, self._wake = bytes_max, wake
        self._frames: collections.deque[bytes] | None = None  # none while empty: most connections wait most of the time
        self._next_take: asyncio.Future[None] | None = None
        self.held_bytes = self.taken = 0  # the frames that were taken are counted
        self.is_overflowed = False

    def has_room(self, frames: Sequence[bytes]) -> bool:
        """Whether these could be put. A frame finds room in an empty outbox however long it is: it was allowed in."""
        if not self._frames and len(frames) == 1:
            return True
        return self.held_bytes + sum(map(len, frames)) <= self.bytes_max

    def put(self, frame: bytes) -> None:
        """Never waits."""
        if self.is_overflowed:
            return
        if not self.has_room((frame,)):
            self.overflow()
            return
        if self._frames is None:
            self._frames = collections.deque()
        self._frames.append(frame)
        self.held_bytes += len(frame)
        self._wake()

    def overflow(self) -> None:
        """Gives the consumer up: it has to reconnect and resume."""
        telemetry.CONSUMERS_GIVEN_UP.inc(not self.is_overflowed)
        self.is_overflowed = True
        self._frames = None
        self.held_bytes = 0
        self._settle()
        self._wake()

    def take(self) -> bytes | None:
        """The next frame to send, or None."""
        if not self._frames:
            return None
        frame = self._frames.popleft()
        if not self._frames:
            self._frames = None
        self.held_bytes -= len(frame)
        self.taken += 1
        self._settle()
        return frame

    async def drained(self, stall_limit_s: float = STALL_LIMIT_S) -> None:
        """Until the outbox is at most half full or has overflowed: how a replay keeps pace with its reader."""
        while self.held_bytes > self.bytes_max // 2:
            await self._taken_from(stall_limit_s)
            stall_limit_s = STALL_LIMIT_S

    async def room_for(self, frame: bytes) -> None:
        """Until there is room for a frame, or the outbox has overflowed: how a long answer waits for those before it."""
        while not self.has_room((frame,)) and not self.is_overflowed:
            await self._taken_from(STALL_LIMIT_S)

    async def _taken_from(self, stall_limit_s: float) -> None:
        """Until a frame is taken. It overflows when nothing is taken for too long."""
        if self._next_take is None:
            self._next_take = asyncio.get_running_loop().create_future()
        taken = self.taken
        await asyncio.wait([self._next_take], timeout=stall_limit_s)
        if self.taken == taken:
            self.overflow()

    def _settle(self) -> None:
        if self._next_take is not None:
            self._next_take.set_result(None)
            self._next_take = None


def depths(outboxes: Iterable[Outbox]) -> dict[str, int]:
    """How many there are and how much waits in them, for health."""
    held_bytes = [outbox.held_bytes for outbox in outboxes]
    return {
        "open": len(held_bytes),
        "outbox_bytes": sum(held_bytes),
        "fullest_outbox_bytes": max(held_bytes, default=0),
    }
