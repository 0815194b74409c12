"""`devmesh` as people run it: a process of its own, in a directory of its own, with a clean environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil

from devmesh.environment import read_variables
from tests import forking
from tests.harness import free_port, wait_until

LOG_CHARACTERS_SHOWN = 4_000
READY_LIMIT_S = 80.0
END_LIMIT_S = 20.0
COMMAND_LIMIT_S = 30.0
SERVICES = ("rest-api", "mcp-server", "worker")


def environment(settings: dict[str, str] | None = None) -> dict[str, str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DEVMESH_", "DATABASE_", "ENCRYPTION_"))
    }
    return {**clean, **(settings or {})}


def devmesh(
    directory: Path, *arguments: str, stdin: str = "", settings: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return forking.run(
        ["devmesh", *arguments], cwd=directory, env=environment(settings), stdin=stdin, timeout=COMMAND_LIMIT_S
    )


def answer(directory: Path, *arguments: str, **options: Any) -> Any:
    """What a command that must succeed prints as JSON."""
    done = devmesh(directory, *arguments, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def three_free_ports() -> int:
    """A port that is free, as are the two after it."""
    while True:
        port = free_port()
        if free_port() == port + 1 and free_port() == port + 2:
            return port


class Up:
    """One `devmesh up` in `directory`, with its data in `directory`/.devmesh."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, three_free_ports()
        self.data, self.dev_env_path = directory / ".devmesh", directory / ".devmesh" / "dev.env"
        self.process: forking.Process | None = None

    def start(self, settings: dict[str, str] | None = None) -> None:
        """Returns when the mesh is ready."""
        self.launch(settings)
        try:
            wait_until(self._is_ready, "the mesh is ready", READY_LIMIT_S)
        except AssertionError as late:
            late.add_note((self.directory / "log").read_text()[-LOG_CHARACTERS_SHOWN:])
            raise

    def launch(self, settings: dict[str, str] | None = None) -> None:
        with (self.directory / "out").open("wb") as out, (self.directory / "log").open("ab") as log:
            self.process = forking.start_anew(
                ["devmesh", "up", "--json", "--port", str(self.port)],
                cwd=self.directory, env=environment(settings), stdout=out, stderr=log,
            )  # fmt: skip

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"devmesh up ended with {self.process.returncode}: {self.log()}"
        return bool((self.directory / "out").read_text())

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def dev_env(self) -> dict[str, str]:
        return read_variables(self.dev_env_path)

    def service(self, name: str) -> psutil.Process:
        """The process of a service, as it is at this moment."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if name in child.cmdline())

    def services(self) -> list[psutil.Process]:
        return [self.service(name) for name in SERVICES]

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Ends it with a signal. The exit code, once it is gone."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(END_LIMIT_S)
