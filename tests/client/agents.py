"""What the tests of the client share: agents in this process or in others, for as long as a test needs them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from devmesh.client import Mesh as Agents
from tests.harness import wait_until


@contextlib.asynccontextmanager
async def at_work(*meshes: Agents) -> AsyncIterator[None]:
    """Lets agents serve in this loop, and stops them. Raises what they raise."""
    serving = [asyncio.create_task(mesh.serve()) for mesh in meshes]
    try:
        yield
    finally:
        for mesh in meshes:
            mesh.stop()
        await asyncio.gather(*serving)


class Script:
    """An agent as users write one: a file of its own, run by Python."""

    def __init__(self, directory: Path, name: str, code: str, environment: dict[str, str]) -> None:
        self._file, self.log = directory / f"{name}.py", directory / f"{name}.log"
        self._file.write_text(code)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("DEVMESH_")}
        self._environment = {**clean, **environment, "PYTHONUNBUFFERED": "1"}
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, str(self._file)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._file.parent,
            )

    def restart(self) -> None:
        self.process = self._start()

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def until_said(self, words: str, within_s: float = 15.0) -> None:
        wait_until(lambda: words in self.said(), f"{words!r} is said; so far: {self.said()[-2000:]}", within_s)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, within_s: float = 15.0) -> int:
        """The exit code."""
        return self.process.wait(within_s)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def script(directory: Path, name: str, code: str, url: str, key: str) -> Iterator[Script]:
    running = Script(directory, name, code, {"DEVMESH_WS_URL": url, "DEVMESH_API_KEY": key})
    try:
        yield running
    finally:
        running.end()
