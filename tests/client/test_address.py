"""Where the client finds the mesh and its key, and what it says when it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from devmesh.client.address import URL_DEFAULT, Address, find
from devmesh.client.errors import MeshError


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with no word of a mesh in the environment."""
    for name in ("DEVMESH_WS_URL", "DEVMESH_API_KEY", "DEVMESH_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    below = tmp_path / "project" / "scripts"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    return below


def leave(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_is_given_is_stronger_than_the_environment_than_dotenv_than_what_devmesh_up_left(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(directory / ".devmesh" / "dev.env", "DEVMESH_WS_URL=ws://left:1/ws\nDEVMESH_API_KEY=dm_left\n")
    assert find() == Address("ws://left:1/ws", "dm_left")
    leave(directory / ".env", "DEVMESH_API_KEY=dm_dotenv\n")
    assert find() == Address("ws://left:1/ws", "dm_dotenv")
    monkeypatch.setenv("DEVMESH_API_KEY", "dm_environment")
    assert find() == Address("ws://left:1/ws", "dm_environment")
    assert find("ws://given:2/ws", "dm_given") == Address("ws://given:2/ws", "dm_given")


def test_files_are_found_in_the_directories_above(directory: Path) -> None:
    leave(directory.parent / ".devmesh" / "dev.env", "DEVMESH_API_KEY=dm_above\n")
    assert find() == Address(URL_DEFAULT, "dm_above")
    leave(directory.parent / ".env", "DEVMESH_DATA_DIR=elsewhere\n")
    leave(directory / "elsewhere" / "dev.env", "DEVMESH_API_KEY=dm_elsewhere\n")
    assert find().api_key == "dm_elsewhere"


@pytest.mark.parametrize(
    "line",
    [
        "DEVMESH_API_KEY=dm_key",
        "export DEVMESH_API_KEY='dm_key'",
        '  DEVMESH_API_KEY = "dm_key"  # the first key',
        "# DEVMESH_API_KEY=other\nDEVMESH_API_KEY=dm_key",
        "PASSWORD='open\nDEVMESH_API_KEY=dm_key",
    ],
)
def test_lines_are_read_as_a_shell_would(directory: Path, line: str) -> None:
    leave(directory / ".env", line + "\n")
    assert find().api_key == "dm_key"


def test_without_a_key_the_error_says_what_to_do(directory: Path) -> None:
    leave(directory / ".env", "DEVMESH_API_KEY=\n")
    with pytest.raises(MeshError, match=r"set DEVMESH_API_KEY .* or start `devmesh up`") as raised:
        find()
    assert raised.value.kind == "unauthenticated"


@pytest.mark.parametrize("url", ["http://127.0.0.1:8081", "127.0.0.1:8080", "ws://", "ws:///ws", "ws://h ost/ws"])
def test_an_address_that_is_none_is_named_with_where_it_is_from(
    directory: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    with pytest.raises(MeshError, match=r"^url is .*expected ws://") as raised:
        find(url, "dm_key")
    assert url in raised.value.message
    monkeypatch.setenv("DEVMESH_WS_URL", url)
    with pytest.raises(MeshError, match=r"^DEVMESH_WS_URL is .*expected ws://"):
        find(None, "dm_key")


@pytest.mark.parametrize("key", ["dm_schlüssel", "dm_a\r\nX-Header: b", "dm a"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(directory: Path, key: str) -> None:
    with pytest.raises(MeshError, match="is not a key") as raised:
        find("ws://host/ws", key)
    assert key not in raised.value.message


def test_an_open_quote_is_named_with_its_file(directory: Path) -> None:
    leave(directory / ".env", "DEVMESH_API_KEY='dm_key\n")
    with pytest.raises(MeshError, match=r"\.env: the value of DEVMESH_API_KEY has an open quote"):
        find()


def test_the_key_is_not_shown() -> None:
    assert "dm_secret" not in repr(find("ws://host/ws", "dm_secret"))
