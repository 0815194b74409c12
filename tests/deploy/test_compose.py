"""The compose file is what its specification allows, and what the program expects."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from devmesh import __version__
from devmesh.settings import Settings
from tests.deploy.files import (
    ASKING_LIMIT_S,
    COMPOSE,
    PORTS,
    SETTINGS,
    documents,
    interpolated,
    is_command,
    required_variables,
    seconds,
)  # fmt: skip

RAW = documents(COMPOSE)[0]["services"]
SERVICES: dict[str, Any] = interpolated(RAW)
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("devmesh:")}
OTHERS_KNOW = {"postgres": {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"}, "redis": {"REDIS_PASSWORD"}}
CONNECTIONS_BESIDE_POOL, RESERVED = 2, 3


def test_it_is_what_the_specification_allows() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stdout


def test_it_runs_every_service_and_a_migration() -> None:
    assert set(OURS) == {*PORTS, "migrate"}
    assert set(SERVICES) - set(OURS) == set(OTHERS_KNOW)
    assert {service["image"] for service in OURS.values()} == {f"devmesh:{__version__}"}
    for name, service in OURS.items():
        assert service["command"] == [name]
        assert is_command(service["command"])
        assert (COMPOSE.parent / service["build"]["context"] / "Dockerfile").is_file()


@pytest.mark.parametrize("name", SERVICES)
def test_every_variable_means_something(name: str) -> None:
    assert set(SERVICES[name]["environment"]) <= OTHERS_KNOW.get(name, SETTINGS)


@pytest.mark.parametrize("name", OURS)
def test_a_service_would_start_with_these_settings(name: str) -> None:
    settings = Settings.load(OURS[name]["environment"])
    assert settings.environment == "production"
    assert settings.master_keys
    assert not settings.warnings
    assert settings.skip_migrations is (name == "rest-api")  # the job has migrated


def test_every_secret_is_asked_for_and_none_is_in_the_file() -> None:
    assert required_variables(COMPOSE.read_text()) == {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "ENCRYPTION_MASTER_KEY"}
    for service in RAW.values():
        for name, value in service["environment"].items():
            if re.search(r"PASSWORD|KEY|DSN|REDIS_URL", name):
                assert re.search(r"\$\{\w+:[?-]", str(value)), name


@pytest.mark.parametrize("name", PORTS)
def test_a_service_is_reached_on_its_port_from_this_machine_only(name: str) -> None:
    assert OURS[name]["ports"] == [f"127.0.0.1:{PORTS[name]}:{PORTS[name]}"]


@pytest.mark.parametrize("name", PORTS)
def test_a_service_is_asked_how_it_is(name: str) -> None:
    check = OURS[name]["healthcheck"]
    assert check["test"] == ["CMD", "devmesh", name, "--health-check"]
    assert is_command(check["test"][2:])
    assert seconds(check["timeout"]) > ASKING_LIMIT_S


@pytest.mark.parametrize("name", PORTS)
def test_a_service_begins_after_the_migration_and_is_not_killed_while_it_stops(name: str) -> None:
    service = OURS[name]
    assert service["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert service["depends_on"]["postgres"] == {"condition": "service_healthy"}
    grace_s = Settings.load(service["environment"]).shutdown_grace_s
    assert seconds(service["stop_grace_period"]) >= 2 * grace_s + 5
    assert service["restart"] == "unless-stopped"


def test_what_is_waited_for_can_be_healthy() -> None:
    for service in SERVICES.values():
        for name, dependency in service.get("depends_on", {}).items():
            if dependency["condition"] == "service_healthy":
                assert SERVICES[name]["healthcheck"]["test"]


@pytest.mark.parametrize("name", SERVICES)
def test_everything_is_bounded_and_only_services_are_reached_from_outside(name: str) -> None:
    assert set(SERVICES[name]["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    if name not in PORTS:
        assert "ports" not in SERVICES[name]
        assert SERVICES[name]["networks"] == ["store"]


def test_postgres_has_connections_for_a_restart_of_each_service_beside_the_old() -> None:
    settings = " ".join(SERVICES["postgres"]["command"])
    found = re.search(r"max_connections=(\d+)", settings)
    assert found is not None
    needed = 2 * len(PORTS) * (Settings().database_pool_size_max + CONNECTIONS_BESIDE_POOL)
    assert int(found[1]) - RESERVED > needed
