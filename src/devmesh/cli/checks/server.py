"""The PostgreSQL that DATABASE_DSN names: whether it can be reached, is what is needed, and is well."""

from __future__ import annotations

import asyncio
import time

from devmesh.cli.checks.case import Case
from devmesh.cli.checks.finding import Finding, note, ok, problem, warning
from devmesh.store.connections import DatabaseUnreachable, close_connection, open_connection
from devmesh.store.database import Database, Record
from devmesh.store.statements import load

SERVER, CLOCK = load("server"), load("schema_migrations")

CONNECT_LIMIT_S = 4.0
LOOK_LIMIT_S = 3.0  # for one statement
VERSION_MIN = 16
LATENCY_MS_HIGH = 50.0
SERVICES = 3
CONNECTIONS_BESIDE_POOL = 2  # of a service: it listens on one, and looks at the migrations on another now and then
CLOCK_S_HIGH, CLOCK_S_MAX = 1.0, 30.0
TRANSACTION_S_LONG = 600.0
IDS_HIGH, IDS_MAX = 600_000_000, 1_500_000_000  # PostgreSQL takes no writes from about 2,144,000,000 on


async def database(case: Case) -> list[Finding]:
    """Whether the database can be reached, and how long it takes to answer."""
    if case.settings.database_dsn is None:
        advice = (
            "devmesh up  (brings a PostgreSQL of its own)",
            "export DATABASE_DSN=postgresql://USER:PASSWORD@HOST/DB",
        )
        return [problem("DATABASE_DSN is not set, and no `devmesh up` has left one here", *advice)]
    try:
        async with asyncio.timeout(CONNECT_LIMIT_S):
            await close_connection(await open_connection(case.dsn, {"application_name": "devmesh doctor"}))
    except TimeoutError:
        return [_unreachable(case, f"no answer within {CONNECT_LIMIT_S:g} s", None)]
    except DatabaseUnreachable as error:
        return [_unreachable(case, str(error).partition("\n")[0], error.__cause__)]
    case.opened = await Database.open(
        case.dsn,
        service="devmesh doctor",
        pool_size_min=1,
        pool_size_max=1,
        transaction_deadline_s=LOOK_LIMIT_S,
        search_path=case.settings.database_search_path,
    )
    await case.database.read(CLOCK.now)  # prepares it
    began = time.perf_counter()
    await case.database.read(CLOCK.now)
    latency_ms = (time.perf_counter() - began) * 1000
    found = f"{_place(case)} answers in {latency_ms:.1f} ms"
    if latency_ms > LATENCY_MS_HIGH:
        return [
            warning(f"{found}; every request waits for several answers", "bring the services and the database together")
        ]
    return [ok(found)]


def _place(case: Case) -> str:
    setting = next(setting for setting in case.settings.describe() if setting.name == "DATABASE_DSN")
    return f"{setting.value} (from {setting.source})"


def _unreachable(case: Case, reason: str, cause: BaseException | None) -> Finding:
    return problem(f"{reason}: {_place(case)}", *_ways_to_reach(case, cause))


def _ways_to_reach(case: Case, cause: BaseException | None) -> list[str]:
    """What mends it, by what PostgreSQL or the system has said."""
    address = case.address
    if address is None:
        return ["correct DATABASE_DSN: in a password, @ : / ? # and % are written as %40 %3A %2F %3F %23 and %25"]
    user, name = address.username or "USER", address.path[1:] or "DATABASE"
    match getattr(cause, "sqlstate", None):
        case "28P01":
            return [f"correct the password in DATABASE_DSN, or: alter role {user} password '…';"]
        case "28000":
            return [
                f"create role {user} login password '…';",
                "or let it in: pg_hba.conf, then select pg_reload_conf();",
            ]
        case "3D000":
            return [f"create database {name} owner {user};"]
        case "53300":
            return [
                "end what needs no connection, or: alter system set max_connections = 200; (and restart PostgreSQL)"
            ]
        case "57P03":
            return ["wait: it is starting, stopping or recovering; its log says how far it is"]
    if case.settings.sources.get("database_dsn") == "dev.env":
        return ["devmesh up  (the database that it brings is not running)"]
    where = f"-h {address.hostname} -p {address.port or 5432}" if address.hostname else ""
    return ["start PostgreSQL, or correct DATABASE_DSN", f"pg_isready {where}".strip()]


async def version(case: Case) -> list[Finding]:
    """Whether PostgreSQL is new enough, and whether it has vectors."""
    row = await _row(case, "identity")
    if row["version_number"] < VERSION_MIN * 10_000:
        found = f"PostgreSQL {row['version']} is too old: DevMesh needs {VERSION_MIN} or newer"
        return [problem(found, "pg_upgrade to a newer one, or correct DATABASE_DSN")]
    return [ok(f"PostgreSQL {row['version']}")]


async def vectors(case: Case) -> list[Finding]:
    """Whether PostgreSQL compares vectors. Without that, contexts are found by their words."""
    row = await _row(case, "identity")
    found, without = f"pgvector {row['vector_version']}", "searches by vector are not possible"
    if row["vector_version"] is None:
        advice = (
            "install the package postgresql-NN-pgvector, or use the image pgvector/pgvector",
            "create extension vector;",
        )
        return [note(f"pgvector is not installed on the server: {without}", *advice)]
    if row["vector_schema"] is None and row["has_schema"]:
        return [note(f"{found} is on the server, and not in this database: {without}", "create extension vector;")]
    if row["vector_schema"] is not None and not row["has_vectors"]:
        schema, role = row["vector_schema"], row["role"]
        way = f"grant usage on schema {schema} to {role};"
        return [note(f"{found} is in the schema {schema}, where {role} may not look: {without}", way)]
    return [ok(found)]


async def writes(case: Case) -> list[Finding]:
    """Whether the server takes writes."""
    row = await _row(case, "identity")
    if row["is_standby"]:
        way = "add ?target_session_attrs=read-write to DATABASE_DSN with all hosts in it, or: select pg_promote();"
        return [problem("this server is a standby and takes no writes", way)]
    if row["is_read_only"]:
        advice = [
            f"alter {thing} reset default_transaction_read_only;"
            for thing in (f"role {row['role']}", f"database {row['database']}", "system")
        ]
        return [problem("transactions on this server are read-only (default_transaction_read_only is on)", *advice)]
    return [ok("taken")]


async def rights(case: Case) -> list[Finding]:
    """Whether our role may migrate, and may use what the migrations have made."""
    me, row = await _row(case, "identity"), await _row(case, "rights")
    role, database = me["role"], me["database"]
    if not row["has_schema"]:
        if row["may_create"]:
            return [ok(f"{role} may make the schema")]
        ways = (f"grant create on database {database} to {role};", f"or: create schema mcp authorization {role};")
        return [problem(f"{role} may not make the schema mcp", *ways)]
    if not row["may_use"]:
        return [problem(f"{role} may not use the schema mcp", f"grant usage on schema mcp to {role};")]
    denied = await case.database.read(SERVER.tables_denied)
    found = []
    if unusable := [table["name"] for table in denied if not table["may_use"]]:
        mend = f"grant select, insert, update, delete on all tables in schema mcp to {role};"
        found.append(problem(f"{role} may not read and write {_few(unusable)}", mend))
    owners = {table["owner"] for table in denied if not table["may_alter"]}
    owners |= set() if row["may_create"] else {row["owner"]}
    if owners:
        words = (
            f"{role} may not alter what belongs to {_few(sorted(owners))}: it can neither migrate nor make partitions"
        )
        found.append(warning(words, f"grant {', '.join(sorted(owners))} to {role};"))
    return found or [ok(f"{role} may use and alter the schema")]


async def connections(case: Case) -> list[Finding]:
    """Whether there are connections enough for the pools of the three services."""
    row = await _row(case, "connections")
    limits = {"server": row["server_max"] - row["reserved"]}
    if not row["is_superuser"]:  # the others do not hold for it
        limits |= {"database": row["database_max"], "role": row["role_max"]}
    holder, limit = min(((holder, limit) for holder, limit in limits.items() if limit >= 0), key=lambda item: item[1])
    needed = SERVICES * (case.settings.database_pool_size_max + CONNECTIONS_BESIDE_POOL)
    others = row["in_use"] - row["in_use_by_services"]
    found = f"{needed} for one of each service, {others} used by others, {limit} to be had of the {holder}"
    wanted = 2 * (needed + others) + row["reserved"]
    raising = (
        f"alter {holder} {row[holder]} connection limit {wanted};"
        if holder != "server"
        else (f"alter system set max_connections = {wanted}; (and restart PostgreSQL)")
    )
    ways = (raising, "or lower DEVMESH_DATABASE_POOL_SIZE_MAX")
    if needed > limit:
        return [problem(found, *ways)]
    return [warning(found, *ways) if needed + others > limit else ok(found)]


async def clock(case: Case) -> list[Finding]:
    """Whether this machine and the database agree about the time."""
    before_s = time.time()
    [row] = await case.database.read(CLOCK.now)
    difference_s = row[0].timestamp() - (before_s + time.time()) / 2
    found = f"the database is {abs(difference_s):.3f} s {'ahead of' if difference_s > 0 else 'behind'} this machine"
    advice = "timedatectl set-ntp true  (on both machines)"
    if abs(difference_s) > CLOCK_S_MAX:
        return [problem(f"{found}; leases go by the database's clock, tokens by this machine's", advice)]
    return [warning(found, advice) if abs(difference_s) > CLOCK_S_HIGH else ok(found)]


async def durability(case: Case) -> list[Finding]:
    """Whether a crash of the database's machine keeps what was acknowledged."""
    me = await _row(case, "identity")
    found = []
    for row in await case.database.read(SERVER.endangering_settings):
        scopes = {"user": f"role {me['role']}", "database": f"database {me['database']}"}
        scope = scopes.get(row["source"])
        mend = (
            f"alter {scope} reset {row['name']};"
            if scope
            else f"alter system set {row['name']} = on; select pg_reload_conf();"
        )
        danger = "loses acknowledged writes" if row["name"] == "synchronous_commit" else "may destroy the database"
        found.append(warning(f"{row['name']} is off: a crash of its machine {danger}", mend))
    return found or [ok("fsync, full_page_writes and synchronous_commit are on")]


async def long_transactions(case: Case) -> list[Finding]:
    """Whether something keeps dead rows from being removed, so that tables grow and slow down."""
    found = []
    for row in await case.database.read(SERVER.long_transactions, TRANSACTION_S_LONG):
        what = f"transaction {row['id']!r}" if row["is_prepared"] else f"process {row['id']}, {row['state']}"
        mend = (
            f"rollback prepared '{row['id']}';" if row["is_prepared"] else f"select pg_terminate_backend({row['id']});"
        )
        age = f"{row['age_s'] / 60:,.0f} min"
        found.append(warning(f"{row['program']} of {row['role']} has a transaction open for {age} ({what})", mend))
    return found or [ok(f"none older than {TRANSACTION_S_LONG / 60:g} min")]


async def transaction_ids(case: Case) -> list[Finding]:
    """How far the server is from having no transaction ids left."""
    row = await _row(case, "oldest_transaction_id")
    found = f"those of the database {row['database']} are {row['age']:,} old; at 2,144,000,000 writes end"
    mend = "vacuum (freeze, verbose);" if row["may_connect"] else "wait for autovacuum, which looks after it"
    advice = (f"in {row['database']}: {mend}", "and end long transactions, prepared ones and unused replication slots")
    if row["age"] > IDS_MAX:
        return [problem(found, *advice)]
    return [warning(found, *advice) if row["age"] > IDS_HIGH else ok(found)]


async def _row(case: Case, name: str) -> Record:
    [row] = await case.database.read(getattr(SERVER, name))
    return row


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
