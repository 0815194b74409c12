"""What all checks share: the settings, and the one database that they look at."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from devmesh.cli.loading import DEV_ENV, examined_settings, is_there, nearest
from devmesh.core.errors import MeshError
from devmesh.environment import MASK
from devmesh.settings import ClientSettings, Settings
from devmesh.store.database import Database
from devmesh.store.statements import load

CLOCK = load("clock")
CHECK_LIMIT_S = 5.0
ANSWER_LIMIT_S = 1.5
CLOSE_LIMIT_S = 1.0
SECRET_CHARACTERS_MIN = 6  # shorter ones would be found in ordinary words


@dataclass
class Case:
    settings: Settings
    client: ClientSettings
    directory: Path  # where `devmesh up` keeps its state
    secrets: tuple[str, ...] = field(repr=False)
    opened: Database | None = None  # by the check that reaches it
    deadline: asyncio.Timeout | None = None  # of the check under way

    @classmethod
    def read(cls, data_dir: Path | None) -> Case:
        """Whatever can be read: what cannot stands among the settings' problems."""
        settings, client = examined_settings(data_dir)
        directory = data_dir or Path(client.data_dir)
        if is_there(dev_env := nearest(directory / DEV_ENV)):
            directory = dev_env.parent
        secrets = {part for secret in (*settings.secrets(), *client.secrets()) for part in _parts(secret)}
        return cls(settings, client, directory, tuple(sorted(secrets, key=len, reverse=True)))

    @property
    def dsn(self) -> str:
        assert self.settings.database_dsn is not None
        return self.settings.database_dsn

    @property
    def address(self) -> SplitResult | None:
        """DATABASE_DSN taken apart; nothing, where it cannot be."""
        try:
            address = urlsplit(self.dsn)
            return address if address.port != 0 else None  # asking for the port is what finds most mistakes
        except ValueError:
            return None

    @property
    def database(self) -> Database:
        assert self.opened is not None
        return self.opened

    def begin_again(self) -> None:
        """Gives the check its whole time anew: it has loaded a large library, which says nothing about whom it asks."""
        assert self.deadline is not None
        self.deadline.reschedule(asyncio.get_running_loop().time() + CHECK_LIMIT_S)

    async def is_answered(self) -> bool:
        """Whether the database says anything at all, on whichever connection."""
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                return bool(await self.database.read(CLOCK.now))
        except (MeshError, TimeoutError):
            return False

    async def close(self) -> None:
        if self.opened is not None:
            await self.opened.close(CLOSE_LIMIT_S)

    def masked(self, text: str) -> str:
        """Without any secret that the settings hold, whoever has put it there."""
        for secret in self.secrets:
            text = text.replace(secret, MASK)
        return text


def _parts(secret: str) -> list[str]:
    """A secret, and the password in it where it is an address."""
    try:
        address = urlsplit(secret)
        password = address.password or ""
    except ValueError:
        return [secret]
    is_told = password in (address.username, address.path[1:])  # as good as told by the names that are shown
    parts = [secret] if is_told else [secret, password, unquote(password)]
    return [part for part in parts if len(part) >= SECRET_CHARACTERS_MIN]
