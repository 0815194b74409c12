"""The previous release's services keep working while the next one migrates the database under them, and start anew on it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from devmesh.core.keys import new_key
from tests.cli.commands import answer, devmesh
from tests.conftest import run_sql
from tests.fleet import Agent
from tests.harness import Child, Mesh, eventually
from tests.scenarios.test_starting_schema import QUICK_LOOKS, ask, wait_for_reason
from tests.trees import Tree, check_out, commit_before_newest_migration
from tests.wire import WireError

MakeMesh = Callable[..., Mesh]
SERVICES = ("rest-api", "mcp-server", "worker")
AT_ONCE = 8  # callers

# What a release may do to a schema that others still work on: add, widen, replace what keeps its meaning.
EXPANDS = """-- Moods.
-- works with: {before:06d}
alter table mcp.tasks add column mood text not null default 'calm';
alter table mcp.tasks drop constraint tasks_strategy_check;
create table mcp.moods (tenant_id uuid primary key, mood text);
create index moods_by_mood on mcp.moods (mood);
create or replace view mcp.task_rows as {task_rows}
create or replace function mcp.task_mood() returns text language sql as 'select ''calm''';
"""
EXPANDS_BACK = """
drop function mcp.task_mood();
drop table mcp.moods;
alter table mcp.tasks drop column mood;
alter table mcp.tasks add constraint tasks_strategy_check
    check (strategy in ('least_loaded', 'round_robin', 'best_match', 'performance'));
"""
INDEXES = """-- works with: {before:06d}
-- transaction: none
create index concurrently tasks_by_mood on mcp.tasks (tenant_id, mood);
"""
INDEXES_BACK = "-- transaction: none\ndrop index concurrently if exists mcp.tasks_by_mood;\n"


class Load:
    """Callers who create, claim and complete tasks, one after the other, without a pause."""

    def __init__(self, agent: Agent) -> None:
        self._agent, self.done, self.failures = agent, 0, list[str]()
        self._is_ending = False

    async def run(self) -> None:
        await asyncio.gather(*(self._call() for _ in range(AT_ONCE)))

    def end(self) -> None:
        self._is_ending = True

    async def _call(self) -> None:
        wire = self._agent.wire
        while not self._is_ending:
            try:
                await wire.call("task.create", title="work", assign="pull")
                for task in (await wire.call("task.claim", limit=AT_ONCE))["tasks"]:
                    await wire.call("task.complete", task_id=task["id"], attempt=task["attempt"], result=1)
                    self.done += 1
            except WireError as error:
                self.failures.append(str(error))


@asynccontextmanager
async def loaded(mesh: Mesh, name: str) -> AsyncIterator[Load]:
    """Load while the block runs. None of it may fail."""
    async with await Agent.join(mesh, mesh.admin_key, name, concurrency=1000) as agent:
        load = Load(agent)
        running = asyncio.create_task(load.run())
        await eventually(lambda: load.done >= AT_ONCE, "the load runs")
        try:
            yield load
            seen = load.done
            await eventually(lambda: load.done >= seen + AT_ONCE, "the load goes on")
        finally:
            load.end()
            await running
    assert load.failures == []


def next_release(directory: Path, dsn: str) -> Tree:
    """A program with two more migrations that only add."""
    tree = Tree(directory)
    before = tree.newest
    task_rows = run_sql(dsn, "select pg_get_viewdef('mcp.task_rows')")
    tree.write(before + 1, "moods", EXPANDS.format(before=before, task_rows=task_rows), EXPANDS_BACK)
    tree.write(before + 2, "moods_index", INDEXES.format(before=before), INDEXES_BACK)
    return tree


async def migrate(directory: Path, dsn: str, settings: dict[str, str]) -> list[str]:
    given = {**settings, "DATABASE_DSN": dsn}
    applied: list[str] = (await asyncio.to_thread(answer, directory, "migrate", "up", "--json", settings=given))[
        "applied"
    ]
    return applied


def key_in(dsn: str) -> str:
    """An administrator's key, made with what a schema has had from the first: the harness knows this program's only."""
    key = new_key()
    run_sql(
        dsn,
        f"""with t as (insert into mcp.tenants (tenant_id, name) values (gen_random_uuid(), 'default') returning tenant_id)
            insert into mcp.api_keys (tenant_id, key_id, owner_id, prefix, key_hash, kind, scopes)
            select tenant_id, tenant_id, tenant_id, '{key.prefix}', decode('{key.key_hash.hex()}', 'hex'), 'admin',
                   '{{read,write,agent,worker,admin}}' from t""",
    )
    return key.secret


def sees(child: Child, newer: list[str]) -> bool:
    return bool(ask(child, "/health")["migrations"]["newer"] == newer)


async def test_services_work_while_the_next_release_migrates_under_them_and_start_anew_on_it(
    empty_database: str, tmp_path: Path, mesh_on: MakeMesh
) -> None:
    mesh = mesh_on(empty_database, **QUICK_LOOKS)
    await asyncio.to_thread(mesh.start, *SERVICES)
    tree = next_release(tmp_path, empty_database)
    async with loaded(mesh, "before"):
        assert len(await migrate(tmp_path, empty_database, tree.settings)) == 2
        newer = [f"{tree.newest - 1:06d}_moods", f"{tree.newest:06d}_moods_index"]
        for child in mesh.children:
            await eventually(functools.partial(sees, child, newer), "it sees the newer ones")
            assert ask(child, "/health")["status"] == "healthy", ask(child, "/health")
    for child in mesh.children:
        child.kill()
        child.start()
    for child in mesh.children:
        await asyncio.to_thread(child.wait_ready)
        assert "made by devmesh" in ask(child, "/health")["components"]["migrations"]["message"]
    async with loaded(mesh, "after"):
        pass
    settings = {"DATABASE_DSN": empty_database}
    states = [each["state"] for each in answer(tmp_path, "migrate", "status", "--json", settings=settings)]
    assert states[-3:] == ["applied", "newer", "newer"]
    refused = devmesh(tmp_path, "migrate", "down", "1", settings=settings)
    assert (refused.returncode, "newer than this program" in refused.stderr) == (1, True)


@pytest.mark.soak
async def test_a_migration_that_takes_away_what_services_need_is_told_by_them(
    empty_database: str, tmp_path: Path, mesh_on: MakeMesh
) -> None:
    """Contracting before the last of the older programs is gone: they must not go on as if nothing were."""
    mesh = mesh_on(empty_database, **QUICK_LOOKS)
    await asyncio.to_thread(mesh.start, "rest-api")
    tree = Tree(tmp_path)
    tree.write(tree.newest + 1, "contract", "alter table mcp.tasks drop column progress cascade;\n")
    await migrate(tmp_path, empty_database, tree.settings)
    await asyncio.to_thread(
        wait_for_reason, mesh.children[0], f"{tree.newest:06d}_contract", f"knows versions up to {tree.newest - 1}"
    )


async def test_the_program_before_the_newest_migration_works_on_the_schema_with_it(
    empty_database: str, tmp_path: Path, mesh_on: MakeMesh
) -> None:
    commit = commit_before_newest_migration()
    if not commit:
        pytest.skip(
            "the commit before the newest migration is not here: no full clone, or the migration is not committed"
        )
    previous = check_out(commit, tmp_path / "previous")
    assert await migrate(tmp_path, empty_database, previous.settings)
    mesh = mesh_on(empty_database, **QUICK_LOOKS, **previous.settings)
    mesh.admin_key = key_in(empty_database)
    await asyncio.to_thread(mesh.start, *SERVICES)
    async with loaded(mesh, "before"):
        assert await migrate(tmp_path, empty_database, {})
    for child in mesh.children:
        child.kill()
        child.start()
    for child in mesh.children:
        await asyncio.to_thread(child.wait_ready)
    async with loaded(mesh, "after"):
        pass
