"""Where the mesh is and with which key to act: given, else from the environment, `.env`, or what `devmesh up` left.

Files are looked for in the working directory and then upwards, so that a script in a folder of a project finds them. Only
the names below are read.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from devmesh.client.errors import MeshError
from devmesh.core.errors import Kind

URL_NAME, KEY_NAME, DATA_DIR_NAME = "DEVMESH_WS_URL", "DEVMESH_API_KEY", "DEVMESH_DATA_DIR"
URL_DEFAULT, DATA_DIR_DEFAULT = "ws://127.0.0.1:8080/ws", ".devmesh"
_LINE = re.compile(rf"\s*(?:export\s+)?({URL_NAME}|{KEY_NAME}|{DATA_DIR_NAME})\s*=\s*(.*)")


class Address(NamedTuple):
    url: str
    api_key: str

    def __repr__(self) -> str:
        return f"Address({self.url!r})"  # the key is a secret


def find(url: str | None = None, api_key: str | None = None) -> Address:
    """What was given, completed by the first place that says the rest. Raises MeshError with the line a user needs."""
    places = list(_places(os.environ, Path.cwd()))
    url_said, key_said = ("url" if url else URL_NAME), ("api_key" if api_key else KEY_NAME)  # what to mend
    url = url or _first(places, URL_NAME) or URL_DEFAULT
    api_key = api_key or _first(places, KEY_NAME)
    if not re.fullmatch(r"wss?://[^/\s]\S*", url):
        raise MeshError(Kind.INVALID_PARAMS, f"{url_said} is {url!r}: expected ws://HOST:PORT/ws or wss://HOST/ws")
    if not api_key:
        raise MeshError(
            Kind.UNAUTHENTICATED,
            f"no API key: set {KEY_NAME} (and {URL_NAME}), or start `devmesh up` in this directory, which leaves both here",
        )
    if not re.fullmatch(r"[\x21-\x7e]+", api_key):
        raise MeshError(Kind.UNAUTHENTICATED, f"{key_said} is not a key: one begins with dm_ and has 46 characters")
    return Address(url, api_key)


def _places(environment: Mapping[str, str], directory: Path) -> Iterator[Mapping[str, str]]:
    """Where names are looked up, the strongest first."""
    yield environment
    directories = [directory, *directory.parents]
    dotenvs = [_read(above / ".env") for above in directories]
    yield from dotenvs
    data_dir = _first([environment, *dotenvs], DATA_DIR_NAME) or DATA_DIR_DEFAULT
    for above in directories:
        yield _read(above / data_dir / "dev.env")


def _first(places: list[Mapping[str, str]], name: str) -> str | None:
    return next((value for place in places if (value := place.get(name, "").strip())), None)


def _read(path: Path) -> dict[str, str]:
    """The names of ours in a file of NAME=value lines; a file that is not there or not ours to read has none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    found: dict[str, str] = {}
    for match in filter(None, map(_LINE.fullmatch, text.splitlines())):
        try:
            words = shlex.split(match[2], comments=True)
        except ValueError:
            raise MeshError(Kind.INVALID_PARAMS, f"{path}: the value of {match[1]} has an open quote") from None
        found[match[1]] = words[0] if words else ""
    return found
