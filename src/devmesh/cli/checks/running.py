"""Does the checks in their order: each within a time limit, and none whose ground another has found missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from devmesh.cli.checks import machine, outside, schema, secrets, server, services
from devmesh.cli.checks.case import CHECK_LIMIT_S, Case
from devmesh.cli.checks.finding import Finding, State, problem
from devmesh.core.errors import MeshError
from devmesh.store.connections import DatabaseUnreachable
from devmesh.store.migration_files import MigrationError


class Check(NamedTuple):
    name: str
    look: Callable[[Case], Awaitable[list[Finding]]]
    needs: str = ""  # the check without whose success this one cannot be done
    without: str = ""  # what is said of others when this one finds a problem


DATABASE, MIGRATIONS = "database", "migrations"
CHECKS = (
    Check("settings", machine.settings),
    Check("data directory", machine.data_directory),
    Check("open files", machine.file_limit),
    Check("master key", secrets.master_key),
    Check("redis", outside.redis_server),
    Check("contexts", outside.contexts),
    Check("token keys", outside.token_keys),
    Check("ports", services.ports),
    Check("rest-api", services.rest_api),
    Check("mcp-server", services.mcp_server),
    Check("worker", services.worker),
    Check(DATABASE, server.database, without="the database cannot be reached"),
    Check("version", server.version, DATABASE),
    Check("pgvector", server.vectors, DATABASE),
    Check("writes", server.writes, DATABASE),
    Check("rights", server.rights, DATABASE),
    Check("connections", server.connections, DATABASE),
    Check("clock", server.clock, DATABASE),
    Check("durability", server.durability, DATABASE),
    Check("long transactions", server.long_transactions, DATABASE),
    Check("transaction ids", server.transaction_ids, DATABASE),
    Check(MIGRATIONS, schema.migrations, DATABASE, without="the schema is not complete"),
    Check("drift", schema.drift, MIGRATIONS),
    Check("statements", schema.statements, MIGRATIONS),
    Check("partitions", schema.partitions, MIGRATIONS),
    Check("encryption", secrets.encryption, MIGRATIONS),
    Check("tenants", schema.administrators, MIGRATIONS),
    Check("lock-outs", schema.locked_out, MIGRATIONS),
)


class Line(NamedTuple):
    """One line of the screen."""

    check: str
    finding: Finding


async def examine(case: Case) -> AsyncIterator[Line]:
    """Every finding, as soon as there is one. What a check cannot do is its finding; nothing is raised."""
    missing: dict[str, str] = {}  # why what a check establishes is not there, by its name
    for check in CHECKS:
        if check.needs in missing:
            missing[check.name] = missing[check.needs]
            yield Line(check.name, Finding(State.SKIPPED, f"not looked at: {missing[check.needs]}"))
            continue
        findings, is_answered = await _look(check, case)
        if any(finding.state is State.PROBLEM for finding in findings):
            missing[check.name] = check.without
        if not is_answered:
            missing |= dict.fromkeys((DATABASE, MIGRATIONS), "the database has fallen silent")
        for state, found, advice in findings:
            yield Line(check.name, Finding(state, case.masked(found), tuple(map(case.masked, advice))))


async def _look(check: Check, case: Case) -> tuple[list[Finding], bool]:
    """What a check finds, and whether it makes sense to ask the database for more."""
    try:
        async with asyncio.timeout(CHECK_LIMIT_S) as case.deadline:
            return await check.look(case), True
    except TimeoutError:
        found = problem(f"no answer within {CHECK_LIMIT_S:g} s")
    except MeshError as error:
        found = problem(_words(error.__cause__ or error))
    except (DatabaseUnreachable, MigrationError) as error:
        found = problem(_words(error))
    return [found], not check.needs or await case.is_answered()


def _words(error: BaseException) -> str:
    """The first line of what an error says: PostgreSQL adds details below it."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error).partition("\n")[0] or type(error).__name__
