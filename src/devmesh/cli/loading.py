"""Where commands get their settings: options, then the environment, `.env`, and what `devmesh up` left in its directory."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from devmesh.cli.console import Exit, Failure
from devmesh.environment import SettingsError
from devmesh.settings import ClientSettings, Settings

DOTENV = Path(".env")
DEV_ENV = "dev.env"
ENCRYPTION_ENV = "encryption.env"


def nearest(path: Path) -> Path:
    """A file of the working directory or the nearest one above it, so that commands work anywhere in a project."""
    places = [directory / path for directory in (Path.cwd(), *Path.cwd().parents)]
    return next((place for place in places if is_there(place)), path)


def is_there(path: Path) -> bool:
    """Whether there is such a file, also one that we may not reach: reading it then says so."""
    try:
        return path.is_file()
    except PermissionError:
        return True


def data_directory(option: Path | None) -> Path:
    """Where `devmesh up` keeps its state."""
    if option is not None:
        return option
    try:
        return Path(ClientSettings.load(os.environ, nearest(DOTENV)).data_dir)
    except SettingsError as error:
        raise Failure(str(error), Exit.USAGE) from error


def settings_files(directory: Path) -> list[Path]:
    """The files of settings, the strongest first: `.env`, and what `devmesh up` keeps in its directory."""
    return [nearest(DOTENV), nearest(directory / DEV_ENV), nearest(directory / ENCRYPTION_ENV)]


def service_settings(data_dir: Path | None, **options: Any) -> Settings:
    """The settings of a service. An option that is not None is stronger than what was read."""
    try:
        settings = Settings.load(os.environ, *settings_files(data_directory(data_dir)))
    except SettingsError as error:
        raise Failure(str(error), Exit.USAGE) from error
    return with_options(settings, options)


def client_settings(data_dir: Path | None = None) -> ClientSettings:
    """How a command finds the mesh and which key it acts with."""
    try:
        return ClientSettings.load(os.environ, nearest(DOTENV), nearest(data_directory(data_dir) / DEV_ENV))
    except SettingsError as error:
        raise Failure(str(error), Exit.USAGE) from error


def examined_settings(data_dir: Path | None) -> tuple[Settings, ClientSettings]:
    """All settings for who wants to see what is wrong with them: it stands in their `problems`."""
    directory = data_dir or Path(ClientSettings.examine(os.environ, nearest(DOTENV)).data_dir)
    files = settings_files(directory)
    return Settings.examine(os.environ, *files), ClientSettings.examine(os.environ, *files)


def with_options(settings: Settings, options: dict[str, Any]) -> Settings:
    """Lays options of the command over settings, and says so as their source."""
    given = {name: value for name, value in options.items() if value is not None}
    sources = {**settings.sources, **dict.fromkeys(given, "command line")}
    return dataclasses.replace(settings, **given, sources=sources)


def require_dsn(settings: Settings) -> str:
    """The database's address, or one line that says how to come by one."""
    if settings.database_dsn is None:
        hint = "set it to an address such as postgresql://user:password@host:5432/database, or run `devmesh up`"
        raise Failure("DATABASE_DSN is not set", Exit.USAGE, hint)
    return settings.database_dsn
