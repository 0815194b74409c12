"""The turnstile: lets a few through in each turn of the event loop, first come, first served.

While much is refused, reading and refusing would make each turn a long one, and what was let in would wait for a whole turn at
each of its trips to the database. So the rest wait outside, and those who send more than is read are slowed down by it.
"""

from __future__ import annotations

import asyncio
import collections
import time


class Turnstile:
    def __init__(self, per_turn: int) -> None:
        self._per_turn = self._left = per_turn
        self._waiting: collections.deque[tuple[asyncio.Future[None], float]] = collections.deque()
        self._is_turning = False

    @property
    def wait_s(self) -> float:
        """How long the one has waited whose turn is next."""
        return time.monotonic() - self._waiting[0][1] if self._waiting else 0.0

    async def turn(self) -> None:
        """Until it is one's turn."""
        if not self._is_turning:
            self._is_turning = True
            asyncio.get_running_loop().call_soon(self._turn)
        if self._left > 0 and not self._waiting:
            self._left -= 1
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((future, time.monotonic()))
        await future

    def _turn(self) -> None:
        self._left = self._per_turn
        while self._waiting and self._left > 0:
            future, _ = self._waiting.popleft()
            if not future.done():  # or who waited has gone
                future.set_result(None)
                self._left -= 1
        self._is_turning = bool(self._waiting)
        if self._is_turning:
            asyncio.get_running_loop().call_soon(self._turn)
