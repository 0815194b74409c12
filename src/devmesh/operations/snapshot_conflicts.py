"""What is otherwise now than a snapshot has it: found by one comparison, and told a page at a time.

Everything is compared that a restore would write. Whether it does is the business of snapshot_restoring.py.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from devmesh.core import errors
from devmesh.core.jobs import ENDED_AS, Outcome
from devmesh.core.names import like
from devmesh.core.snapshots import CONFLICTS, PLACES
from devmesh.operations.job_uniqueness import strangers
from devmesh.operations.work import Work
from devmesh.store.database import Record
from devmesh.store.statements import load

SQL = load("snapshot_conflicts")
CONFLICTS_TOLD_MAX = 1_000
NAMED_MAX = 10  # in the message of a refusal
JOB_TEXT_MAX = 1_000  # characters of a schedule's job that are shown
TAKEN = "taken"  # its name, or its unique key, is another's by now, so that it stays as it is
# A noun and an id, which are ASCII.
IN_HEX = like(r"^([2-7][0-9a-f])+$(?!\n)", "a cursor that an answer has handed out")
Cursor = Annotated[str, Meta(max_length=1_000, pattern=IN_HEX)]
Thing = tuple[str, str]  # a noun, and an id or name


class Conflict(msgspec.Struct):
    """Something that is otherwise now: as it is (PRESERVED_CURRENT), or as it was (RESTORED_SNAPSHOT).

    The values are a status, or in JSON what differs.
    """

    kind: str
    noun: str
    id: str
    resolution: str
    snapshot_value: str | None
    current_value: str | None


async def decide(work: Work, whole: uuid.UUID, decisions: Collection[str], *, is_dry: bool) -> int:
    """Says at each of the gathered rows what is to be done with it. How much is otherwise now.

    `decisions` are those that are to be carried out. Unless it `is_dry`, jobs of which that holds have their unique keys from
    now on.
    """
    for statement in (SQL.decide_jobs, SQL.decide_others):
        await work.tx.execute(statement, work.tenant_id, whole)
    keyed = await work.tx.fetch(SQL.keyed, work.tenant_id, whole)
    if keys := {row["job_id"]: row["unique_key"] for row in keyed if row["decision"] in decisions}:
        taken = await strangers(work, keys, {row["job_id"] for row in keyed}, takes=not is_dry)
        if taken:
            await work.tx.execute(SQL.decide_taken, work.tenant_id, whole, list(map(str, taken)), list(taken.values()))
    return int(await work.tx.fetch_value(SQL.conflict_count, work.tenant_id, whole))


async def page(work: Work, whole: uuid.UUID, cursor: str | None = None) -> list[Record]:
    """As many as are told at once, after those that a cursor names."""
    return await work.tx.fetch(SQL.conflicts, work.tenant_id, whole, *_decoded(cursor), CONFLICTS_TOLD_MAX)


def next_cursor(rows: list[Record]) -> str | None:
    return f"{rows[-1]['noun']} {rows[-1]['id']}".encode("ascii").hex() if len(rows) == CONFLICTS_TOLD_MAX else None


def refusal(rows: list[Record], count: int) -> errors.MeshError:
    first = ", ".join(f"{CONFLICTS[row['noun']]} of {row['id']}" for row in rows[:NAMED_MAX])
    return errors.conflict(
        "snapshot.conflicts",
        f"{count:,} things are otherwise now, of which a dry run tells; nothing was changed: {first}",
    )


def told(rows: list[Record], written: Collection[Thing]) -> list[Conflict]:
    """`written` is what has become, or would become, as it was."""
    return [_conflict(row, (row["noun"], row["id"]) in written) for row in rows]


def _conflict(row: Record, is_written: bool) -> Conflict:
    changed = msgspec.json.decode(row["row"])
    was, is_now = changed["was"], changed["is_now"]
    if row["noun"] == "jobs":
        was, is_now = _of_job(was), _of_job(is_now)
    names = [name for name in {**was, **is_now} if was.get(name) != is_now.get(name)]
    if row["noun"] == "workers" and "status" in names and row["decision"] != TAKEN:
        snapshot_value, current_value = was["status"], is_now["status"]
    else:
        snapshot_value, current_value = _text(was, names), _text(is_now, names)
    resolution = "RESTORED_SNAPSHOT" if is_written else "PRESERVED_CURRENT"
    return Conflict(CONFLICTS[row["noun"]], row["noun"], row["id"], resolution, snapshot_value, current_value)


def _of_job(found: dict[str, Any]) -> dict[str, Any]:
    place = found.get("place")
    status = PLACES.get(place) if place is not None else None
    if status is None and (outcome := found.get("outcome")) is not None:
        status = ENDED_AS.get(Outcome(outcome))
    told = {
        "status": status, "attempt": found.get("attempt"), "waits_for_others": place == "jobs_blocked",
        "is_dead_letter": place == "dead_letter_queue",
    }  # fmt: skip
    return {**told, "key_is_of": found["key_is_of"]} if "key_is_of" in found else told


def _text(side: dict[str, Any], names: list[str]) -> str:
    shown = {name: side[name] for name in names if name in side}
    if isinstance(job := shown.get("job"), str) and len(job) > JOB_TEXT_MAX:
        shown["job"] = f"{job[:JOB_TEXT_MAX]}…"
    return msgspec.json.encode(shown).decode()


def _decoded(cursor: str | None) -> Thing:
    noun, _, thing = bytes.fromhex(cursor or "").decode("ascii").partition(" ")
    return noun, thing
