"""Agents and tasks as tables, and how any page or thing of the mesh is shown to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from devmesh.cli.calling import AsJson, invoke
from devmesh.cli.console import print_json, print_table, say
from devmesh.cli.services import DataDir
from devmesh.core import agents as agent_words
from devmesh.core import tasks as task_words

AGENT_COLUMNS = ("id", "name", "kind", "status", "capabilities", "active_tasks", "concurrency", "last_seen_at")
TASK_COLUMNS = (
    "id", "title", "type", "status", "priority", "attempt", "progress", "assigned_to", "parent_id", "created_at",
)  # fmt: skip

Limit = Annotated[int, typer.Option(min=1, max=200, help="How many at the most.")]
Cursor = Annotated[str | None, typer.Option(help="Go on after an earlier page: the cursor that it ended with.")]


def agents(
    status: Annotated[list[agent_words.Status] | None, typer.Option(help="Only these; repeat it.")] = None,
    capability: Annotated[str | None, typer.Option(help="Only those that can do this.")] = None,
    kind: Annotated[agent_words.Kind | None, typer.Option(help="Only of this kind.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List agents, newest first."""
    asked = {"status": status or None, "capability": capability, "kind": kind, "limit": limit, "cursor": cursor}
    print_page(invoke("agent.list", asked, data_dir), "agents", AGENT_COLUMNS, as_json)


def tasks(
    status: Annotated[list[task_words.Status] | None, typer.Option(help="Only these; repeat it.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="Only of this type.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    assigned_to: Annotated[str | None, typer.Option(help="Only those of an agent, by id.")] = None,
    created_by: Annotated[str | None, typer.Option(help="Only those that an agent created, by id.")] = None,
    parent: Annotated[str | None, typer.Option(help="Only the subtasks of a task, by id.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List tasks, newest first.

    [bold]Example[/]

    devmesh tasks --status running --status assigned
    """
    asked = {
        "status": status or None, "type": type_, "tag": tag, "assigned_to": assigned_to, "created_by": created_by,
        "parent_id": parent, "limit": limit, "cursor": cursor,
    }  # fmt: skip
    print_page(invoke("task.list", asked, data_dir), "tasks", TASK_COLUMNS, as_json)


def print_page(answer: Mapping[str, Any], noun: str, columns: Sequence[str], as_json: bool) -> None:
    """Several things as rows, and how to come to the next ones."""
    from devmesh.cli.tables import rows_of

    if as_json:
        print_json(answer)
        return
    if answer[noun]:
        titles = [column.removesuffix("_at").replace("_", " ") for column in columns]
        print_table(titles, rows_of(answer[noun], columns), is_short=True)
    else:
        say(f"no {noun.replace('_', ' ')}" + (" on this page" if answer.get("next_cursor") else ""))
    if answer.get("next_cursor"):
        say(f"more: --cursor {answer['next_cursor']}")


def print_thing(answer: Mapping[str, Any], noun: str, columns: Sequence[str], as_json: bool) -> None:
    """One thing, a field a line, whole."""
    from devmesh.cli.tables import rows_of

    if as_json:
        print_json(answer)
        return
    [values] = rows_of([answer[noun]], columns)
    print_table(("field", "value"), [(name, value) for name, value in zip(columns, values, strict=True) if value])
