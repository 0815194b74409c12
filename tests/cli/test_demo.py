"""`devmesh demo` as a process: on a mesh of its own, on one that runs, broken off, and with input that cannot work."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import forking
from tests.cli.commands import Up, answer, devmesh, environment
from tests.harness import are_gone, wait_until

DEMO_LIMIT_S = 90.0
GONE_LIMIT_S = 20.0


class Demo:
    """One run of the demo. What it says is in `out`, its JSON alone in `result`."""

    def __init__(self, directory: Path, *arguments: str, settings: dict[str, str] | None = None) -> None:
        self._out, self._result = directory / "demo.out", directory / "demo.json"
        with self._out.open("wb") as out, self._result.open("wb") as result:
            self.process = forking.start_anew(
                ["devmesh", "demo", *arguments], cwd=directory, env=environment(settings),
                stdout=result if "--json" in arguments else out, stderr=out,
            )  # fmt: skip

    @property
    def out(self) -> str:
        return self._out.read_text()

    def report(self) -> Any:
        """The whole report, once the demo has ended well."""
        assert self.wait() == 0, self.out
        return json.loads(self._result.read_text())

    def until(self, words: str) -> None:
        def is_said() -> bool:
            assert self.process.poll() is None or words in self.out, f"it ended without {words!r}: {self.out}"
            return words in self.out

        wait_until(is_said, f"the demo says {words!r}", DEMO_LIMIT_S)

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait(self) -> int:
        return self.process.wait(DEMO_LIMIT_S)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Forty small files, two of them the same, in two directories."""
    place = tmp_path / "notes"
    for number in range(38):
        file = place / ("even" if number % 2 == 0 else "odd") / f"{number:02}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# Note {number}\n" + "plain words about nothing \u2014 again\n" * (number + 1))
    (place / "a.py").write_text("def one(): pass\n\n\n# FIXME: two\n")
    (place / "b.py").write_bytes((place / "a.py").read_bytes())
    (place / "picture").write_bytes(b"\x89PNG\0")
    return place


@pytest.fixture
def tidy(up: Up) -> Iterator[None]:
    """What a killed demo could not take back is taken back, so that the next test finds nothing of it."""
    yield
    for task in answer(up.directory, "tasks", "--status", "running", "--json")["tasks"]:
        if task["parent_id"] is None:  # its subtasks go with it
            answer(up.directory, "call", "task.cancel", f"task_id={task['id']}")
    for agent in agents_of_demos(up):
        answer(up.directory, "call", "agent.deregister", f"agent_id={agent['id']}")


def agents_of_demos(up: Up) -> list[dict[str, Any]]:
    agents: list[dict[str, Any]] = answer(up.directory, "agents", "--json")["agents"]
    return [agent for agent in agents if agent["name"].startswith("demo-")]


@pytest.mark.timeout(240)
def test_a_fleet_works_through_a_directory_one_agent_is_killed_and_nothing_is_lost(notes: Path, tmp_path: Path) -> None:
    report = Demo(tmp_path, str(notes), "--json").report()
    texts = {str(path.relative_to(notes)): path.read_text() for path in notes.glob("**/*.*")}
    result = report["result"]
    assert result["files"] == len(texts) == 40
    assert result["lines"] == sum(text.count("\n") for text in texts.values())
    assert result["words"] == sum(len(text.split()) for text in texts.values())
    assert result["bytes"] == sum(len(text.encode()) for text in texts.values())
    assert result["largest"][0] == {"path": "odd/37.md", "bytes": len(texts["odd/37.md"].encode())}
    sha256 = hashlib.sha256(texts["a.py"].encode()).hexdigest()
    assert result["duplicates"] == [{"sha256": sha256, "bytes": len(texts["a.py"]), "paths": ["a.py", "b.py"]}]
    frequent = Counter(re.findall("[a-z]{4,}", "\n".join(texts.values()).lower()))
    assert {word["word"]: word["count"] for word in result["frequent_words"]} == dict(frequent)
    assert (result["headings"], result["functions"], result["marks"]) == (38, 2, 2)
    by_hand = subprocess.run(report["check_by_hand"], shell=True, capture_output=True, text=True, check=True)
    assert by_hand.stdout.split()[:3] == [str(result[name]) for name in ("lines", "words", "bytes")]

    killed = report["killed"]
    assert [held["status"] for held in killed["held"]] == ["running"]  # in the middle of it
    assert 0.25 <= killed["held"][0]["progress"] < 1
    again = {task["task_id"]: task["attempts"] for task in report["done_again"]}
    first, second = again[killed["held"][0]["task_id"]]
    assert (first["attempt"], first["agent"], first["outcome"]) == (1, killed["agent"], "lease_expired")
    assert (second["attempt"], second["outcome"]) == (2, "completed")
    assert second["agent"] != killed["agent"]

    counts = report["counts"]
    assert counts["lost"] == 0
    done = sum(agent["tasks_done"] for agent in report["agents"])
    assert counts["tasks"] == done + 1  # the distributed one
    assert counts["attempts"] == done + sum(len(attempts) - 1 for attempts in again.values())
    assert counts["events"] > 3 * done  # created, assigned and completed, at least
    assert report["skipped"] == {"binary": 1}
    assert report["is_whole"]
    assert report["seconds"]["total"] < DEMO_LIMIT_S
    assert len({agent["pid"] for agent in report["agents"]}) == 6
    assert not any(psutil.pid_exists(agent["pid"]) for agent in report["agents"])
    assert not (tmp_path / ".devmesh").exists()


@pytest.mark.soak
@pytest.mark.timeout(240)
def test_on_a_mesh_that_runs_it_tells_its_story_in_lines_and_leaves_only_finished_tasks(up: Up) -> None:
    (up.directory / "one").write_text("one small file\n")
    demo = Demo(up.directory, "one")
    assert demo.wait() == 0, demo.out
    said = demo.out
    assert "runs already, and is used" in said
    for words in (
        r"submitted one distributed task: 8 subtasks over 1 file\b",
        r"kill -9 \d+: (\S+) is gone, and it held .* \(assigned, 0%\)",
        r"the lease of .*, attempt 1 by \S+, has ended",
        r"attempt 2 is given to",
        r"the distributed task is completed",
        r"  lines +1\s",
        r"  words +3\s",
        r"  bytes +15\s",
        r"wc \S+/one",
        r"  killed +\S+ \(pid \d+\), which held",
        r"  done again +.*attempt 1 by \S+ lease_expired, attempt 2 by \S+ completed",
        r"  lost +0\s",
    ):
        assert re.search(words, said), f"{words} is not in: {said}"
    assert "\x1b" not in said
    assert agents_of_demos(up) == []
    tasks = answer(up.directory, "tasks", "--type", "demo", "--json")["tasks"]
    assert {task["status"] for task in tasks} == {"completed"}
    assert answer(up.directory, "call", "task.stats")["counts"]["running"] == 0


@pytest.mark.soak
@pytest.mark.timeout(240)
def test_a_file_that_changes_meanwhile_makes_it_fail_and_is_named(up: Up, notes: Path) -> None:
    demo = Demo(up.directory, str(notes))
    demo.until("is connected")
    with (notes / "odd" / "01.md").open("a") as file:
        file.write("late\n")
    assert demo.wait() == 1
    assert "error: odd/01.md was changed meanwhile" in demo.out


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 130, marks=pytest.mark.soak),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.soak),
    ],
)
def test_broken_off_it_leaves_no_process_and_whoever_can_tidies_up(
    up: Up, notes: Path, number: signal.Signals, code: int
) -> None:
    for name in range(1_000):  # so that there is work left when it is broken off
        (notes / f"{name}.txt").write_text("more of the same\n" * 100)
    demo = Demo(up.directory, str(notes), settings={"TMPDIR": str(up.directory)})  # a killed one leaves its logs there
    demo.until("submitted")
    processes = demo.processes()
    assert processes
    demo.process.send_signal(number)
    assert demo.wait() == code
    wait_until(lambda: are_gone(processes), "the agents are gone", GONE_LIMIT_S)
    if number != signal.SIGKILL:
        assert "broken off" in demo.out
        assert agents_of_demos(up) == []
        assert answer(up.directory, "call", "task.stats")["counts"]["running"] == 0


def test_without_anything_to_work_on_it_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\0")
    (tmp_path / "none").mkdir()
    for path, why in (
        ("absent", "absent does not exist"),
        ("none", "none holds no text to work on"),
        ("binary", "binary holds no text to work on (1 binary)"),
    ):
        refused = devmesh(tmp_path, "demo", path)
        assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", f"error: {why}\n")


@pytest.mark.parametrize(
    ("settings", "code", "why"),
    [
        (
            {"DEVMESH_URL": "http://127.0.0.1:1", "DEVMESH_API_KEY": "dm_x"},
            3,
            "http://127.0.0.1:1, named in the environment",
        ),
        ({"DATABASE_DSN": "postgresql://nobody@127.0.0.1:1/none"}, 3, "cannot reach the database"),
        ({"DATABASE_DSN": "nonsense"}, 2, "DATABASE_DSN is '********'"),
    ],
    ids=["named mesh", "database", "setting"],
)
def test_without_a_mesh_it_says_why_in_one_line(tmp_path: Path, settings: dict[str, str], code: int, why: str) -> None:
    (tmp_path / "one").write_text("one\n")
    refused = devmesh(tmp_path, "demo", "one", settings=settings)
    assert refused.returncode == code
    assert refused.stderr.count("error: ") == 1
    assert why in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.timeout(240)
def test_agents_that_may_not_connect_are_named_with_the_reason(up: Up) -> None:
    (up.directory / "one").write_text("one\n")
    key = answer(up.directory, "keys", "new", "--kind", "user", "--json")["secret"]
    refused = devmesh(up.directory, "demo", "one", settings={"DEVMESH_API_KEY": key})
    assert refused.returncode == 1
    assert "needs a key with the scope 'agent'" in refused.stderr
