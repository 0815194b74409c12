"""Commands against a running mesh, as processes: what they print, where, and with which exit code."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import forking
from tests.cli.commands import Up, answer, devmesh, environment
from tests.harness import free_port, wait_until

NOBODY = "00000000-0000-7000-8000-000000000000"


def create(up: Up, *arguments: str, **options: Any) -> dict[str, Any]:
    task: dict[str, Any] = answer(up.directory, "call", "task.create", "assign=pull", *arguments, **options)["task"]
    return task


def test_values_become_what_their_parameters_are(up: Up) -> None:
    (up.directory / "text.md").write_text("# A text\n")
    task = create(
        up, "title=123", "tags=a, b", "priority=5", 'parameters={"depth": [1, null]}', "description=@text.md",
        "deadline=2100-01-01T00:00:00Z",
    )  # fmt: skip
    assert task["title"] == "123"
    assert task["tags"] == ["a", "b"]
    assert task["priority"] == 5
    assert task["parameters"] == {"depth": [1, None]}
    assert task["description"] == "# A text\n"


def test_parameters_also_come_whole_and_from_standard_input(up: Up) -> None:
    task = create(up, "-", "--params", '{"title": "whole", "priority": 2}', stdin='{"priority": 4, "type": "piped"}')
    assert (task["title"], task["priority"], task["type"]) == ("whole", 4, "piped")


def test_a_folder_below_finds_the_mesh_of_its_project(up: Up) -> None:
    below = up.directory / "deeply" / "below"
    below.mkdir(parents=True)
    assert "tasks" in answer(below, "call", "task.list")


def test_a_table_is_for_people(up: Up) -> None:
    create(up, "title=shown in a table")
    shown = devmesh(up.directory, "call", "task.list", "limit=200", "--table")
    assert shown.returncode == 0
    assert "shown in a table" in shown.stdout
    assert "title" in shown.stdout.split("──")[0]


@pytest.mark.parametrize(
    ("arguments", "code", "said", "hint"),
    [
        (["task.get", f"task_id={NOBODY}"], 1, "not_found: there is no task", ""),
        (["task.get"], 1, "invalid_params: ", "--describe"),
        (["task.get", "task_id=../keys"], 1, "invalid_params: task_id", "--describe"),
        (["task.create", "titel=x"], 1, "titel", "--describe"),
        (["task.create", "title=x", "priority=9"], 1, "invalid_params: priority", "--describe"),
        (["task.crate"], 1, "unknown_method: there is no operation 'task.crate'", "task.create"),
        (["task.create", "title"], 2, "'title' is not key=value", "title='my first task'"),
        (["task.create", "title=@missing"], 2, "missing cannot be read", "@@missing"),
        (["task.create", "--params", "[1]"], 2, "not a JSON object", ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_refused_says_kind_message_and_what_to_do(
    up: Up, arguments: list[str], code: int, said: str, hint: str
) -> None:
    refused = devmesh(up.directory, "call", *arguments)
    assert refused.returncode == code
    assert refused.stdout == ""
    assert said in refused.stderr.splitlines()[0]
    assert hint in refused.stderr


def test_each_way_of_not_being_let_in_has_its_own_exit_code(up: Up, tmp_path: Path) -> None:
    without_key = devmesh(tmp_path, "call", "task.list")
    assert (without_key.returncode, "no key to act with" in without_key.stderr) == (2, True)
    wrong_key = devmesh(up.directory, "tasks", settings={"DEVMESH_API_KEY": "dm_" + "x" * 43})
    assert (wrong_key.returncode, "unauthenticated" in wrong_key.stderr) == (1, True)
    nobody_there = devmesh(up.directory, "agents", settings={"DEVMESH_URL": f"http://127.0.0.1:{free_port()}"})
    assert (nobody_there.returncode, "cannot be reached" in nobody_there.stderr) == (3, True)


def test_the_life_of_a_key(up: Up) -> None:
    made = answer(up.directory, "keys", "new", "--kind", "user", "--name", "reader", "--scope", "read", "--json")
    assert made["key"]["scopes"] == ["read"]
    assert devmesh(up.directory, "tasks", settings={"DEVMESH_API_KEY": made["secret"]}).returncode == 0
    forbidden = devmesh(up.directory, "keys", "list", settings={"DEVMESH_API_KEY": made["secret"]})
    assert (forbidden.returncode, "forbidden" in forbidden.stderr) == (1, True)
    successor = answer(up.directory, "keys", "rotate", made["key"]["id"], "--json")
    confirmed = devmesh(up.directory, "keys", "confirm", successor["key"]["id"])
    assert confirmed.returncode == 0
    refused = devmesh(up.directory, "tasks", settings={"DEVMESH_API_KEY": made["secret"]})
    assert (refused.returncode, "revoked" in refused.stderr) == (1, True)
    revoked = answer(up.directory, "keys", "revoke", successor["key"]["id"], "--json")
    assert revoked["key"]["revoked_at"] is not None


def test_tenants_are_created_listed_and_suspended(up: Up) -> None:
    made = answer(up.directory, "tenants", "create", "elsewhere", "--json")
    assert "elsewhere" in devmesh(up.directory, "tenants", "list").stdout
    answer(up.directory, "tenants", "suspend", made["tenant"]["id"], "--json")
    refused = devmesh(up.directory, "tasks", settings={"DEVMESH_API_KEY": made["secret"]})
    assert (refused.returncode, "suspended" in refused.stderr) == (1, True)
    answer(up.directory, "tenants", "suspend", made["tenant"]["id"], "--lift", "--json")
    assert answer(up.directory, "tasks", "--json", settings={"DEVMESH_API_KEY": made["secret"]})["tasks"] == []


def test_tasks_and_agents_are_listed_with_filters(up: Up) -> None:
    answer(up.directory, "call", "agent.register", "name=lister", "capabilities=listing")
    task = create(up, "title=to be listed", "type=listed")
    assert "lister" in devmesh(up.directory, "agents", "--capability", "listing").stdout
    assert devmesh(up.directory, "agents", "--capability", "nothing").stdout == "no agents\n"
    found = answer(up.directory, "tasks", "--type", "listed", "--status", "pending", "--status", "running", "--json")
    assert [item["id"] for item in found["tasks"]] == [task["id"]]
    assert devmesh(up.directory, "tasks", "--status", "nonsense").returncode == 2


def test_watch_shows_events_as_they_happen_and_goes_on_from_its_cursor(up: Up) -> None:
    first = Watch(up, "--json")
    wait_until(lambda: first.connected(up), "the watch is connected")
    one = create(up, "title=watched one")
    wait_until(lambda: one["id"] in first.shown(), "the first task is shown")
    cursor = first.stop()
    two = create(up, "title=watched two")
    second = Watch(up, "--since", cursor)
    wait_until(lambda: two["id"] in second.shown(), "the second task is shown")
    second.stop()
    assert one["id"] not in second.shown()
    assert "task.created" in second.shown()
    assert "title=watched two" in second.shown()
    created = [json.loads(line) for line in first.shown().splitlines()]
    assert [event["type"] for event in created if event["topic"] == f"task:{one['id']}"] == ["task.created"]
    refused = devmesh(up.directory, "watch", "--topic", "nonsense")
    assert (refused.returncode, "invalid_params" in refused.stderr) == (1, True)


@pytest.mark.parametrize("since", ["zzz", "-5", "", "8" * 24, "x" * 5_000])
def test_watch_tells_no_cursor_that_the_mesh_has_not_told(up: Up, since: str) -> None:
    refused = devmesh(up.directory, "watch", "--since", since)
    said = "error: invalid_params: this is not a cursor that DevMesh handed out"
    assert (refused.returncode, refused.stdout, refused.stderr.splitlines()) == (1, "", [said])


def test_an_address_of_another_service_is_told_by_what_is_not_there(up: Up) -> None:
    for url in (f"http://127.0.0.1:{up.port}", f"http://127.0.0.1:{up.port + 1}/api/v1"):
        for command in (["jobs", "list"], ["watch"]):
            refused = devmesh(up.directory, *command, settings={"DEVMESH_URL": url})
            assert (refused.returncode, "unknown_method: there is nothing at" in refused.stderr) == (1, True)
            assert "is DEVMESH_URL the address of a mesh's REST service?" in refused.stderr


def test_a_health_check_exits_as_the_service_is(up: Up, tmp_path: Path) -> None:
    for offset, service in enumerate(("mcp-server", "rest-api", "worker")):
        assert devmesh(up.directory, service, "--health-check", "--port", str(up.port + offset)).returncode == 0
    assert devmesh(tmp_path, "worker", "--health-check", "--port", str(free_port())).returncode == 1


_numbers = itertools.count()


class Watch:
    """A `devmesh watch` that runs until it is stopped."""

    def __init__(self, up: Up, *arguments: str) -> None:
        name = f"watch-{next(_numbers)}"
        self._out, self._err = up.directory / f"{name}.out", up.directory / f"{name}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = forking.start(
                ["devmesh", "watch", *arguments], cwd=up.directory, env=environment(), stdout=out, stderr=err
            )

    def shown(self) -> str:
        return self._out.read_text()

    def connected(self, up: Up) -> bool:
        """Whether the mesh has a stream of events open."""
        return "devmesh_event_streams 1.0" in httpx.get(f"http://127.0.0.1:{up.port + 1}/metrics", trust_env=False).text

    def stop(self) -> str:
        """The cursor that it ends with."""
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(10) == 0
        return self._err.read_text().strip().removeprefix("cursor: ")
