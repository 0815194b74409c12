"""Settings: what is read from where, what is refused, what is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from devmesh.environment import SettingsError, read_variables
from devmesh.settings import ClientSettings, Settings


def shown(settings: Settings) -> dict[str, tuple[str, str]]:
    return {row.name: (row.value, row.source) for row in settings.describe()}


def test_defaults_without_any_variable():
    settings = Settings.load({})
    assert settings == Settings()
    assert (settings.ws_port, settings.rest_port, settings.worker_port) == (8080, 8081, 8088)
    assert {source for _, source in shown(settings).values()} == {"default"}


def test_every_default_would_be_accepted_from_the_environment():
    defaults = {row.name: row.default for row in Settings().describe() if row.default != "none"}
    settings = Settings.load(defaults)
    assert {row.name: row.value for row in settings.describe() if row.name in defaults} == defaults


def test_every_setting_has_a_meaning_and_a_unit_that_fits_its_name():
    for row in Settings().describe():
        assert row.meaning.endswith("."), row.name
        units = {"_PER_S": "requests/s", "_S": "s", "_MS": "ms", "_BYTES_MAX": "bytes", "_MONTHS": "months"}
        for ending, unit in units.items():
            if row.name.endswith(ending):
                assert row.unit == unit, row.name
                break


def test_environment_wins_over_dotenv_which_wins_over_dev_env(tmp_path: Path):
    dotenv, dev_env = tmp_path / ".env", tmp_path / "dev.env"
    dotenv.write_text("DEVMESH_WS_PORT=2\nDEVMESH_REST_PORT=2\n")
    dev_env.write_text("DEVMESH_WS_PORT=3\nDEVMESH_REST_PORT=3\nDEVMESH_WORKER_PORT=3\n")
    settings = Settings.load({"DEVMESH_WS_PORT": "1"}, dotenv, dev_env)
    assert (settings.ws_port, settings.rest_port, settings.worker_port) == (1, 2, 3)
    rows = shown(settings)
    assert rows["DEVMESH_WS_PORT"] == ("1", "environment")
    assert rows["DEVMESH_REST_PORT"] == ("2", ".env")
    assert rows["DEVMESH_WORKER_PORT"] == ("3", "dev.env")


def test_a_variable_set_to_nothing_is_not_set():
    assert Settings.load({"DATABASE_DSN": "", "DEVMESH_WS_PORT": "  "}) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("DEVMESH_WS_PORT", "http", "a whole number from 0 to 65535"),
        ("DEVMESH_WS_PORT", "65536", "a whole number from 0 to 65535"),
        ("DEVMESH_WS_PORT", "80.5", "a whole number"),
        ("DEVMESH_TRANSACTION_DEADLINE_S", "nan", "a number from 0.1 to 600 (s)"),
        ("DEVMESH_GATHER_QUEUE_MAX", "0", "a whole number, at least 1 (calls)"),
        ("DEVMESH_PING_INTERVAL_S", "inf", "a number, at least 0.1 (s)"),
        ("DEVMESH_LOG_LEVEL", "loud", "debug, info, warning or error"),
        ("DATABASE_SEARCH_PATH", "mcp; drop table", "names of schemas"),
        ("SKIP_MIGRATIONS", "perhaps", "true or false"),
    ],
)
def test_a_malformed_value_names_setting_value_and_what_is_expected(name: str, value: str, expected: str):
    with pytest.raises(SettingsError) as caught:
        Settings.load({name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("word", "value"), [("true", True), ("1", True), ("YES", True), ("off", False), ("0", False), ("No", False)]
)
def test_words_for_true_and_false(word: str, value: bool):
    assert Settings.load({"SKIP_MIGRATIONS": word}).skip_migrations is value


def test_settings_that_contradict_one_another_are_refused():
    with pytest.raises(SettingsError, match=r"DEVMESH_DATABASE_POOL_SIZE_MIN \(9\).*DEVMESH_DATABASE_POOL_SIZE_MAX"):
        Settings.load({"DEVMESH_DATABASE_POOL_SIZE_MIN": "9"})


@pytest.mark.parametrize(
    ("dsn", "masked"),
    [
        ("postgresql://mesh:s3cret@db.local:5432/mesh", "postgresql://********@db.local:5432/mesh"),
        ("postgresql://mesh:s3c@ret@db/mesh?password=s3cret", "postgresql://********@db/mesh?********"),
        ("postgresql://db", "postgresql://********@db"),
    ],
)
def test_a_secret_is_masked(dsn: str, masked: str):
    settings = Settings.load({"DATABASE_DSN": dsn})
    assert settings.database_dsn == dsn
    assert shown(settings)["DATABASE_DSN"] == (masked, "environment")


def test_a_malformed_secret_is_not_told():
    with pytest.raises(SettingsError) as caught:
        Settings.load({"DATABASE_DSN": "mysql://root:s3cret@db/mesh"})
    assert "s3cret" not in str(caught.value)
    assert "DATABASE_DSN" in str(caught.value)


def test_a_secret_stays_out_of_the_representation():
    assert "s3cret" not in repr(Settings.load({"DATABASE_DSN": "postgresql://mesh:s3cret@db/mesh"}))
    assert "s3cret" not in repr(ClientSettings.load({"DEVMESH_API_KEY": "dm_s3cret"}))


def test_the_first_master_key_that_is_set_is_the_current_one_and_the_others_are_still_read():
    first, second, third = (f"{letter}bcdefghijklmnopqrstuvwxyz0123456789ABCDEFA" for letter in "xyz")
    names = ("ENCRYPTION_MASTER_KEY", "DEVMESH_ENCRYPTION_KEY", "ENCRYPTION_KEY")
    given = dict(zip(names, (first, second, third), strict=True))
    assert Settings.load(given).master_keys == [first, second, third]
    assert Settings.load({"ENCRYPTION_KEY": third}).master_keys == [third]
    assert Settings.load({"DEVMESH_ENCRYPTION_KEY": second, "ENCRYPTION_KEY": third}).master_keys == [second, third]
    assert Settings.load({}).master_keys == []
    assert not any(key in repr(Settings.load(given)) for key in (first, second, third))
    assert {shown(Settings.load(given))[name] for name in names} == {("********", "environment")}


def test_a_misspelt_master_key_is_reported_and_anybody_else_s_name_is_not():
    settings = Settings.load({"ENCRYPTION_MASTERKEY": "s3cret", "DISK_ENCRYPTION": "on", "ENCRYPTION_PROVIDER": "none"})
    assert list(settings.warnings) == [
        "ENCRYPTION_MASTERKEY in environment is not a setting and has no effect; did you mean ENCRYPTION_MASTER_KEY?"
    ]


def test_unknown_names_are_reported_and_client_names_are_not():
    settings = Settings.load(
        {
            "DEVMESH_WSPORT": "1",
            "DEVMESH_QUITE_SOMETHING_ELSE": "s3cret",
            "DEVMESH_URL": "http://127.0.0.1:1",
            "DEVMESH_WS_URL": "ws://127.0.0.1:1/ws",
            "DEVMESH_API_KEY": "dm_key",
            "DEVMESH_TENANT": "default",
            "DEVMESH_DATA_DIR": "state",
            "PATH": "/usr/bin",
        }
    )
    assert list(settings.warnings) == [
        "DEVMESH_QUITE_SOMETHING_ELSE in environment is not a setting and has no effect",
        "DEVMESH_WSPORT in environment is not a setting and has no effect; did you mean DEVMESH_WS_PORT?",
    ]


def test_client_settings_come_from_what_up_has_written(tmp_path: Path):
    dev_env = tmp_path / "dev.env"
    dev_env.write_text("DEVMESH_URL=http://127.0.0.1:9\nDEVMESH_API_KEY=dm_key\nDATABASE_DSN=postgresql://db/mesh\n")
    client = ClientSettings.load({"DEVMESH_URL": "http://elsewhere"}, None, dev_env)
    assert (client.url, client.api_key, client.tenant) == ("http://elsewhere", "dm_key", "default")
    assert Settings.load({}, None, dev_env).database_dsn == "postgresql://db/mesh"


def test_a_file_of_variables_may_hold_comments_quotes_and_exports(tmp_path: Path):
    path = tmp_path / ".env"
    path.write_text(
        "# a comment\n\nPLAIN=one\n export EXPORTED = two words \nSINGLE='# three'\nDOUBLE=\"four\" # said\n"
        "EMPTY=\nREMARK=five # not this\nHASH=si#x\nONLY_REMARK= # nothing\nQUOTED_INSIDE=it's\n"
    )
    assert read_variables(path) == {
        "PLAIN": "one",
        "EXPORTED": "two words",
        "SINGLE": "# three",
        "DOUBLE": "four",
        "EMPTY": "",
        "REMARK": "five",
        "HASH": "si#x",
        "ONLY_REMARK": "",
        "QUOTED_INSIDE": "it's",
    }


def test_a_malformed_line_is_named_without_its_content(tmp_path: Path):
    path = tmp_path / ".env"
    path.write_text("GOOD=1\ns3cret\n")
    with pytest.raises(SettingsError, match="line 2: expected NAME=value") as caught:
        read_variables(path)
    assert "s3cret" not in str(caught.value)


def test_an_absent_file_holds_nothing_and_an_unreadable_one_is_an_error(tmp_path: Path):
    assert read_variables(tmp_path / "absent") == {}
    with pytest.raises(SettingsError, match="cannot be read"):
        read_variables(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("REDIS_URL", "redis://:secretpart#x@host:6379/0", "cannot be understood"),
        ("DEVMESH_JWKS_URL", "https://[x/jwks", "cannot be understood"),
        (
            "DEVMESH_JWT_SECRET",
            "-----BEGIN PRIVATE KEY-----secretpart-of-it-which-is-long-enough",
            "no secret for HS256",
        ),
        ("DEVMESH_TRUSTED_PROXIES", "10.0.0.7,10.1.0.0/99", "no network"),
        ("DEVMESH_TRUSTED_PROXIES", "10.1.2.3/16", "no network"),
        ("DEVMESH_TRUSTED_PROXIES", "proxy.example", "separated by commas"),
    ],
)
def test_what_would_only_fail_later_is_refused_at_once_and_no_secret_is_quoted(name: str, value: str, why: str):
    with pytest.raises(SettingsError) as refused:
        Settings.load({name: value})
    assert name in str(refused.value)
    assert why in str(refused.value)
    assert "secretpart" not in str(refused.value)


def test_proxies_are_addresses_and_networks():
    for value in ("10.0.0.7", "10.0.0.7, 10.1.0.0/16", "::1,fd00::/8"):
        assert Settings.load({"DEVMESH_TRUSTED_PROXIES": value}).trusted_proxies == value
