"""The master key of a mesh on somebody's own machine: made at its first start, and kept in its directory.

Services and tools find it there. It has the weakest of the three names, so a key that is set elsewhere goes before it, and what
this one has encrypted is still read.
"""

from __future__ import annotations

from devmesh.cli.console import Exit, Failure
from devmesh.cli.instance import Instance
from devmesh.cli.loading import ENCRYPTION_ENV
from devmesh.core import envelope
from devmesh.core.errors import MeshError
from devmesh.environment import SettingsError, read_variables
from devmesh.settings import Settings
from devmesh.store import vault
from devmesh.store.database import Database

NAME = "ENCRYPTION_KEY"
HEADER = """\
# Written by `devmesh up` at its first start: the master key that the secrets of this mesh are encrypted under.
# Keep it to yourself, and keep it: without it nobody can read them again.
"""


async def keep_master_key(instance: Instance, dsn: str, settings: Settings) -> None:
    """Makes a master key where none is given and none is kept. Raises `Failure` when the one that was kept is gone."""
    path = instance.directory / ENCRYPTION_ENV
    try:
        kept = Settings.load(read_variables(path)).master_keys
    except SettingsError as error:
        hint = f"put the file back as it was: what its key has encrypted cannot be read without it ({path})"
        raise Failure(str(error), Exit.USAGE, hint) from error
    if kept or settings.master_keys:
        return
    if missing := (await _report(dsn, settings)).missing_master_keys:
        raise Failure(
            f"{path}, with the master key {', '.join(missing)} that secrets in the database are encrypted under, is gone",
            hint=f"put it back, or set {NAME} to that key; `devmesh keys forget {missing[0]}` gives those secrets up",
        )
    instance.write(ENCRYPTION_ENV, HEADER, {NAME: envelope.new_master_key()})


async def _report(dsn: str, settings: Settings) -> vault.Report:
    try:
        database = await Database.open(
            dsn, service="devmesh up", pool_size_min=1, pool_size_max=1,
            transaction_deadline_s=settings.transaction_deadline_s,
        )  # fmt: skip
        try:
            return await vault.report(database, [])
        finally:
            await database.close()
    except MeshError as error:
        raise Failure(f"the data keys cannot be looked at: {error.message}") from error
