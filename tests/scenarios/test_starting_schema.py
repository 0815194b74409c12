"""S4 to S9 and S14: a schema that is half-way, broken, newer, edited or elsewhere, seen from services that start and run."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from devmesh.store.catalogue import SQL
from tests.cli.commands import answer, devmesh
from tests.conftest import PSQL, run_sql
from tests.fleet import Agent
from tests.harness import Child, Mesh, eventually, wait_until
from tests.trees import Tree
from tests.wire import WireError

MakeMesh = Callable[..., Mesh]
PIECES = f"begin; {SQL.look_from_nowhere.text} {SQL.pieces.text} commit;"
QUICK_LOOKS = {"DEVMESH_SCHEMA_CHECK_INTERVAL_S": "0.2"}


def ask(child: Child, path: str) -> Any:
    """What a service answers; nothing, while it does not."""
    try:
        return httpx.get(f"http://127.0.0.1:{child.port}{path}", timeout=5.0, trust_env=False).json()
    except httpx.HTTPError:
        return {}


def reasons(child: Child) -> str:
    return "; ".join(ask(child, "/readyz").get("reasons", []))


def wait_for_reason(child: Child, *parts: str) -> None:
    wait_until(
        lambda: all(part in reasons(child) for part in parts),
        f"{child.service} says {parts}, not {reasons(child)!r}; its log: {child.tail()}",
        60.0,
    )


@contextmanager
def holding(dsn: str, lock: str) -> Iterator[None]:
    """A session that keeps a lock."""
    session = subprocess.Popen([str(PSQL), dsn, "-X", "-q"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert session.stdin is not None
    assert session.stdout is not None
    session.stdin.write(f"begin; {lock};\n\\echo held\n")
    session.stdin.flush()
    assert session.stdout.readline() == "held\n"
    try:
        yield
    finally:
        session.communicate()


def tree_with(directory: Path, up: str, down: str) -> tuple[Tree, str]:
    """A program that has one more migration, and that migration's label."""
    tree = Tree(directory)
    return tree, tree.write(tree.newest + 1, "wrong", up, down)


HALF_WAY = {
    "in a transaction": ("create table mcp.half (id bigint);\nselect 1 / 0;\n", "drop table mcp.half;\n"),
    "without a transaction": (
        "-- transaction: none\ncreate index concurrently half on mcp.tasks (title);\nselect 1 / 0;\n",
        "-- transaction: none\ndrop index concurrently if exists mcp.half;\n",
    ),
}


@pytest.mark.parametrize("sort", ["in a transaction", pytest.param("without a transaction", marks=pytest.mark.soak)])
def test_s4_a_migration_that_fails_half_way_is_told_everywhere_until_it_is_repaired(
    empty_database: str, tmp_path: Path, mesh_on: MakeMesh, sort: str
) -> None:
    up, down = HALF_WAY[sort]
    tree, label = tree_with(tmp_path, up, down)
    settings = {**tree.settings, "DATABASE_DSN": empty_database}
    mesh = mesh_on(empty_database, **tree.settings)
    children = [mesh.add(service) for service in ("rest-api", "mcp-server")]
    for child in children:
        child.start()
    for child in children:
        wait_for_reason(child, f"{label} is dirty, it failed: division by zero", "devmesh migrate repair")
        wait_until(lambda: label in str(ask(child, "/health")["migrations"]["problems"]), "its health says so")  # noqa: B023
        health = ask(child, "/health")
        assert (health["status"], health["migrations"]["ready"]) == ("unhealthy", False)
    refused = httpx.get(f"{mesh.rest_url}/api/v1/tasks", trust_env=False)
    assert (refused.status_code, refused.json()["kind"]) == (503, "unavailable")
    status = devmesh(tmp_path, "migrate", "status", "--json", settings=settings)
    assert status.returncode == 1
    assert f"{label} is dirty, it failed: division by zero" in status.stderr
    assert json.loads(status.stdout)[-1]["state"] == "dirty"
    mesh.end()

    shown = devmesh(tmp_path, "migrate", "repair", settings=settings)
    assert shown.returncode == 1
    assert label in shown.stdout
    assert "nothing was repaired" in shown.stderr
    assert run_sql(empty_database, "select count(*) from mcp.schema_migrations where state = 'dirty'") == "1"
    tree.write(tree.newest, "wrong", up.replace("1 / 0", "1"), down)
    repaired = answer(tmp_path, "migrate", "repair", "--yes", "--json", settings=settings)
    assert repaired["repaired"] == [label]
    for child in children:
        child.start()
    for child in children:
        child.wait_ready()
    assert run_sql(empty_database, "select count(*) from pg_class where relname = 'half'") == "1"


def test_s4_migrations_fail_fast_ends_every_service(empty_database: str, tmp_path: Path, mesh_on: MakeMesh) -> None:
    tree, label = tree_with(tmp_path, *HALF_WAY["in a transaction"])
    mesh = mesh_on(empty_database, **tree.settings, MIGRATIONS_FAIL_FAST="true")
    for service in ("rest-api", "mcp-server"):
        child = mesh.add(service)
        child.start()
        assert child.wait(20.0) == 1
        assert f"{label} is dirty" in child.tail() or f"{label}.up.sql failed" in child.tail()


def test_skip_migrations_leaves_them_to_somebody_else(empty_database: str, tmp_path: Path, mesh_on: MakeMesh) -> None:
    mesh = mesh_on(empty_database, SKIP_MIGRATIONS="true")
    child = mesh.add("rest-api")
    child.start()
    wait_for_reason(child, "000001_foundation is pending")
    assert run_sql(empty_database, "select to_regnamespace('mcp') is null") == "t"
    assert devmesh(tmp_path, "migrate", settings={"DATABASE_DSN": empty_database}).returncode == 0
    child.wait_ready()


async def test_s5_a_piece_that_is_dropped_is_named_with_its_sql_and_comes_back_without_a_restart(
    empty_database: str, mesh_on: MakeMesh
) -> None:
    mesh = mesh_on(empty_database, **QUICK_LOOKS)
    mesh.start("rest-api", "mcp-server", "worker")
    async with await Agent.join(mesh, mesh.admin_key, "one", concurrency=10) as agent:
        await agent.wire.call("task.create", title="before", assign="pull")
        run_sql(empty_database, "alter table mcp.tasks drop column lane; drop table mcp.task_delegations")
        with pytest.raises(WireError) as caught:
            await agent.wire.call("task.claim")
        assert (caught.value.kind, caught.value.data["retryable"]) == ("unavailable", True)
        for child in mesh.children:
            wait_for_reason(
                child,
                "column mcp.tasks.lane is missing; to mend it: alter table mcp.tasks add column",
                "table mcp.task_delegations is missing; to mend it: create table",
            )
            assert ask(child, "/health")["components"]["schema"]["status"] == "unhealthy"
            assert ask(child, "/healthz") == {"status": "alive"}
        found = ask(mesh.children[0], "/health?details=true")["details"]["schema"]
        assert {piece["name"] for piece in found} == {
            "mcp.tasks.lane",
            "mcp.tasks_waiting",
            "mcp.task_delegations",
        }
        run_sql(empty_database, "\n".join(piece["sql"] for piece in found))
        for child in mesh.children:
            await eventually(child.is_ready, "the service recovers by itself")
        created = await agent.wire.call("task.create", title="after", assign="pull")
        tasks = (await agent.wire.call("task.claim", limit=10))["tasks"]
        assert [task["title"] for task in tasks] == ["before", "after"]
        done = await agent.wire.call(
            "task.complete", task_id=created["task"]["id"], attempt=tasks[1]["attempt"], result=1
        )
        assert done["task"]["status"] == "completed"


def test_s5_a_service_that_starts_on_a_broken_schema_waits_for_it_to_be_mended(
    empty_database: str, mesh_on: MakeMesh
) -> None:
    mesh = mesh_on(empty_database, **QUICK_LOOKS)
    mesh.start("rest-api")
    run_sql(empty_database, "alter table mcp.tasks alter column priority drop default")
    wait_for_reason(mesh.children[0], "column mcp.tasks.priority is different: default is none, not `3`")
    child = mesh.add("mcp-server")
    child.start()
    wait_for_reason(child, "alter table mcp.tasks alter column priority set default 3;")
    run_sql(empty_database, "alter table mcp.tasks alter column priority set default 3")
    for each in mesh.children:
        each.wait_ready()


def test_s5_what_is_there_besides_warns_and_no_more(empty_database: str, mesh_on: MakeMesh) -> None:
    mesh = mesh_on(empty_database, **QUICK_LOOKS)
    mesh.start("rest-api")
    run_sql(empty_database, "create table mcp.notes (id bigint)")
    [child] = mesh.children
    wait_until(lambda: ask(child, "/health")["components"]["schema"]["status"] == "degraded", "the warning")
    health = ask(child, "/health")
    assert (health["ready"], health["status"]) == (True, "degraded")
    assert "table mcp.notes is of no migration" in health["components"]["schema"]["message"]
    run_sql(empty_database, "drop table mcp.notes")
    wait_until(lambda: ask(child, "/health")["status"] == "healthy", "the warning's end")


def test_a_migration_that_becomes_dirty_while_services_run_is_told(empty_database: str, mesh_on: MakeMesh) -> None:
    mesh = mesh_on(empty_database, **QUICK_LOOKS)
    mesh.start("rest-api")
    [child] = mesh.children
    run_sql(empty_database, "update mcp.schema_migrations set state = 'dirty' where version = 1")
    wait_for_reason(child, "migrations: 000001_foundation is dirty, it was begun and not finished")
    wait_until(lambda: "000001_foundation" in str(ask(child, "/health")["migrations"]["problems"]), "it is listed")
    run_sql(empty_database, "update mcp.schema_migrations set state = 'applied' where version = 1")
    child.wait_ready()


NEWER = """
insert into mcp.schema_migrations (version, name, state, checksum, started_at, program_version)
values (999999, 'far_ahead', 'applied', '', now(), '7.0')
"""


def test_s6_a_database_newer_than_the_program_is_refused_with_both_versions(
    empty_database: str, tmp_path: Path, mesh_on: MakeMesh
) -> None:
    settings = {"DATABASE_DSN": empty_database}
    assert devmesh(tmp_path, "migrate", settings=settings).returncode == 0
    newest = Tree(tmp_path).newest
    run_sql(empty_database, NEWER)
    said = ("version 999999 (999999_far_ahead, made by devmesh 7.0)", f"which knows versions up to {newest}")
    mesh = mesh_on(empty_database)
    children = [mesh.add(service) for service in ("rest-api", "mcp-server", "worker")]
    for child in children:
        child.start()
    for child in children:
        wait_for_reason(child, *said)
    for command in (["up"], ["down", "1"], ["repair", "--yes"]):
        refused = devmesh(tmp_path, "migrate", *command, settings=settings)
        assert refused.returncode == 1, command
        assert all(part in refused.stderr for part in said), refused.stderr


def test_s7_an_applied_migration_whose_file_was_edited_is_refused(
    empty_database: str, tmp_path: Path, mesh_on: MakeMesh
) -> None:
    assert devmesh(tmp_path, "migrate", settings={"DATABASE_DSN": empty_database}).returncode == 0
    tree = Tree(tmp_path)
    edited = next(tree.migrations.glob("000001_*.up.sql"))
    edited.write_text(edited.read_text() + "create table mcp.sneaked_in (id bigint);\n")
    mesh = mesh_on(empty_database, **tree.settings)
    for service in ("rest-api", "mcp-server"):
        child = mesh.add(service)
        child.start()
        wait_for_reason(child, "000001_foundation was edited after it was applied")
    refused = devmesh(tmp_path, "migrate", settings={**tree.settings, "DATABASE_DSN": empty_database})
    assert (refused.returncode, "put it back and write a new migration" in refused.stderr) == (1, True)
    assert run_sql(empty_database, "select to_regclass('mcp.sneaked_in') is null") == "t"


def test_s8_up_down_up_gives_the_same_catalogue(empty_database: str, tmp_path: Path) -> None:
    settings = {"DATABASE_DSN": empty_database}
    count = len(answer(tmp_path, "migrate", "up", "--json", settings=settings)["applied"])
    whole = run_sql(empty_database, PIECES)
    for steps in (1, count):
        taken_back = answer(tmp_path, "migrate", "down", str(steps), "--json", settings=settings)["taken_back"]
        assert len(taken_back) == steps
        assert len(answer(tmp_path, "migrate", "up", "--json", settings=settings)["applied"]) == steps
        assert run_sql(empty_database, PIECES) == whole


GATED = {
    "in a transaction": (
        "-- works with: 000001\nalter table mcp.tenants add column gated text;\n",
        "alter table mcp.tenants drop column gated;\n",
        "select count(*) from pg_attribute where attname = 'gated' and attrelid = 'mcp.tenants'::regclass",
    ),
    "without a transaction": (
        """-- transaction: none
           create index concurrently gated on mcp.tenants (status);
           create index concurrently gated_too on mcp.tenants (status, name);""",
        """-- transaction: none
           drop index concurrently if exists mcp.gated;
           drop index concurrently if exists mcp.gated_too;""",
        """select count(*) - 1 from pg_index i join pg_class c on c.oid = i.indexrelid
           where relname in ('gated', 'gated_too') and indisvalid""",
    ),
}
IS_WAITING = """
select count(*) from pg_stat_activity
where application_name = 'devmesh migrate' and wait_event_type = 'Lock' and datname = current_database()
"""


@pytest.mark.parametrize("sort", ["in a transaction", pytest.param("without a transaction", marks=pytest.mark.soak)])
def test_s9_a_service_killed_while_it_migrates_leaves_what_the_next_start_brings_to_ready(
    empty_database: str, tmp_path: Path, mesh_on: MakeMesh, sort: str
) -> None:
    up, down, is_there = GATED[sort]
    assert devmesh(tmp_path, "migrate", settings={"DATABASE_DSN": empty_database}).returncode == 0
    tree, label = tree_with(tmp_path, up, down)
    mesh = mesh_on(empty_database, **tree.settings)
    killed = mesh.add("rest-api")
    with holding(empty_database, "lock table mcp.tenants in share update exclusive mode"):
        killed.start()
        wait_until(lambda: run_sql(empty_database, IS_WAITING) == "1", "the migration waits in its midst", 20.0)
        wait_until(lambda: ask(killed, "/health")["migrations"]["in_progress"], "health says that it migrates")
        killed.signal(signal.SIGKILL)
        killed.wait()
    again = mesh.add("rest-api")
    again.start()
    again.wait_ready()
    assert run_sql(empty_database, is_there) == "1"
    assert run_sql(empty_database, f"select state from mcp.schema_migrations where name = '{label[7:]}'") == "applied"
    assert ask(again, "/health")["migrations"]["in_progress"] is False


async def test_s14_a_search_path_without_mcp_works(empty_database: str, mesh_on: MakeMesh) -> None:
    mesh = mesh_on(empty_database, DATABASE_SEARCH_PATH="public")
    mesh.start("rest-api", "mcp-server", "worker")
    async with await Agent.join(mesh, mesh.admin_key, "one", "sums") as agent:
        await agent.wire.call("task.create", title="a sum", required_capabilities=["sums"])
        task = await agent.next_task()
        done = await agent.wire.call("task.complete", task_id=task["id"], attempt=task["attempt"], result=2)
        assert done["task"]["status"] == "completed"
        await agent.wire.call("context.store", type="sums", text="a sum", vector=[1.0, 2.0])
        found = await agent.wire.call("context.search", vector=[1.0, 2.0])
        assert (found["by"], len(found["results"])) == ("vector", 1), "though the extension is in mcp"
    for child in mesh.children:
        components = ask(child, "/health")["components"]
        assert (components["schema"]["status"], components["vectors"]["status"]) == ("healthy", "healthy")
