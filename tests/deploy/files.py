"""The files of a deployment, as what tests compare with the program: what they set, what they run, where they ask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from typer.testing import CliRunner

from devmesh.cli.application import application
from devmesh.settings import ClientSettings, Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
COMPOSE = DEPLOY / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"

SETTINGS = {shown.name for group in (Settings(), ClientSettings()) for shown in group.describe()}
PORTS = {"rest-api": Settings().rest_port, "mcp-server": Settings().ws_port, "worker": Settings().worker_port}
ASKING_LIMIT_S = 5.0  # of a health check, by itself

# What an operator would give.
SECRETS = {
    "POSTGRES_PASSWORD": "0f" * 32,
    "REDIS_PASSWORD": "f0" * 32,
    "ENCRYPTION_MASTER_KEY": "8Xr0YwPIYoT1vQk3sHn6ZbE7dLmUaCgJx2iWfNqOeRM=",
    "DATABASE_DSN": "postgresql://devmesh:secret@db.internal/devmesh?sslmode=verify-full",
    "REDIS_URL": "redis://redis.internal:6379/0",
}


def documents(path: Path) -> list[Any]:
    return [document for document in YAML(typ="safe").load_all(path.read_text()) if document is not None]


def interpolated(value: Any) -> Any:
    """With `${NAME:?why}` and `${NAME:-default}` as compose would put them."""
    if isinstance(value, dict):
        return {key: interpolated(item) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item) for item in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"\$\{(\w+)(?::\?[^}]*|:-([^}]*))\}", lambda found: SECRETS.get(found[1]) or found[2] or "", value)


def required_variables(text: str) -> set[str]:
    """Those without which compose refuses to begin."""
    return set(re.findall(r"\$\{(\w+):\?", text))


def is_command(arguments: Sequence[str]) -> bool:
    """Whether `devmesh …` has such a command, with such options."""
    words = [word for word in arguments if not word.startswith("-")]
    options = [word for word in arguments if word.startswith("--")]
    helped = CliRunner().invoke(application, [*words, "--help"])
    return helped.exit_code == 0 and all(option in helped.output for option in options)


def seconds(duration: str) -> float:
    """Of a duration as compose writes it, in one unit."""
    found = re.fullmatch(r"(\d+)(ms|s|m)", duration)
    assert found is not None, duration
    return int(found[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0}[found[2]]
