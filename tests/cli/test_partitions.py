"""`devmesh partitions`, straight on a database: what it shows, makes, moves and drops, and with which exit code."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import devmesh
from tests.conftest import run_sql

Command = Callable[..., subprocess.CompletedProcess[str]]
TABLES = ("events", "audit_log", "api_logs", "jobs", "job_executions")
INSERT = (
    "insert into mcp.audit_log (tenant_id, audit_id, at, operation, outcome)"
    " values (gen_random_uuid(), gen_random_uuid(), {at}, 'test', 'done')"
)


@pytest.fixture
def command(tmp_path: Path, fresh_database: str) -> Command:
    """Runs `devmesh partitions` on a migrated database."""
    settings = {"DATABASE_DSN": fresh_database}

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return devmesh(tmp_path, "partitions", *arguments, settings={**settings, **more})

    return run


def answer(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_status_is_a_table_for_people_and_json_for_programs(command: Command) -> None:
    shown = command("status")
    assert shown.returncode == 0
    assert [line.split()[0] for line in shown.stdout.splitlines() if line.strip()][2:] == list(TABLES)
    assert [(table["table"], table["months_ahead"]) for table in answer(command("status", "--json"))] == [
        (table, 12) for table in TABLES
    ]


def test_ensure_makes_what_is_missing_and_says_what(command: Command, fresh_database: str) -> None:
    assert command("ensure").stdout == "nothing is missing\n"
    made = answer(command("ensure", "13", "--json"))["made"]
    assert [name[:-8] for name in made] == list(TABLES)
    run_sql(fresh_database, f"drop table mcp.{made[0]}")
    assert command("ensure", "13").stdout == f"made {made[0]}\n"
    assert command("ensure", "-1").returncode == 2


def test_rows_outside_of_all_months_are_reported_drained_and_pruned(command: Command, fresh_database: str) -> None:
    for at in ("'1999-12-31Z'", "'2001-02-03Z'", "now()"):
        run_sql(fresh_database, INSERT.format(at=at))
    status = command("status")
    assert status.returncode == 1
    assert "rows of mcp.audit_log outside of all months: 2" in status.stderr
    assert answer(command("drain-default", "--json")) == {"drained": {**dict.fromkeys(TABLES, 0), "audit_log": 2}}
    assert command("status").returncode == 0

    would = answer(command("prune", "--dry-run", "--json"))
    assert [(found["partition"], found["rows"]) for found in would["expired"]] == [
        ("audit_log_1999_12", 1), ("audit_log_2001_02", 1),
    ]  # fmt: skip
    assert all(found["bytes"] > 0 for found in would["expired"])
    assert would["dropped"] == []
    assert "audit_log_1999_12" in command("prune", "--dry-run").stdout
    unsure = command("prune")
    assert unsure.returncode == 1
    assert "nothing was dropped" in unsure.stderr
    assert run_sql(fresh_database, "select count(*) from mcp.audit_log") == "3"

    longer = {"DEVMESH_PARTITION_MONTHS_KEPT_BY_TABLE": "audit_log=999"}
    assert answer(command("prune", "--yes", "--json", **longer))["dropped"] == []
    assert answer(command("prune", "--yes", "--json"))["dropped"] == ["audit_log_1999_12", "audit_log_2001_02"]
    assert run_sql(fresh_database, "select count(*) from mcp.audit_log") == "1"
    assert command("prune").stdout == "nothing is older than what is kept\n"


def test_rows_that_no_month_can_hold_are_named(command: Command, fresh_database: str) -> None:
    run_sql(fresh_database, INSERT.format(at="'-infinity'"))
    done = command("drain-default")
    assert done.returncode == 1
    assert "rows are left that belong to no month between the years 1 and 9999: audit_log" in done.stderr
    assert run_sql(fresh_database, "select count(*) from mcp.audit_log") == "1"


def test_help_says_what_is_lost(command: Command) -> None:
    said = " ".join(command("prune", "--help").stdout.split())
    assert "lost for good" in said
    assert "recovered: false" in said


def test_what_keeps_it_from_working_is_said_with_its_exit_code(tmp_path: Path, empty_database: str) -> None:
    assert devmesh(tmp_path, "partitions", "status").returncode == 2
    nowhere = {"DATABASE_DSN": "postgresql://nobody@127.0.0.1:1/none"}
    assert devmesh(tmp_path, "partitions", "status", settings=nowhere).returncode == 3
    empty = devmesh(tmp_path, "partitions", "ensure", settings={"DATABASE_DSN": empty_database})
    assert empty.returncode == 1
    assert "devmesh migrate" in empty.stderr
    wrong = {"DATABASE_DSN": empty_database, "DEVMESH_PARTITION_CRON": "often"}
    assert devmesh(tmp_path, "partitions", "status", settings=wrong).returncode == 2
