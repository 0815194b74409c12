"""Execution contexts from the shell: what executions have left behind, looked at and searched."""

from __future__ import annotations

from typing import Annotated

import typer

from devmesh.cli.calling import AsJson, invoke
from devmesh.cli.console import print_json, say
from devmesh.cli.jobs import TypeFilter
from devmesh.cli.listing import Cursor, Limit, print_page, print_thing
from devmesh.cli.services import DataDir
from devmesh.core.contexts import By

COLUMNS = ("id", "type", "job_id", "text", "tags", "model", "created_at")
FIELDS = (*COLUMNS, "attempt", "data", "dimensions")
FOUND_COLUMNS = ("score", *COLUMNS)

ContextId = Annotated[str, typer.Argument(help="The context's id.", show_default=False)]
JobFilter = Annotated[str | None, typer.Option("--job", help="Only of this job, by id.", show_default=False)]
TagFilter = Annotated[str | None, typer.Option("--tag", help="Only with this tag.", show_default=False)]
contexts = typer.Typer(help="Look at what executions have left behind, and search it.", no_args_is_help=True)


@contexts.command("list")
def list_contexts(
    job: JobFilter = None,
    type_: TypeFilter = None,
    tag: TagFilter = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List contexts, the latest first."""
    asked = {"job_id": job, "type": type_, "tag": tag, "limit": limit, "cursor": cursor}
    print_page(invoke("context.list", asked, data_dir), "contexts", COLUMNS, as_json)


@contexts.command("show")
def show(context_id: ContextId, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Show a context."""
    print_thing(invoke("context.get", {"context_id": context_id}, data_dir), "context", FIELDS, as_json)


@contexts.command("search")
def search(
    text: Annotated[str, typer.Argument(help="What it is to be about.", show_default=False)],
    job: JobFilter = None,
    type_: TypeFilter = None,
    tag: TagFilter = None,
    by: Annotated[By | None, typer.Option(help="Only by its words, or only by a vector made of it.")] = None,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="The least score.")] = 0.0,
    limit: Limit = 10,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Find contexts that are alike, the most alike first."""
    asked = {"text": text, "job_id": job, "type": type_, "tag": tag, "by": by, "min_score": min_score, "limit": limit}
    answer = invoke("context.search", asked, data_dir)
    if as_json:
        print_json(answer)
        return
    results = [{"score": found["score"], **found["context"]} for found in answer["results"]]
    print_page({"results": results}, "results", FOUND_COLUMNS, as_json)
    if answer.get("left_out"):
        say(f"{answer['left_out']} more were found that are less alike; there was no room for them")
    say(f"searched by {answer['by']}" + (f", with {answer['model']}" if answer["model"] else ""))


@contexts.command("delete")
def delete(context_id: ContextId, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Forget a context."""
    print_thing(invoke("context.delete", {"context_id": context_id}, data_dir), "context", FIELDS, as_json)
