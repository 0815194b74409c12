"""`devmesh check history`, as an operator meets it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from devmesh.store.history import RULES
from tests import forking
from tests.cli.commands import devmesh, environment
from tests.cli.doctoring import psql
from tests.conftest import run_sql
from tests.harness import wait_until

Command = Callable[..., subprocess.CompletedProcess[str]]
JOB = "00000000-0000-7000-8000-000000000001"
LOST = f"""
insert into mcp.tenants (tenant_id, name, status) values ('{JOB}', 'shop', 'active'), (gen_random_uuid(), 'gone', 'suspended');
insert into mcp.jobs (tenant_id, job_id, created_at, run_at, created_by_key_id, timeout_ms, backoff_ms, max_retries, priority,
                      queue, type, payload)
values ('{JOB}', '{JOB}', now(), now(), '{JOB}', 1, 1, 1, 3, 'q', 't', '1')
"""


@pytest.fixture
def command(tmp_path: Path, fresh_database: str) -> Command:
    def run(*arguments: str, dsn: str = fresh_database) -> subprocess.CompletedProcess[str]:
        return devmesh(tmp_path, "check", "history", *arguments, settings={"DATABASE_DSN": dsn})

    return run


def test_a_lost_job_is_named_with_its_rule_and_an_exit_code_of_its_own(command: Command, fresh_database: str) -> None:
    whole = command()
    assert (whole.returncode, whole.stdout.strip()) == (0, "Every rule holds.")
    run_sql(fresh_database, LOST)
    found = command()
    assert found.returncode == 4
    assert "shop: 1 jobs since" in found.stdout
    assert "gone" not in found.stdout
    assert f"job {JOB}: it neither waits nor is held, and has not ended" in found.stdout
    assert "2 rules are broken; if nobody has changed rows by hand" in found.stdout
    [shop] = json.loads(command("--tenant", "shop", "--json").stdout)
    assert [rule["rule"] for rule in shop["rules"]] == [rule.name for rule in RULES]
    assert {rule["rule"]: rule["count"] for rule in shop["rules"] if rule["count"]} == {
        "one_place": 1,
        "events_agree": 1,
    }
    assert [each["tenant"] for each in json.loads(command("--all", "--json").stdout)] == ["gone", "shop"]
    assert command("--since", "2100-01-01").returncode == 0
    assert command("--since", "1h").returncode == 4


def test_what_cannot_be_looked_at_is_said(command: Command) -> None:
    unknown = command("--tenant", "nobody")
    assert (unknown.returncode, "there is no tenant 'nobody'" in unknown.stderr) == (1, True)
    assert command("--since", "yesterday").returncode == 2
    assert command("--all", "--tenant", "shop").returncode == 2
    assert command(dsn="postgresql://nobody@127.0.0.1:1/none").returncode == 3


def test_a_database_that_goes_away_midway_is_as_unreachable_as_one_that_was_never_there(
    tmp_path: Path, fresh_database: str
) -> None:
    run_sql(fresh_database, LOST)
    judging = (
        "select count(*) from pg_stat_activity where application_name = 'devmesh check' and wait_event_type = 'Lock'"
    )
    with psql(fresh_database, "begin; lock table mcp.jobs;"), (tmp_path / "said").open("wb") as said:
        process = forking.start(
            ["devmesh", "check", "history"],
            cwd=tmp_path,
            env=environment({"DATABASE_DSN": fresh_database}),
            stdout=said,
        )
        wait_until(lambda: run_sql(fresh_database, judging) == "1", "it judges")
        run_sql(
            fresh_database,
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'devmesh check'",
        )
        code = process.wait(20)
    text = (tmp_path / "said").read_text()
    assert (code, text.count("error: "), "Traceback" in text) == (3, 1, False), text
