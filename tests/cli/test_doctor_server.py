"""`devmesh doctor` on a PostgreSQL that is ill in one way after another."""

from __future__ import annotations

import struct
from pathlib import Path
from urllib.parse import urlsplit

from tests.breaking import own_postgres
from tests.cli.doctoring import doctor, psql, relay
from tests.cli.ill_server import FAKETIME, IllServer


def test_a_server_that_is_too_old(server: IllServer, migrated: str, tmp_path: Path) -> None:
    number = int(server.sql("show server_version_num"))
    with relay(migrated, replacing=(struct.pack(">i", number), struct.pack(">i", 150_018))) as through:
        found = doctor(tmp_path, through)
    assert found.one("version")["state"] == "problem"
    assert "DevMesh needs 16 or newer" in found.one("version")["found"]
    assert found.code == 1


def test_a_server_that_takes_no_writes(server: IllServer, own: str, tmp_path: Path) -> None:
    name = urlsplit(own).path[1:]
    server.sql(f"alter database {name} set default_transaction_read_only = on")
    line = doctor(tmp_path, own).one("writes")
    assert line["state"] == "problem"
    assert f"alter database {name} reset default_transaction_read_only;" in line["advice"]
    with server.standby():
        line = doctor(tmp_path, own).one("writes")
        assert "is a standby" in line["found"]
        assert "pg_promote" in line["advice"][0]


def test_a_role_without_rights(server: IllServer, migrated: str, tmp_path: Path) -> None:
    server.sql("create role weak login")
    server.sql("create database empty")
    nothing = doctor(tmp_path, server.dsn("empty", "weak")).one("rights")
    assert nothing["state"] == "problem"
    assert nothing["advice"][0] == "grant create on database empty to weak;"
    server.sql("grant create on database empty to weak")
    assert doctor(tmp_path, server.dsn("empty", "weak")).one("rights")["state"] == "ok"

    weak = server.dsn("well", "weak")
    for expected in ("may not use the schema", "may not read and write"):
        line = next(line for line in doctor(tmp_path, weak).of("rights") if line["state"] == "problem")
        assert expected in line["found"]
        server.sql(line["advice"][0], "well")
    line = doctor(tmp_path, weak).one("rights")
    assert (line["state"], line["advice"]) == ("warning", ["grant postgres to weak;"])
    server.sql(line["advice"][0], "well")
    assert doctor(tmp_path, weak).one("rights")["state"] == "ok"


def test_too_few_connections(server: IllServer, migrated: str, tmp_path: Path) -> None:
    server.sql("create role narrow login connection limit 20; grant postgres to narrow")
    line = doctor(tmp_path, server.dsn("well", "narrow")).one("connections")
    assert line["state"] == "problem"
    assert "20 to be had of the role" in line["found"]
    server.sql(line["advice"][0])
    assert doctor(tmp_path, server.dsn("well", "narrow")).one("connections")["state"] == "ok"
    pools = {"DEVMESH_DATABASE_POOL_SIZE_MAX": "200"}
    assert "to be had of the server" in doctor(tmp_path, migrated, **pools).one("connections")["found"]
    tight = {"DEVMESH_DATABASE_POOL_SIZE_MAX": str(197 // 3 - 2)}
    with psql(migrated), psql(migrated), psql(migrated):
        assert doctor(tmp_path, migrated, **tight).one("connections")["state"] == "warning"


def test_clocks_that_differ(migrated: str, tmp_path: Path) -> None:
    for offset, state, way in (("+40s", "problem", "behind"), ("-3s", "warning", "ahead of")):
        faked = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        line = doctor(tmp_path, migrated, **faked).one("clock")
        assert line["state"] == state, line
        assert way in line["found"]


def test_settings_of_the_server_that_endanger_data(server: IllServer, migrated: str, tmp_path: Path) -> None:
    with server.settings(fsync="off", full_page_writes="off", synchronous_commit="off"):
        found = doctor(tmp_path, migrated)
    lines = found.of("durability")
    assert [line["found"].split()[0] for line in lines] == ["fsync", "full_page_writes", "synchronous_commit"]
    assert {line["state"] for line in lines} == {"warning"}
    assert lines[0]["advice"] == ["alter system set fsync = on; select pg_reload_conf();"]
    assert found.code == 0  # it works
    server.sql("alter database well set synchronous_commit = off")
    line = doctor(tmp_path, migrated).one("durability")
    server.sql(line["advice"][0])
    assert doctor(tmp_path, migrated).one("durability")["state"] == "ok"


def test_transactions_that_stay_open(server: IllServer, migrated: str, tmp_path: Path) -> None:
    with server.clock() as offset:
        with psql(migrated, "begin; select txid_current();", application_name="forgetful") as pid:
            offset.write_text("+660")
            found = doctor(tmp_path, migrated)
            line = found.one("long transactions")
            assert line["state"] == "warning"
            assert line["found"].startswith("forgetful of postgres has a transaction open for 11 min")
            assert line["advice"] == [f"select pg_terminate_backend({pid});"]
            assert found.one("clock")["state"] == "problem"
            server.sql(line["advice"][0])
        assert doctor(tmp_path, migrated).one("long transactions")["state"] == "ok"


def test_transaction_ids_that_run_out(tmp_path: Path) -> None:
    with own_postgres() as postgres:
        server = IllServer(postgres)
        server.use_up_transaction_ids(700_000_000)
        line = doctor(tmp_path, postgres.dsn).one("transaction ids")
        assert line["state"] == "warning"
        assert " 700,000,0" in line["found"] or " 699,99" in line["found"], line
        assert "vacuum (freeze" in line["advice"][0]
        server.use_up_transaction_ids(1_600_000_000)
        assert doctor(tmp_path, postgres.dsn).one("transaction ids")["state"] == "problem"
