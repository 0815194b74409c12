"""The mesh that the demo plays on: the one that runs here already, else one of its own for as long as it lasts."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from devmesh.cli.console import Exit, Failure
from devmesh.cli.loading import DEV_ENV, client_settings
from devmesh.client.address import Address
from devmesh.settings import ClientSettings

START_LIMIT_S = 120.0
END_LIMIT_S = 40.0
ANSWER_LIMIT_S = 3.0
LOG_TAIL_LINES = 3
# Its own mesh is nobody else's: on this machine alone, and on ports that are free.
PRIVATE = {"DEVMESH_HOST": "127.0.0.1", "DEVMESH_WS_PORT": "0", "DEVMESH_REST_PORT": "0", "DEVMESH_WORKER_PORT": "0"}


class DemoMesh(NamedTuple):
    address: Address
    url: str
    start_s: float | None  # none when it ran already


def running(data_dir: Path | None) -> DemoMesh | None:
    """The mesh that settings, or an earlier `devmesh up`, point to, if it answers.

    Raises `Failure` when it was named in settings and does not.
    """
    settings = client_settings(data_dir)
    if settings.api_key is None:
        return None
    try:
        answer = httpx.get(f"{settings.url.rstrip('/')}/readyz", timeout=ANSWER_LIMIT_S, trust_env=False)
        reason = "" if answer.status_code == httpx.codes.OK else f"it is not ready: {answer.text[:200]}"
    except httpx.HTTPError as error:
        reason = f"it cannot be reached: {error}"
    if not reason:
        return DemoMesh(Address(settings.ws_url, settings.api_key), settings.url, None)
    source = settings.sources.get("url", settings.sources.get("ws_url", DEV_ENV))
    if source == DEV_ENV:
        return None  # what an earlier `devmesh up` left, which does not run any more
    hint = "take DEVMESH_URL out of the way, and the demo brings a mesh of its own"
    where = "the environment" if source == "environment" else source
    raise Failure(f"the mesh at {settings.url}, named in {where}: {reason}", Exit.UNREACHABLE, hint)


@contextmanager
def own_mesh(data_dir: Path, log_path: Path) -> Iterator[DemoMesh]:
    """`devmesh up` as a child, which ends with this block, and with this process however it ends. Raises `Failure`."""
    began = time.monotonic()
    reading, writing = os.pipe()  # the child sees its end
    command = [sys.executable, "-m", "devmesh.cli.tied", str(reading), str(END_LIMIT_S)]
    command += ["up", "--json", "--data-dir", str(data_dir)]
    with log_path.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own program
            command, env={**os.environ, **PRIVATE}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            pass_fds=(reading,), process_group=0,  # Ctrl-C is for us alone: we end it
        )  # fmt: skip
    os.close(reading)
    try:
        ready = json.loads(_first_line(process, log_path))
        settings = ClientSettings.load({}, None, Path(ready["dev_env"]))
        assert settings.api_key is not None
        yield DemoMesh(Address(settings.ws_url, settings.api_key), settings.url, time.monotonic() - began)
    finally:
        _end(process)
        os.close(writing)


def _first_line(process: subprocess.Popen[bytes], log_path: Path) -> bytes:
    """What it says when it is ready. Raises `Failure` with its own words when it will not be."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        is_heard = selector.select(START_LIMIT_S)
    if is_heard and (line := process.stdout.readline()):
        return line
    said = log_path.read_text(errors="replace").splitlines()
    if not is_heard:
        raise Failure(f"the mesh was not ready within {START_LIMIT_S:g} s: {_tail(said)}")
    code = process.wait(END_LIMIT_S)
    known = Exit(code) if code in (Exit.USAGE, Exit.UNREACHABLE) else Exit.FAILED
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    hints = [line.removeprefix("hint:").strip() for line in said if line.startswith("hint:")]
    if not errors:
        raise Failure(f"the mesh did not start, and ended with exit code {code}: {_tail(said)}", known)
    hint = hints[-1] if hints else f"it said: {_tail([line for line in said if not line.startswith('error: ')])}"
    raise Failure(f"the mesh did not start: {errors[-1]}", known, hint)


def _tail(said: list[str]) -> str:
    return " / ".join(line.strip() for line in said[-LOG_TAIL_LINES:]) or "nothing was said"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdout is not None
    process.stdout.close()
