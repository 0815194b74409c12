"""Keys and tenants from the shell: thin layers over the operations of the same names."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from devmesh.cli.calling import AsJson, invoke
from devmesh.cli.console import Exit, Failure, print_json, say
from devmesh.cli.listing import Cursor, Limit, print_page, print_thing
from devmesh.cli.loading import require_dsn, service_settings
from devmesh.cli.services import DataDir
from devmesh.core.access import KeyKind, Scope

KEY_COLUMNS = ("id", "name", "kind", "scopes", "prefix", "created_at", "last_used_at", "expires_at", "revoked_at")
TENANT_COLUMNS = ("id", "name", "status", "created_at")

KeyId = Annotated[str, typer.Argument(help="The key's id, from `devmesh keys list`.", show_default=False)]
TenantId = Annotated[str, typer.Argument(help="The tenant's id, from `devmesh tenants list`.", show_default=False)]

keys = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Make, list, rotate and revoke API keys.")
tenants = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Create, list and suspend tenants.")


@keys.command("new")
def new_key(
    kind: Annotated[KeyKind, typer.Option(help="What it is for; says which scopes it gets.")] = KeyKind.AGENT,
    name: Annotated[str, typer.Option(help="What to call it.")] = "",
    scope: Annotated[list[Scope] | None, typer.Option(help="Exactly these scopes instead; repeat it.")] = None,
    agent: Annotated[str | None, typer.Option(help="Bind it to one agent, by id: it acts as that one only.")] = None,
    expires_at: Annotated[str | None, typer.Option(help="Until when, as in 2027-01-31T12:00:00Z.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Make a key. It is shown this once.

    [bold]Example[/]

    devmesh keys new --kind agent --name summarizer
    """
    params = {"kind": kind, "name": name, "scopes": scope or None, "agent": agent, "expires_at": expires_at}
    _print_new_key(invoke("key.create", params, data_dir), as_json)


@keys.command("first")
def first_key(
    name: Annotated[str, typer.Option(help="What to call it.")] = "first",
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Make an administrator's key straight in the database, where no key is at hand to ask with. It is shown this once.

    Who may write to DATABASE_DSN administers the mesh anyway. `devmesh up` does this by itself.
    """
    settings = service_settings(data_dir)
    dsn = require_dsn(settings)
    from devmesh.cli.first_key import working_key
    from devmesh.core.errors import Kind, MeshError

    try:
        secret = asyncio.run(working_key(dsn, settings, None, name))
    except MeshError as error:
        code = Exit.UNREACHABLE if error.kind is Kind.UNAVAILABLE else Exit.FAILED
        raise Failure(
            f"the key cannot be made: {error.message}", code, "`devmesh doctor` says what is wrong"
        ) from error
    if as_json:
        print_json({"secret": secret})
    else:
        say(f"[bold]{secret}[/]")
        say("It is shown this once. To act with it: export DEVMESH_API_KEY=…")


@keys.command("list")
def list_keys(limit: Limit = 50, cursor: Cursor = None, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """List keys, newest first, revoked ones too."""
    print_page(invoke("key.list", {"limit": limit, "cursor": cursor}, data_dir), "keys", KEY_COLUMNS, as_json)


@keys.command("rotate")
def rotate_key(key_id: KeyId, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Make a successor of a key. Both work until it is confirmed."""
    answer = invoke("key.rotate", {"key_id": key_id}, data_dir)
    _print_new_key(answer, as_json)
    if not as_json:
        say(f"When it is in use everywhere: devmesh keys confirm {answer['key']['id']}")


@keys.command("confirm")
def confirm_key(key_id: KeyId, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Revoke the key that this one has replaced."""
    print_thing(invoke("key.confirm", {"key_id": key_id}, data_dir), "key", KEY_COLUMNS, as_json)


@keys.command("revoke")
def revoke_key(key_id: KeyId, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Refuse a key from now on; its open connections end within 5 s."""
    print_thing(invoke("key.revoke", {"key_id": key_id}, data_dir), "key", KEY_COLUMNS, as_json)


@tenants.command("create")
def create_tenant(
    name: Annotated[str, typer.Argument(help="Small letters, digits, - and _.", show_default=False)],
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Create a tenant and its first administrator key, which is shown this once."""
    answer = invoke("tenant.create", {"name": name}, data_dir)
    if not as_json:
        print_thing(answer, "tenant", TENANT_COLUMNS, as_json=False)
    _print_new_key(answer, as_json)


@tenants.command("list")
def list_tenants(limit: Limit = 50, cursor: Cursor = None, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """List tenants, newest first."""
    print_page(invoke("tenant.list", {"limit": limit, "cursor": cursor}, data_dir), "tenants", TENANT_COLUMNS, as_json)


@tenants.command("suspend")
def suspend_tenant(
    tenant_id: TenantId,
    lift: Annotated[bool, typer.Option("--lift", help="Lift the suspension instead.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Refuse a tenant's keys, and close its connections within 5 s, until --lift."""
    answer = invoke("tenant.suspend", {"tenant_id": tenant_id, "suspended": not lift}, data_dir)
    print_thing(answer, "tenant", TENANT_COLUMNS, as_json)


def _print_new_key(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    print_thing(answer, "key", KEY_COLUMNS, as_json=False)
    say(f"[bold]{answer['secret']}[/]")
    say("The key itself is shown this once. To act with it: export DEVMESH_API_KEY=…")
