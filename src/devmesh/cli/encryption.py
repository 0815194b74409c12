"""What secrets in the database are encrypted under, from the shell: straight at the database, with a service's settings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from devmesh.cli.calling import AsJson
from devmesh.cli.console import Exit, Failure, note, print_json, print_table, say
from devmesh.cli.loading import require_dsn, service_settings
from devmesh.cli.services import DataDir

if TYPE_CHECKING:
    from devmesh.store.database import Database
    from devmesh.store.vault import Report, Unopened, Vault

T = TypeVar("T")
SHOWN_MAX = 20  # of values that cannot be opened

HOW_TO_USE = """\
This is a new master key. It is shown this once and kept nowhere: keep it as you keep a password, and give it to all services.

  as the first one        ENCRYPTION_MASTER_KEY=<this one>
  in place of an old one  ENCRYPTION_MASTER_KEY=<this one> and ENCRYPTION_KEY=<the old one>, until `devmesh keys encryption`
                          says that the old one can be removed. Where services are started again one after another, begin with
                          ENCRYPTION_KEY=<this one> beside the old one, so that all of them can read what either has encrypted.\
"""


def generate(
    as_line: Annotated[bool, typer.Option("--env", help="Print it as a line of a .env file.")] = False,
) -> None:
    """Make a master key: what secrets in the database are encrypted under."""
    from devmesh.core.envelope import new_master_key

    typer.echo(f"ENCRYPTION_MASTER_KEY={new_master_key()}" if as_line else new_master_key())
    note(HOW_TO_USE)


def encryption(
    verify: Annotated[bool, typer.Option("--verify", help="Open every secret.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show what secrets are encrypted under, and what is left to encrypt anew. Exit code 1 when one cannot be opened.

    Master keys are shown by their fingerprints. Where services have them from, this has to have them from as well.
    """
    from devmesh.store import vault

    async def look(database: Database, keys: Vault) -> tuple[Report, tuple[int, list[Unopened]] | None]:
        report = await vault.report(database, keys.master_keys)
        return report, await vault.verify(database, keys) if verify and report.data_keys else None

    report, verified = _run(look, data_dir)
    unopened = verified[1] if verified else []
    if as_json:
        print_json(_as_json(report, verified))
    else:
        _print(report, verified)
    if report.missing_master_keys:
        missing, given = ", ".join(report.missing_master_keys), ", ".join(report.master_keys) or "none"
        raise Failure(
            f"secrets are encrypted under master key {missing}, and given was {given}",
            hint="set ENCRYPTION_KEY to the missing one; if it is lost, `devmesh keys forget` gives those secrets up",
        )
    if report.lost_values or unopened:
        count = max(report.lost_values, len(unopened))
        raise Failure(f"{count} secrets cannot be opened", hint="store them anew" if verify else "--verify names them")


def rotate_data(data_dir: DataDir = None) -> None:
    """Make a new data key; the worker then encrypts every secret anew, while all of them can be read.

    It happens by itself when the data key is old. To replace the master key, see `devmesh keys generate`.
    """
    from devmesh.store import vault

    async def rotate(database: Database, keys: Vault) -> Report:
        await keys.rotate(database)
        return await vault.report(database, keys.master_keys)

    report = _run(rotate, data_dir)
    say(f"The current data key is {report.data_keys[0].id}, under master key {report.data_keys[0].master_key_id}.")
    say(
        f"{report.values_to_reseal} secrets are left to be encrypted anew: the worker does it, see `devmesh keys encryption`."
    )


def forget(
    master_key_id: Annotated[str, typer.Argument(help="The fingerprint of the lost master key.", show_default=False)],
    is_sure: Annotated[bool, typer.Option("--yes", help="Without asking.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Give up the secrets under a master key that is lost, so that services start without it."""
    from devmesh.store import vault

    if not is_sure and not typer.confirm(f"Give up all secrets under master key {master_key_id}, for good?"):
        raise Failure("nothing was given up")

    async def give_up(database: Database, keys: Vault) -> tuple[int, Report]:
        if master_key_id in [key.id for key in keys.master_keys]:
            raise Failure(f"master key {master_key_id} is not lost: it is among those that are given")
        return await vault.forget(database, master_key_id), await vault.report(database, keys.master_keys)

    forgotten, report = _run(give_up, data_dir)
    if not forgotten:
        raise Failure(f"no data key is wrapped under master key {master_key_id}", Exit.USAGE)
    say(f"{forgotten} data keys were given up; {report.lost_values} secrets have to be stored anew.")


def _run(work: Callable[[Database, Vault], Awaitable[T]], data_dir: Path | None) -> T:
    """Does work on the database of the settings, with their master keys. Raises `Failure`."""
    from devmesh import telemetry
    from devmesh.core import envelope
    from devmesh.core.errors import Kind, MeshError
    from devmesh.store.database import Database
    from devmesh.store.vault import Vault

    settings = service_settings(data_dir)
    dsn = require_dsn(settings)
    telemetry.configure_logs("keys", "error")

    async def run() -> T:
        database = await Database.open(
            dsn, service="devmesh keys", pool_size_min=1, pool_size_max=1,
            transaction_deadline_s=settings.transaction_deadline_s,
        )  # fmt: skip
        try:
            return await work(database, Vault(envelope.master_keys(settings.master_keys)))
        finally:
            await database.close()

    try:
        return asyncio.run(run())
    except MeshError as error:
        code = Exit.UNREACHABLE if error.kind is Kind.UNAVAILABLE and settings.master_keys else Exit.FAILED
        raise Failure(error.message, code, "`devmesh doctor` says what is wrong") from error


def _print(report: Report, verified: tuple[int, list[Unopened]] | None) -> None:
    given = report.master_keys
    say(f"master key         {given[0] if given else 'none is set: no secret can be stored (devmesh keys generate)'}")
    for key_id in given[1:]:
        state = "is needed until the worker is through" if key_id in report.needed_master_keys else "can be removed"
        say(f"older master key   {key_id} {state}")
    say(f"left to do         {_left(report)}")
    if report.data_keys:
        columns = ("data key", "under master key", "made at", "secrets", "state")
        print_table(columns, [_row(key) for key in report.data_keys])
    if verified:
        found, unopened = verified
        say(f"{found - len(unopened)} of {found} secrets were opened")
        for value in unopened[:SHOWN_MAX]:
            note(f"{value.place.purpose} of tenant {value.place.tenant_id}, row {value.place.row_id}: {value.reason}")
        if len(unopened) > SHOWN_MAX:
            note(f"… and {len(unopened) - SHOWN_MAX} more")


def _left(report: Report) -> str:
    to_wrap = sum(key.master_key_id != report.master_keys[0] for key in report.data_keys) if report.master_keys else 0
    left = []
    if to_wrap:
        left.append(f"{to_wrap} data keys to be wrapped under the current master key")
    if report.values_to_reseal:
        left.append(f"{report.values_to_reseal} secrets to be sealed under the current data key")
    return " and ".join(left) or "nothing"


def _row(key: Any) -> tuple[str, ...]:
    state = "current" if key.is_current else "older"
    made_at = f"{key.created_at:%Y-%m-%d %H:%M:%S}Z"
    opened = "" if key.can_be_opened else ", cannot be opened"
    return (str(key.id), key.master_key_id, made_at, str(key.sealed_values), state + opened)


def _as_json(report: Report, verified: tuple[int, list[Unopened]] | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "master_key": report.master_keys[0] if report.master_keys else None,
        "older_master_keys": report.master_keys[1:],
        "removable_master_keys": report.removable_master_keys,
        "missing_master_keys": report.missing_master_keys,
        "values_to_reseal": report.values_to_reseal,
        "lost_values": report.lost_values,
        "data_keys": [
            {
                "id": str(key.id),
                "master_key_id": key.master_key_id,
                "created_at": key.created_at.isoformat(),
                "is_current": key.is_current,
                "can_be_opened": key.can_be_opened,
                "sealed_values": key.sealed_values,
            }
            for key in report.data_keys
        ],
    }
    if verified:
        found["verified"] = verified[0]
        found["not_opened"] = [
            {
                "purpose": value.place.purpose,
                "tenant_id": str(value.place.tenant_id),
                "row_id": str(value.place.row_id),
                "reason": value.reason,
            }
            for value in verified[1]
        ]
    return found
