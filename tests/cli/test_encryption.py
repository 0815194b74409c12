"""Master keys from the shell: made, looked at, replaced, lost."""

from __future__ import annotations

import asyncio
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from devmesh.core import envelope
from devmesh.core.envelope import MasterKey
from devmesh.environment import read_variables
from devmesh.settings import Settings
from devmesh.store.vault import Vault
from tests.cli.commands import Up, answer, devmesh
from tests.conftest import run_sql
from tests.sealed import new_tenant, opened, put

KEY, OTHER_KEY = envelope.new_master_key(), envelope.new_master_key()
ID, OTHER_ID = (MasterKey.parse(key).id for key in (KEY, OTHER_KEY))


def store(dsn: str, key: str, secrets: Sequence[bytes]) -> None:
    """Puts secrets into a database, as a service with this key does."""

    async def run() -> None:
        async with opened(dsn) as database:
            await put(database, Vault([MasterKey.parse(key)]), await new_tenant(database), secrets)

    asyncio.run(run())


def of(dsn: str, *keys: str) -> dict[str, str]:
    """The settings of somebody with these keys."""
    names = ("ENCRYPTION_MASTER_KEY", "DEVMESH_ENCRYPTION_KEY", "ENCRYPTION_KEY")
    return {"DATABASE_DSN": dsn, **dict(zip(names, keys, strict=False))}


def test_a_generated_key_is_printed_alone_and_can_be_set(tmp_path: Path) -> None:
    made = devmesh(tmp_path, "keys", "generate")
    assert made.returncode == 0
    [key] = made.stdout.splitlines()
    assert Settings.load({"ENCRYPTION_MASTER_KEY": key}).master_keys == [key]
    assert "ENCRYPTION_MASTER_KEY=" in made.stderr
    assert "ENCRYPTION_KEY=" in made.stderr
    assert key not in made.stderr

    (tmp_path / ".env").write_text(devmesh(tmp_path, "keys", "generate", "--env").stdout)
    shown = {row["name"]: row for row in answer(tmp_path, "settings", "--json")}["ENCRYPTION_MASTER_KEY"]
    assert (shown["value"], shown["source"]) == ("********", ".env")
    assert read_variables(tmp_path / ".env")["ENCRYPTION_MASTER_KEY"] != key


def test_what_is_encrypted_under_what_is_shown_and_every_secret_can_be_tried(
    fresh_database: str, tmp_path: Path
) -> None:
    store(fresh_database, KEY, [b"s3cret", b"s3cret too"])
    found = answer(tmp_path, "keys", "encryption", "--verify", "--json", settings=of(fresh_database, OTHER_KEY, KEY))
    assert (found["master_key"], found["older_master_keys"], found["removable_master_keys"]) == (OTHER_ID, [ID], [])
    [data_key] = found["data_keys"]
    assert (data_key["master_key_id"], data_key["sealed_values"], data_key["can_be_opened"]) == (ID, 2, True)
    assert (found["verified"], found["not_opened"]) == (2, [])

    shown = devmesh(tmp_path, "keys", "encryption", settings=of(fresh_database, OTHER_KEY, KEY))
    assert shown.returncode == 0
    assert f"{ID} is needed until the worker is through" in shown.stdout
    assert "1 data keys to be wrapped under the current master key" in shown.stdout
    for key in (KEY, OTHER_KEY):
        assert key not in shown.stdout + shown.stderr
    shown = devmesh(tmp_path, "keys", "encryption", settings=of(fresh_database, KEY, OTHER_KEY))
    assert f"{OTHER_ID} can be removed" in shown.stdout


def test_a_secret_that_cannot_be_opened_is_named_and_is_exit_code_1(fresh_database: str, tmp_path: Path) -> None:
    store(fresh_database, KEY, [b"s3cret", b"s3cret too"])
    damage = "set_byte(secret, 40, get_byte(secret, 40) # 1)"
    row = run_sql(fresh_database, "select issuer_id from mcp.token_issuers limit 1")
    run_sql(fresh_database, f"update mcp.token_issuers set secret = {damage} where issuer_id = '{row}'")
    tried = devmesh(tmp_path, "keys", "encryption", "--verify", settings=of(fresh_database, KEY))
    assert tried.returncode == 1
    assert "1 of 2 secrets were opened" in tried.stdout
    assert row in tried.stderr
    assert "error: 1 secrets cannot be opened" in tried.stderr


@pytest.mark.parametrize("keys", [(), (OTHER_KEY,)], ids=["none", "another"])
def test_without_the_right_key_both_are_named(fresh_database: str, tmp_path: Path, keys: tuple[str, ...]) -> None:
    store(fresh_database, KEY, [b"s3cret"])
    looked = devmesh(tmp_path, "keys", "encryption", settings=of(fresh_database, *keys))
    assert looked.returncode == 1
    assert f"under master key {ID}, and given was {OTHER_ID if keys else 'none'}" in looked.stderr
    rotated = devmesh(tmp_path, "keys", "rotate-data", settings=of(fresh_database))
    assert rotated.returncode == 1
    assert "devmesh keys generate" in rotated.stderr


def test_a_new_data_key_is_made_on_demand(fresh_database: str, tmp_path: Path) -> None:
    store(fresh_database, KEY, [b"s3cret"])
    rotated = devmesh(tmp_path, "keys", "rotate-data", settings=of(fresh_database, KEY))
    assert rotated.returncode == 0, rotated.stderr
    assert "1 secrets are left to be encrypted anew" in rotated.stdout
    found = answer(tmp_path, "keys", "encryption", "--json", settings=of(fresh_database, KEY))
    assert [(key["is_current"], key["sealed_values"]) for key in found["data_keys"]] == [(True, 0), (False, 1)]


def test_no_database_is_a_line_and_an_exit_code(tmp_path: Path, fresh_database: str) -> None:
    assert devmesh(tmp_path, "keys", "encryption").returncode == 2
    away = devmesh(tmp_path, "keys", "encryption", settings=of("postgresql://nobody@127.0.0.1:1/none", KEY))
    assert (away.returncode, away.stderr.count("error:")) == (3, 1)
    empty = devmesh(tmp_path, "keys", "encryption", settings=of(fresh_database, KEY))
    assert (empty.returncode, "nothing" in empty.stdout) == (0, True)


@pytest.mark.soak
def test_up_brings_a_key_keeps_it_and_says_so_when_it_was_lost(own_up: Up, fresh_database: str) -> None:
    database = {"DATABASE_DSN": fresh_database}
    own_up.start(database)
    path = own_up.data / "encryption.env"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = path.read_text()
    key = read_variables(path)["ENCRYPTION_KEY"]
    assert key not in own_up.log()
    found: dict[str, Any] = answer(own_up.directory, "keys", "encryption", "--json")
    assert found["master_key"] == MasterKey.parse(key).id

    store(fresh_database, key, [b"s3cret"])
    assert own_up.end() == 0
    path.unlink()
    refused = devmesh(own_up.directory, "up", "--port", str(own_up.port), settings=database)
    assert refused.returncode == 1
    assert re.search(rf"encryption\.env, with the master key {found['master_key']} .* is gone", refused.stderr)
    assert not path.exists()

    path.write_text(kept)
    own_up.start(database)
    assert answer(own_up.directory, "keys", "encryption", "--verify", "--json")["verified"] == 1
    assert own_up.end() == 0

    path.unlink()
    given_up = devmesh(own_up.directory, "keys", "forget", found["master_key"], "--yes", settings=database)
    assert given_up.returncode == 0, given_up.stderr
    assert "1 secrets have to be stored anew" in given_up.stdout
    own_up.start(database)
    assert read_variables(path)["ENCRYPTION_KEY"] != key


def test_up_makes_no_key_where_one_is_given(own_up: Up, fresh_database: str) -> None:
    own_up.start({"DATABASE_DSN": fresh_database, "ENCRYPTION_MASTER_KEY": KEY})
    assert not (own_up.data / "encryption.env").exists()


def test_a_key_is_given_up_only_when_it_is_lost_and_only_when_sure(fresh_database: str, tmp_path: Path) -> None:
    store(fresh_database, KEY, [b"s3cret"])
    settings = of(fresh_database, OTHER_KEY, KEY)
    kept = devmesh(tmp_path, "keys", "forget", ID, "--yes", settings=settings)
    assert (kept.returncode, "is not lost" in kept.stderr) == (1, True)
    unsure = devmesh(tmp_path, "keys", "forget", ID, settings=of(fresh_database), stdin="n\n")
    assert (unsure.returncode, "nothing was given up" in unsure.stderr) == (1, True)
    unknown = devmesh(tmp_path, "keys", "forget", "0" * 16, "--yes", settings=settings)
    assert unknown.returncode == 2
    assert answer(tmp_path, "keys", "encryption", "--verify", "--json", settings=settings)["verified"] == 1
