"""Writes of one turn of the loop go together, and none is held back for longer or is lost."""

from __future__ import annotations

import asyncio
from typing import cast

from devmesh.edges.corked import HELD_BYTES_MAX, Corked


class Transport:
    """What was written, call by call."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        self.written.append(data)

    def close(self) -> None:
        self.is_closed = True

    def get_write_buffer_size(self) -> int:
        return 7


def corked() -> tuple[Corked, Transport]:
    transport = Transport()
    return Corked(cast("asyncio.Transport", transport), asyncio.get_running_loop()), transport


async def test_what_is_written_in_one_turn_is_one_write() -> None:
    cork, transport = corked()
    for part in (b"a", b"b", b"c"):
        cork.write(part)
    assert transport.written == []
    await asyncio.sleep(0)
    assert transport.written == [b"abc"]
    cork.write(b"d")
    await asyncio.sleep(0)
    assert transport.written == [b"abc", b"d"]


async def test_much_is_written_at_once_so_that_the_transport_can_say_that_it_is_full() -> None:
    cork, transport = corked()
    cork.write(b"x" * HELD_BYTES_MAX)
    assert transport.written == []
    cork.write(b"y")
    assert [len(data) for data in transport.written] == [HELD_BYTES_MAX + 1]
    await asyncio.sleep(0)
    assert len(transport.written) == 1  # nothing is written twice


async def test_what_is_held_is_written_before_the_end() -> None:
    cork, transport = corked()
    cork.write(b"bye")
    cork.close()
    assert (transport.written, transport.is_closed) == ([b"bye"], True)
    await asyncio.sleep(0)
    assert transport.written == [b"bye"]


async def test_it_is_a_transport_in_everything_else() -> None:
    cork, _ = corked()
    assert cork.get_write_buffer_size() == 7
