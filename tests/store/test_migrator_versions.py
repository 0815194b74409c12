"""A database that another version of the program has migrated: refused, or served and left alone, and told either way."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.store.migrations import connected, refusal, rows, states, write

from devmesh.store import migration_states
from devmesh.store.migrator import Migrator


@pytest.mark.asyncio
async def test_a_newer_database_is_refused_with_both_versions(empty_database: str, directory: Path) -> None:
    await Migrator(empty_database, directory=directory, program_version="2.0").up()
    for direction in ("up", "down"):
        (directory / f"000003_index.{direction}.sql").unlink()
    older = Migrator(empty_database, directory=directory, program_version="1.0")
    assert await states(older) == ["1 applied", "2 applied", "3 unknown"]
    for action in (older.up, older.verify, lambda: older.down(1), lambda: older.wait_for_schema(5, 1, print)):
        message = await refusal(action)
        assert "version 3 (000003_index, made by devmesh 2.0)" in message
        assert "this program (devmesh 1.0), which knows versions up to 2" in message


@pytest.mark.asyncio
async def test_a_newer_database_that_works_with_the_program_is_served_and_never_changed(
    empty_database: str, directory: Path
) -> None:
    write(directory, 4, "adds", "-- Adds.\n-- works with: 000003\nalter table mcp.things add column added text;\n")
    write(directory, 5, "adds_more", "-- works with: 000002\nalter table mcp.things add column also text;\n")
    await Migrator(empty_database, directory=directory, program_version="2.0").up()
    for file in (*directory.glob("00000[45]_*.sql"),):
        file.unlink()
    older = Migrator(empty_database, directory=directory, program_version="1.0")
    assert await states(older) == ["1 applied", "2 applied", "3 applied", "4 newer", "5 newer"]
    assert await older.up() == []
    await older.verify()
    await older.wait_for_schema(1, 1, print)
    for changing in (lambda: older.down(1), older.repair):
        message = await refusal(changing)
        assert "000004_adds was made by devmesh 2.0" in message
        assert "devmesh 1.0, which knows versions up to 3" in message
    assert len(await older.status()) == 5

    for file in directory.glob("000003_*.sql"):
        file.unlink()
    oldest = Migrator(empty_database, directory=directory, program_version="0.5")
    assert (await states(oldest))[2:] == ["3 unknown", "4 unknown", "5 newer"]
    for action in (oldest.up, oldest.verify):
        assert "version 3 (000003_index, made by devmesh 2.0) and is newer" in await refusal(action)


@pytest.mark.asyncio
async def test_a_newer_migration_that_failed_is_told_and_left_to_the_newer_program(
    empty_database: str, directory: Path
) -> None:
    write(directory, 4, "adds", "-- works with: 000003\nselect 1 / 0;\n")
    assert "is dirty" in await refusal(Migrator(empty_database, directory=directory, program_version="2.0").up)
    for file in directory.glob("000004_*.sql"):
        file.unlink()
    older = Migrator(empty_database, directory=directory, program_version="1.0")
    await older.verify()
    [told] = migration_states.newer(await older.status(), "1.0")
    assert "it is dirty, and that newer program has to mend it: it failed: division by zero" in told
    assert "that newer program has to mend it" in await refusal(older.repair)


@pytest.mark.asyncio
async def test_what_is_missing_below_a_newer_migration_is_not_made(empty_database: str, directory: Path) -> None:
    write(directory, 4, "adds", "-- works with: 000002\nselect 1;\n")
    await Migrator(empty_database, directory=directory).up()
    for file in directory.glob("000004_*.sql"):
        file.unlink()
    await rows(empty_database, "delete from mcp.schema_migrations where version = 3 returning 1")
    assert "000003_index is not applied, but later ones" in await refusal(
        Migrator(empty_database, directory=directory).up
    )


@pytest.mark.asyncio
async def test_a_table_of_migrations_that_an_earlier_program_made_is_read_and_brought_up_to_date(
    empty_database: str, directory: Path
) -> None:
    migrator = Migrator(empty_database, directory=directory)
    await migrator.up()
    async with connected(empty_database) as connection:
        await connection.execute("alter table mcp.schema_migrations drop column works_with")
    assert await states(migrator) == ["1 applied", "2 applied", "3 applied"]
    write(directory, 4, "adds", "-- works with: 000003\nselect 1;\n")
    await Migrator(empty_database, directory=directory).up()
    assert await rows(
        empty_database, "select works_with from mcp.schema_migrations where version > 2 order by version"
    ) == [
        (None,),
        (3,),
    ]
