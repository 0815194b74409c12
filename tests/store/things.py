"""A table of things, and what tests of the database do with it."""

from __future__ import annotations

from devmesh.store.database import Database
from devmesh.store.statements import Statement


def sql(text: str) -> Statement:
    return Statement("test.statement", text, "For a test.")


INSERT = sql("insert into things (name, amount) values ($1, $2)")
PUT = sql("insert into things (name, amount) values ($1, $2::integer)")
AMOUNT = sql("select amount from things where name = $1")
ADD = sql("update things set amount = amount + $2 where name = $1")
ADD_ONE = sql("update things set amount = amount + 1 where name = $1")
NAMES = sql("select name from things order by name")


async def names(database: Database) -> list[str]:
    return [row["name"] for row in await database.read(NAMES)]
