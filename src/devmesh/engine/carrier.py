"""What carries rings from process to process: the shape that the bell's carriers have in common.

A carrier keeps its connection by itself, as a loop. Whether it is up may change at any moment; a ring that it fails to carry is
the next carrier's, and one that nobody carries costs a poll interval. Must not know tenants, nor what a ring means.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from devmesh.engine.loop import Loop

KEEP_INTERVAL_S = 1.0  # between looks at the connection


class Carrier(Loop):
    def __init__(self) -> None:
        super().__init__(KEEP_INTERVAL_S)
        self._hear: Callable[[str], None] = lambda _: None
        self._came_up: Callable[[], None] = lambda: None

    def serve(self, hear: Callable[[str], None], came_up: Callable[[], None]) -> None:
        """Whom it tells what other processes sent, and that it is up again: what was sent meanwhile it did not hear."""
        self._hear, self._came_up = hear, came_up

    @property
    @abstractmethod
    def is_up(self) -> bool:
        """Whether it hears, and may be given something to send."""

    @abstractmethod
    async def send(self, payload: str) -> None:
        """To every other process. Raises MeshError."""
