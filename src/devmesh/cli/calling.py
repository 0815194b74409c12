"""`devmesh call`: any operation from the shell."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from devmesh.cli.console import Exit, Failure, print_json, print_table, say
from devmesh.cli.loading import client_settings
from devmesh.cli.services import DataDir

if TYPE_CHECKING:
    from devmesh.operations.registry import Operation

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def call(
    operation: Annotated[str, typer.Argument(help="Its name, such as task.create.", show_default=False)] = "",
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Parameters. JSON or text; @FILE reads a file; - reads a whole JSON object from standard input.",
            show_default=False,
        ),
    ] = None,
    params: Annotated[
        str | None, typer.Option("--params", metavar="JSON", help="Parameters as one JSON object.")
    ] = None,
    as_table: Annotated[bool, typer.Option("--table", help="Print a table.")] = False,
    as_json: AsJson = False,
    describe: Annotated[bool, typer.Option("--describe", help="Show an operation's parameters and result.")] = False,
    list_all: Annotated[bool, typer.Option("--list", help="List every operation.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Call any operation and print its answer: JSON, or a table with --table.

    [bold]Examples[/]

    devmesh call --list
    devmesh call task.create --describe
    devmesh call task.create title="count words" required_capabilities=count parameters='{"path": "README.md"}'
    devmesh call task.list status=pending,running limit=10 --table
    echo '{"title": "from a pipe"}' | devmesh call task.create -
    """
    if list_all or not operation:
        _list(as_json)
    elif describe:
        _describe(find(operation), as_json)
    else:
        from devmesh.cli.values import parameters

        declared = find(operation)
        result = invoke(declared, parameters(declared.params, arguments or [], params), data_dir)
        print_result(result, as_table)


def find(name: str) -> Operation:
    """The operation of this name; raises `Failure` with the names that are near."""
    from devmesh import operations
    from devmesh.operations.registry import REGISTRY

    operations.load_all()
    if name in REGISTRY:
        return REGISTRY[name]
    verb = name.rpartition(".")[2]
    near = difflib.get_close_matches(name, REGISTRY, n=4) or [known for known in REGISTRY if known.endswith(f".{verb}")]
    hint = f"did you mean {', '.join(near)}?" if near else "`devmesh call --list` lists every operation"
    raise Failure(f"unknown_method: there is no operation {name!r}", Exit.FAILED, hint)


def invoke(operation: Operation | str, params: Mapping[str, Any], data_dir: Path | None) -> dict[str, Any]:
    """The answer of an operation. Parameters that are None count as not given."""
    from devmesh.cli.wire import Rest

    declared = find(operation) if isinstance(operation, str) else operation
    return Rest(client_settings(data_dir)).call(declared, params)


def print_result(result: Mapping[str, Any], as_table: bool) -> None:
    from devmesh.cli.tables import tables_of

    if not as_table:
        print_json(result)
        return
    tables = tables_of(result)
    for table in tables:
        title = table.title if len(tables) > 1 else ""
        print_table(table.columns, table.rows, title, is_short=not table.is_thing)
    if result.get("next_cursor"):
        say(f"more: cursor={result['next_cursor']}")


def _list(as_json: bool) -> None:
    from devmesh import operations
    from devmesh.operations.registry import REGISTRY

    operations.load_all()
    declared = sorted(REGISTRY.values(), key=lambda operation: operation.name)
    if as_json:
        print_json([_as_json(operation) for operation in declared])
    else:
        print_table(("operation", "scope", "what it does"), [(op.name, op.scope, op.summary) for op in declared])


def _describe(operation: Operation, as_json: bool) -> None:
    from devmesh.cli.shapes import fields

    if as_json:
        print_json(_as_json(operation))
        return
    say(f"[bold]{operation.name}[/]  {operation.summary}")
    if operation.description:
        typer.echo(f"\n{operation.description}")
    say(f"\n{operation.method} /api/v1{operation.path}   scope {operation.scope}\n")
    rows = [(field.name, field.shape, "required" if field.default is None else field.default)
            for field in fields(operation.params)]  # fmt: skip
    print_table(("parameter", "what it may be", "default"), rows)
    answer = ", ".join(f"{field.name}: {field.shape}" for field in fields(operation.result))
    typer.echo(f"Answer: {{{answer}}}")


def _as_json(operation: Operation) -> dict[str, Any]:
    from devmesh.cli.shapes import fields

    return {
        "name": operation.name,
        "summary": operation.summary,
        "description": operation.description,
        "scope": operation.scope,
        "method": operation.method,
        "path": f"/api/v1{operation.path}",
        "parameters": [field._asdict() for field in fields(operation.params)],
        "result": [field._asdict() for field in fields(operation.result)],
    }
