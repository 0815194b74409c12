"""What needs no mesh: help, migrations, settings, and the pages that must not go out of date."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from devmesh.cli.docs import pages
from tests.cli.commands import answer, devmesh


def test_help_names_every_command_and_what_exit_codes_mean(tmp_path: Path) -> None:
    shown = devmesh(tmp_path, "--help").stdout
    for command in ("up", "rest-api", "mcp-server", "worker", "migrate", "call", "watch", "keys", "tenants"):
        assert f"│ {command} " in shown
    assert "3 the mesh or its database cannot be reached" in " ".join(shown.split())


def test_help_loads_neither_the_driver_nor_the_server() -> None:
    code = "import sys, devmesh.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True).stdout
    assert not {"asyncpg", "starlette", "uvicorn", "httpx", "rich.console"} & set(loaded.split())


def test_migrations_go_up_and_down_and_say_how_they_are(tmp_path: Path, empty_database: str) -> None:
    def migrate(*arguments: str) -> object:
        return answer(tmp_path, "migrate", *arguments, "--json", settings={"DATABASE_DSN": empty_database})

    pending = migrate("status")
    assert isinstance(pending, list)
    assert {status["state"] for status in pending} == {"pending"}
    names = [f"{status['version']:06d}_{status['name']}" for status in pending]
    assert migrate("up") == {"applied": names}
    assert migrate("up") == {"applied": []}
    assert "applied" in devmesh(tmp_path, "migrate", "status", settings={"DATABASE_DSN": empty_database}).stdout
    assert migrate("down", str(len(names))) == {"taken_back": names[::-1]}
    again = devmesh(tmp_path, "migrate", settings={"DATABASE_DSN": empty_database})
    assert again.stdout.splitlines() == [f"applied {name}" for name in names]


def test_migrations_say_what_is_wrong_with_their_exit_code(tmp_path: Path, empty_database: str) -> None:
    assert devmesh(tmp_path, "migrate", "down", "0", settings={"DATABASE_DSN": empty_database}).returncode == 2
    assert devmesh(tmp_path, "migrate", "status").returncode == 2
    nowhere = devmesh(tmp_path, "migrate", settings={"DATABASE_DSN": "postgresql://nobody@127.0.0.1:1/none"})
    assert nowhere.returncode == 3
    assert "cannot reach the database" in nowhere.stderr


def test_settings_show_their_source_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DEVMESH_LOG_LEVEL=warning\nDEVMESH_API_KEY=dm_secret\nDEVMESH_LOG_LEVLE=x\n")
    done = devmesh(tmp_path, "settings", "--json")
    assert "dm_secret" not in done.stdout
    assert "did you mean DEVMESH_LOG_LEVEL?" in done.stderr
    shown = {item["name"]: item for item in answer(tmp_path, "settings", "--json")}
    assert (shown["DEVMESH_LOG_LEVEL"]["value"], shown["DEVMESH_LOG_LEVEL"]["source"]) == ("warning", ".env")


def test_operations_are_listed_and_described_without_a_mesh(tmp_path: Path) -> None:
    listed = devmesh(tmp_path, "call", "--list").stdout
    assert "task.create " in listed
    described = answer(tmp_path, "call", "task.create", "--describe", "--json")
    title = next(field for field in described["parameters"] if field["name"] == "title")
    assert title["default"] is None
    assert title["shape"].startswith("text (1 to 200 characters")


def test_pages_are_always_the_same_and_a_stale_one_is_named(tmp_path: Path) -> None:
    assert pages() == pages()
    assert devmesh(tmp_path, "docs").returncode == 0
    assert devmesh(tmp_path, "docs", "--check").returncode == 0
    (tmp_path / "docs" / "metrics.md").write_text("by hand")
    stale = devmesh(tmp_path, "docs", "--check")
    assert stale.returncode == 1
    assert "docs/metrics.md" in stale.stderr
    assert "settings.md" not in stale.stderr


def test_every_reference_page_describes_every_operation_event_and_error() -> None:
    from devmesh.core.errors import Kind
    from devmesh.core.events import TYPES
    from devmesh.operations.registry import REGISTRY

    page = pages()["protocol.md"]
    for name in [*REGISTRY, *TYPES, *Kind]:
        assert f"`{name}`" in page
    assert time.strftime("%Y") not in page  # nothing that changes by itself


def test_the_protocol_page_says_of_jobs_what_they_answer() -> None:
    page = pages()["protocol.md"]
    for reason in (
        "job.stale_attempt", "job.cycle", "job.parent_failed", "job.children_max", "snapshot.no_base", "job.unique_key",
    ):  # fmt: skip
        assert f"\n| `{reason}` |" in page
    assert "| `context.no_embedder` | this server makes no vectors" in page
    rows = [line for line in page.splitlines() if line.startswith("| `") and " | " in line]
    reasons = rows[rows.index(next(row for row in rows if "`agent.deregistered` | the agent that this key" in row)) :]
    assert len([row for row in reasons if row.startswith("| `schedule.name`")]) == 1
    schedule = page.partition("\n### `schedule.create`\n")[2].partition("\n### ")[0]
    assert "`conflict`, `quota_exceeded`" in schedule
    search = page.partition("\n### `context.search`\n")[2].partition("\n### ")[0]
    assert "May also answer `conflict`" in search
    lease = page.partition("\n### JobLease\n")[2].partition("\n### ")[0]
    assert "| `is_cancel_requested` |" in lease
    assert "| `lease_until` |" in lease
    for name in ("job.enqueue", "job.enqueue_many", "job.complete"):
        section = page.partition(f"\n### `{name}`\n")[2].partition("\n### ")[0]
        assert "May also answer `not_found`" in section
