"""The schema that the migrations make: whether all of it is there, unchanged, and whether the program fits it."""

from __future__ import annotations

from devmesh import __version__
from devmesh.cli.checks.case import Case
from devmesh.cli.checks.finding import Finding, note, ok, problem, warning
from devmesh.cli.checks.server import SERVER
from devmesh.store.inspection import Inspector
from devmesh.store.migration_states import State, newer, problems
from devmesh.store.migrator import Migrator
from devmesh.store.partitions import MONTHS_AHEAD_WANTED, report
from devmesh.store.statements import all_statements

LOCKED_OUT_SHOWN = 5
MENDING = {
    State.PENDING: "devmesh migrate",
    State.DIRTY: "devmesh migrate repair, then devmesh migrate",
    State.EDITED: "put the file back as it was released, and write a new migration",
    State.UNKNOWN: "run a program that is at least as new as the database",
}


async def migrations(case: Case) -> list[Finding]:
    """Whether every migration is applied, whole and unchanged."""
    statuses, is_migrating = await Migrator(case.dsn).look()
    found = []
    for status in statuses:
        if not status.is_served:
            words = "; ".join(problems([status], __version__)) or f"{status.label} is {status.state}"
            found.append(problem(words, MENDING[status.state]))
    if found:
        return [note("somebody is migrating at this moment: wait for that"), *found] if is_migrating else found
    applied = ok(f"{len(statuses)} applied, the last is {statuses[-1].label}")
    return [note(words) for words in newer(statuses, __version__)] or [applied]


async def drift(case: Case) -> list[Finding]:
    """Whether each piece of the schema is as the migrations make it."""
    look = await Inspector.of_this_program().look(case.database)
    if look.drift is None:
        if look.is_catalogue_stale:
            found = "cannot be told: the program's catalogue is not of its migrations"
            return [warning(found, "devmesh migrate catalogue --write")]
        return [note("cannot be told: somebody is migrating at this moment")]
    return [
        (problem if finding.is_problem else warning)(finding.sentence, *finding.sql.splitlines())
        for finding in look.drift.findings
    ] or [ok("the schema is as the migrations make it")]


async def statements(case: Case) -> list[Finding]:
    """Whether every statement of the program fits the schema."""
    every = all_statements()
    unfit = await case.database.unfit(every)
    return [problem(words, "devmesh doctor names above what the schema lacks") for words in unfit] or [
        ok(f"all {len(every)} fit")
    ]


async def partitions(case: Case) -> list[Finding]:
    """Whether growing tables have room for the months to come, and nothing outside of all months."""
    reports = await report(case.database)
    found = []
    for table in reports:
        if table.status != "healthy":
            ways = ["devmesh partitions ensure"] if table.months_ahead < MONTHS_AHEAD_WANTED else []
            ways += ["devmesh partitions drain-default"] if table.rows_in_default else []
            found.append((problem if table.status == "unhealthy" else warning)(table.message, *ways))
    return found or [ok(", ".join(f"{table.table} {table.months_ahead} months ahead" for table in reports))]


async def administrators(case: Case) -> list[Finding]:
    """Whether there is a tenant, and a key to administer one with."""
    [row] = await case.database.read(SERVER.administrators)
    if not row["keys"]:
        return [problem("no key administers the mesh: nobody can make another", "devmesh keys first")]
    return [ok(f"active tenants: {row['tenants']}, keys that administer one: {row['keys']}")]


async def locked_out(case: Case) -> list[Finding]:
    """Which addresses have sent so many wrong credentials that the good ones from there are refused as well."""
    rows = await case.database.read(SERVER.locked_out, LOCKED_OUT_SHOWN)
    return [
        note(
            f"whatever comes from {row['address']} is refused for {row['minutes']} min: too many wrong keys came from there",
            f"wait, or delete from mcp.auth_lockouts where address = '{row['address']}'",  # noqa: S608  nobody runs it
        )
        for row in rows
    ] or [ok("no address is locked out")]
