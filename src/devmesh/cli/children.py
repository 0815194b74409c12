"""Services as child processes: started, watched, started again when they die, and stopped in good order.

Must not know what a service does, only where it says that it is ready.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import httpx

from devmesh.cli.console import Exit, Failure

BACKOFF_S = (0.5, 1, 2, 4, 8, 16, 30)
LIFE_THAT_COUNTS_S = 60.0  # one that lived this long begins again with the shortest back-off
READY_POLL_INTERVAL_S = 0.05
READY_POLL_LIMIT_S = 5.0
READY_REPORT_INTERVAL_S = 5.0
END_MARGIN_S = 5.0  # beyond the grace that services keep themselves
LINE_BYTES_MAX = 1 << 16


class Service(NamedTuple):
    """What to start and where it answers."""

    name: str
    arguments: Sequence[str]
    url: str  # of its health


class Surroundings(NamedTuple):
    """What all children of one `devmesh up` share."""

    environment: Mapping[str, str]
    parent_fd: int  # they end when the other end of this pipe closes
    lock_fd: int  # they hold the directory as long as they live
    grace_s: float
    hurry: asyncio.Event  # set when whoever stops us will not wait


class Log(Protocol):
    def __call__(self, name: str, line: str) -> None: ...


class Child:
    """One service. It runs as long as `supervise` does."""

    def __init__(self, service: Service, surroundings: Surroundings, log: Log) -> None:
        self.service, self._surroundings, self._log = service, surroundings, log
        self._process: asyncio.subprocess.Process | None = None
        self._output: asyncio.Task[None] | None = None
        self._was_ready = False

    async def supervise(self) -> None:
        """Keeps the service running until it is cancelled; the service has ended when this has.

        Raises `Failure` when the service ends by itself before it has ever been ready: it has said why, and would say
        it again.
        """
        deaths = 0
        try:
            while True:
                started_at = time.monotonic()
                await self._start()
                code = await self._ended()
                if code >= 0 and not self._was_ready:
                    raise Failure(
                        f"{self.service.name} ended with exit code {code} before it was ready; its last lines say why",
                        Exit.FAILED,
                    )
                deaths = 0 if time.monotonic() - started_at >= LIFE_THAT_COUNTS_S else deaths
                pause_s = BACKOFF_S[min(deaths, len(BACKOFF_S) - 1)]
                deaths += 1
                self._log("devmesh", f"{self.service.name} {_death(code)}; starting it again in {pause_s:g} s")
                await asyncio.sleep(pause_s)
        finally:
            await self._stop()

    async def wait_ready(self) -> None:
        """Until the service says that it is ready, telling now and then why it is not."""
        reports_at = time.monotonic() + READY_REPORT_INTERVAL_S
        async with httpx.AsyncClient(timeout=READY_POLL_LIMIT_S, trust_env=False) as client:
            while True:
                try:
                    response = await client.get(f"{self.service.url}/readyz")
                    if response.status_code == httpx.codes.OK:
                        self._was_ready = True
                        return
                    reason = _reason(response)
                except httpx.HTTPError:
                    reason = "it does not answer yet"
                if time.monotonic() >= reports_at:
                    reports_at = time.monotonic() + READY_REPORT_INTERVAL_S
                    self._log("devmesh", f"{self.service.name} is not ready: {reason}")
                await asyncio.sleep(READY_POLL_INTERVAL_S)

    async def _start(self) -> None:
        shared = self._surroundings
        tied = ["-m", "devmesh.cli.tied", str(shared.parent_fd), str(shared.grace_s + END_MARGIN_S)]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *tied, self.service.name, *self.service.arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env=shared.environment, pass_fds=(shared.parent_fd, shared.lock_fd),
            process_group=0,  # Ctrl-C is for us alone: we stop them in order
        )  # fmt: skip
        self._output = asyncio.create_task(self._pass_on(self._process))

    async def _ended(self) -> int:
        assert self._process is not None
        assert self._output is not None
        code = await self._process.wait()
        await self._output
        return code

    async def _pass_on(self, process: asyncio.subprocess.Process) -> None:
        """Every line that the service writes, under its name."""
        assert process.stdout is not None
        rest = b""
        while data := await process.stdout.read(LINE_BYTES_MAX):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > LINE_BYTES_MAX:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._log(self.service.name, line.decode(errors="replace").rstrip("\r"))
        if rest:
            self._log(self.service.name, rest.decode(errors="replace"))

    async def _stop(self) -> None:
        """Asks the service to stop, and ends it when it has not within its grace or when there is no time for that."""
        process, shared = self._process, self._surroundings
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        ended, hurried = asyncio.create_task(self._ended()), asyncio.create_task(shared.hurry.wait())
        await asyncio.wait({ended, hurried}, timeout=shared.grace_s + END_MARGIN_S, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not ended.done():
            self._log("devmesh", f"{self.service.name} does not stop; ending it")
            process.kill()
        await ended


def _reason(response: httpx.Response) -> str:
    """What a service says that it waits for."""
    try:
        return "; ".join(response.json()["reasons"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]


def _death(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
