"""What PostgreSQL alone does with the very statements of the product: the limit beside each figure.

The statements come from `store/sql`, with SQL in the place of their parameters. Batches lie ready in a table, so that neither
making them nor sending them is measured; a seed gives the tasks of each batch ids of their own, in the order of time.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import msgspec

from bench.stage import Stage, corridor_on
from devmesh.settings import Settings
from devmesh.store.connections import session_settings
from devmesh.store.statements import Statement, load

TASKS, EVENTS, CLOCK = load("tasks"), load("events"), load("clock")
IN_FLIGHT = Settings.gather_in_flight_max  # transactions at a time, as the gateway has them
SEED = "5eed5eed"
SEEDED = f"'{SEED}', lpad(to_hex((:client_id::bigint << 24) + :n::bigint), 8, '0')"
STATE = "create schema bench; create table bench.batch (name text primary key, value text, list text[])"


class Run(NamedTuple):
    """What pgbench reached: transactions a second, and how long each took."""

    rate: float
    latencies_s: list[float]


async def creating_limit(stage: Stage, batch: int, *, clients: int = IN_FLIGHT) -> float:
    """Tasks a second, with their events, in transactions of a batch."""
    return batch * (await _create(stage, batch, clients=clients)).rate


async def committing_times(stage: Stage, rate_per_s: int) -> list[float]:
    """How long creating one task takes, with its event, at a steady rate. In seconds."""
    return (await _create(stage, 1, clients=8, rate_per_s=rate_per_s)).latencies_s


async def reading_limit(stage: Stage, page: int) -> float:
    """Events a second that one reader gets from the log, in pages."""
    async with stage.database() as dsn:
        tenant, made = await _tasks(dsn, page)
        await _keep(dsn, **_events("task.created", made))
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(_append(tenant))
        finally:
            await connection.close()
        after = _filled(EVENTS.after, f"array[{tenant}]", "array[1::bigint]", f"{page}::integer")
        return (page - 1) * (await _run(stage, dsn, [after], clients=1)).rate  # the first of them was there before


async def _create(stage: Stage, batch: int, *, clients: int, rate_per_s: int | None = None) -> Run:
    async with stage.database() as dsn:
        tenant, made = await _tasks(dsn, batch)
        await _keep(dsn, tasks=made, **_events("task.created", made))
        insert = _filled(TASKS.insert_many, tenant, _seeded("tasks"))
        script = [_filled(CLOCK.now), insert, _append(tenant)]
        return await _run(stage, dsn, script, clients=clients, rate_per_s=rate_per_s)


async def living_limit(stage: Stage, batch: int) -> float:
    """Whole lives of tasks a second: created, assigned and completed, each step a transaction of a batch."""
    async with stage.database() as dsn:
        tenant, made = await _tasks(dsn, batch)
        now, agent_id = made[0]["created_at"], str(uuid.uuid4())
        held = [{**task, "status": "assigned", "assigned_to": agent_id, "assigned_at": now} for task in made]
        done = [{**task, "status": "completed", "finished_at": now, "result": {"words": 120}} for task in held]
        ended = [
            {"task_id": task["id"], "attempt": 1, "agent_id": agent_id, "outcome": "completed", "assigned_at": now,
             "ended_at": now} for task in made
        ]  # fmt: skip
        ids = "{" + ",".join(task["id"] for task in made) + "}"
        await _keep(
            dsn, tasks=made, held=held, done=done, ended=ended, ids=ids,
            **_events("task.created", made, "created_"), **_events("task.assigned", held, "assigned_"),
            **_events("task.completed", [{"id": task["id"], "result": task["result"]} for task in done], "completed_"),
        )  # fmt: skip
        wanted = _seeded("ids") + "::uuid[]"
        steps = [
            [_filled(TASKS.insert_many, tenant, _seeded("tasks")), _append(tenant, "created_")],
            [_filled(TASKS.lock_waiting, tenant, wanted), _filled(TASKS.save, tenant, _seeded("held")),
             _append(tenant, "assigned_")],
            [_filled(TASKS.lock, tenant, wanted), _filled(TASKS.save, tenant, _seeded("done")),
             _filled(TASKS.insert_attempts, tenant, _seeded("ended")), _append(tenant, "completed_")],
        ]  # fmt: skip
        script = [part for step in steps for part in (_filled(CLOCK.now), *step, "commit;\nbegin;")]
        return batch * (await _run(stage, dsn, script, clients=IN_FLIGHT)).rate


async def _tasks(dsn: str, count: int) -> tuple[str, list[dict[str, Any]]]:
    """The tenant as SQL, and tasks as the product itself writes them, with ids that hold the seed."""
    async with corridor_on(dsn) as (corridor, caller):
        params = {"title": "measure", "parameters": {"path": "docs/guide.md"}, "required_capabilities": ["summarize"]}
        answer = msgspec.json.decode(await corridor.serve("task.create", caller, msgspec.json.encode(params)))
    made = [{**answer["task"], "id": f"{SEED}-0000-7000-8000-{number:012x}"} for number in range(count)]
    return f"'{caller.tenant_id}'::uuid", made


def _events(event_type: str, told: Sequence[dict[str, Any]], prefix: str = "") -> dict[str, list[str]]:
    return {
        f"{prefix}types": [event_type] * len(told),
        f"{prefix}topics": [f"task:{task['id']}" for task in told],
        f"{prefix}data": [msgspec.json.encode({"task": task}).decode() for task in told],
    }


async def _keep(dsn: str, **batches: Any) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(STATE)
        for name, batch in batches.items():
            is_list = isinstance(batch, list) and isinstance(batch[0], str)
            value = batch if isinstance(batch, str) else msgspec.json.encode(batch).decode()
            row = (name, None, batch) if is_list else (name, value, None)
            await connection.execute("insert into bench.batch values ($1, $2, $3)", *row)
    finally:
        await connection.close()


def _seeded(name: str) -> str:
    return f"replace((select value from bench.batch where name = '{name}'), {SEEDED})"


def _append(tenant: str, prefix: str = "") -> str:
    lists = [
        f"select array_to_string(list, e'\\x1e') from bench.batch where name = '{prefix}{name}'"
        for name in ("types", "topics", "data")
    ]
    return _filled(EVENTS.append, tenant, *lists)


def _filled(statement: Statement, *arguments: str) -> str:
    """The statement with SQL in the place of its parameters."""
    text = re.sub(r"\$(\d+)", lambda found: f"({arguments[int(found[1]) - 1]})", statement.text)
    text = re.sub(r"json_to_recordset\((.*)\) as", r"json_to_recordset((\1)::json) as", text)
    return text.rstrip(";") + ";"


async def _run(stage: Stage, dsn: str, parts: Sequence[str], *, clients: int, rate_per_s: int | None = None) -> Run:
    settings = session_settings("pgbench", 10.0)
    options = " ".join(f"-c {name}={settings[name]}" for name in settings if name.startswith(("enable_", "jit")))
    paced = ["--rate", str(rate_per_s)] if rate_per_s is not None else []
    with tempfile.TemporaryDirectory() as directory:
        script, log = Path(directory, "script.sql"), Path(directory, "log")
        script.write_text("\n".join(["\\set n :n + 1", "begin;", *parts, "commit;"]))
        process = await asyncio.create_subprocess_exec(
            stage.server.bin_path / "pgbench", "-n", "-M", "prepared", "-c", str(clients), *paced,
            "-T", str(round(stage.extent.measured_s)), "-D", "n=0", "-f", script, "-l", "--log-prefix", log, dsn,
            env={**os.environ, "PGOPTIONS": options}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        logs = [file.read_text().splitlines() for file in Path(directory).glob("log*")]
    found = re.search(r"^tps = ([\d.]+)", output.decode(), re.MULTILINE)
    if process.returncode or found is None:
        raise RuntimeError(f"pgbench failed: {output.decode()[-2000:]}")
    warm = [line for lines in logs for line in lines[len(lines) // 5 :]]  # the first ones plan their statements
    return Run(float(found[1]), [int(line.split()[2]) / 1e6 for line in warm])  # the third column is microseconds
