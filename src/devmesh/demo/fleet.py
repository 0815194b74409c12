"""The agents as processes: started, stopped in the middle of their work, killed, and ended with the demo."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from devmesh.client.address import KEY_NAME, URL_NAME, Address
from devmesh.demo.failure import DemoFailed

END_LIMIT_S = 5.0
STOP_LIMIT_S = 2.0
POLL_INTERVAL_S = 0.002


class Fleet:
    """Agents by name. They are there as long as the block lasts."""

    def __init__(self, run: str, capabilities: Mapping[str, str], address: Address, log_directory: Path) -> None:
        """Each name with what it can do; `run` is what all of them offer besides. What an agent logs goes to a file."""
        self._run, self._capabilities, self._directory = run, capabilities, log_directory
        self._environment = {**os.environ, URL_NAME: address.url, KEY_NAME: address.api_key}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._killed: set[str] = set()

    def __enter__(self) -> Self:
        try:
            for name in self._capabilities:
                self._processes[name] = self._start(name)
        except BaseException:
            self._end(signal.SIGKILL)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._end(signal.SIGTERM if kind is None else signal.SIGKILL)

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def check(self) -> None:
        """Raises DemoFailed when an agent ended that nobody killed."""
        for name, process in self._processes.items():
            if name not in self._killed and process.poll() is not None:
                said = self._log(name).read_text(errors="replace").strip().splitlines()
                raise DemoFailed(f"{name} ended with exit code {process.returncode}: {said[-1] if said else 'no word'}")

    async def stop(self, name: str) -> None:
        """Stops a process where it is (SIGSTOP). When this returns it does nothing any more."""
        process = psutil.Process(self.pid(name))
        process.suspend()
        ends_at = time.monotonic() + STOP_LIMIT_S
        while process.status() != psutil.STATUS_STOPPED:
            if time.monotonic() > ends_at:
                raise DemoFailed(f"{name} (pid {process.pid}) does not stop")
            await asyncio.sleep(POLL_INTERVAL_S)

    def go_on(self, name: str) -> None:
        self._processes[name].send_signal(signal.SIGCONT)

    def kill(self, name: str) -> None:
        """kill -9. When this returns the process is gone."""
        self._killed.add(name)
        self._processes[name].kill()
        self._processes[name].wait()

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "devmesh.demo.tethered", "devmesh.demo.agent"]
        command += [f"{self._run}-{name}", self._capabilities[name], self._run]
        with self._log(name).open("wb") as log:
            return subprocess.Popen(  # noqa: S603 - our own program
                command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C is for the demo alone: it ends them
            )

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"

    def _end(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
        ends_at = time.monotonic() + END_LIMIT_S
        for process in self._processes.values():
            try:
                process.wait(max(ends_at - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()
