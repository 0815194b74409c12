"""What people and proxies get wrong: one line that says so, and the right exit code, never a traceback."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from devmesh.cli import application, values
from devmesh.cli.console import Exit, Failure
from tests import forking
from tests.cli.commands import COMMAND_LIMIT_S, devmesh, environment
from tests.cli.stand_in import Asked, Said, as_json, stand_in

KEY = "dm_" + "x" * 43
NOT_TEXT = os.fsdecode(b"caf\xe9")
JOBS = {"jobs": [{"id": "x" * 36, "status": "PENDING"}] * 500, "next_cursor": None}
PAGE = Said(200, b"<html>welcome to nginx</html>", "text/html")
SUBSCRIBED = b'event: subscribed\ndata: {"cursor": "c", "recovered": true}\n\n'


@pytest.fixture
def proxy() -> Iterator[str]:
    """Something that has a page for everybody."""
    with stand_in(lambda _: PAGE) as url:
        yield url


def fails(directory: Path, *arguments: str, url: str = "http://127.0.0.1:1", key: str = KEY) -> tuple[int, str]:
    """The exit code and the line."""
    done = devmesh(directory, *arguments, settings={"DEVMESH_URL": url, "DEVMESH_API_KEY": key})
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()[0]


@pytest.mark.parametrize("command", [["jobs", "list"], ["queues", "pause", "q"], ["watch"]], ids=" ".join)
def test_what_answers_is_no_mesh(tmp_path: Path, proxy: str, command: list[str]) -> None:
    code, line = fails(tmp_path, *command, url=proxy)
    assert (code, "answered 200, not as a mesh does" in line) == (Exit.UNREACHABLE, True), line


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b'{"a":'])
def test_nor_is_what_answers_with_something_like_json(tmp_path: Path, body: bytes) -> None:
    with stand_in(lambda _: Said(200, body)) as url:
        code, line = fails(tmp_path, "jobs", "list", url=url)
    assert (code, "answered 200, not as a mesh does" in line) == (Exit.UNREACHABLE, True), line


@pytest.mark.parametrize(
    "stream", [b"", b": hello\n\n", b"event: x\ndata: {}\n\n", b"data: [1]\n\n", b"event: \xff\ndata: \xff\n\n"]
)
def test_nor_is_a_stream_of_something_else(tmp_path: Path, stream: bytes) -> None:
    with stand_in(lambda _: Said(200, stream, "text/event-stream")) as url:
        code, line = fails(tmp_path, "watch", url=url)
    assert (code, "no events from" in line) == (Exit.UNREACHABLE, True), line


@pytest.mark.parametrize("command", [["jobs", "list"], ["watch"]], ids=" ".join)
@pytest.mark.parametrize("url", ["http://127.0.0.1:80a1", "http://a..b:8081", "http://exa…mple", "http://[::1"])
def test_an_address_that_is_none(tmp_path: Path, command: list[str], url: str) -> None:
    code, line = fails(tmp_path, *command, url=url)
    assert (code, f"there is no such address as {url!r}" in line) == (Exit.USAGE, True), line


@pytest.mark.parametrize("command", [["jobs", "list"], ["watch"]], ids=" ".join)
@pytest.mark.parametrize("key", ["dm_abc…", "dm_\x7f"])
def test_a_key_that_was_cut_in_copying(tmp_path: Path, command: list[str], key: str) -> None:
    code, line = fails(tmp_path, *command, key=key)
    assert (code, "DEVMESH_API_KEY is not a key" in line) == (Exit.USAGE, True), line


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["jobs", "list", "--queue", NOT_TEXT], "queue"),
        (["queues", "pause", NOT_TEXT], "queue"),
        (["queues", "pause", "q", "--reason", NOT_TEXT], "reason"),
        (["call", "job.list", f"{NOT_TEXT}=1"], "caf"),
        (["call", "job.list", "--params", f'{{"tag": "{NOT_TEXT}"}}'], "tag"),
        (["watch", "--topic", f"queue:{NOT_TEXT}"], "--topic"),
        (["watch", "--since", NOT_TEXT], "--since"),
    ],
    ids=ascii,
)
def test_bytes_that_are_no_text(tmp_path: Path, command: list[str], name: str) -> None:
    code, line = fails(tmp_path, *command)
    assert code == Exit.USAGE
    assert line.startswith(f"error: {name}")
    assert line.endswith("this is not UTF-8 text")


def test_standard_input_that_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"title": "caf\xe9"}')))
    with pytest.raises(Failure, match="standard input is not UTF-8") as failed:
        values.parameters(msgspec.Struct, ["-"], None)
    assert failed.value.code is Exit.USAGE


@pytest.mark.parametrize("kind", ["rate_limited", "quota_exceeded"])
def test_a_watch_waits_when_it_is_told_to_and_goes_on_where_it_was(tmp_path: Path, kind: str) -> None:
    problem = {"kind": kind, "detail": "slower", "retry_after_ms": 300}
    asked: list[str] = []

    def mesh(request: Asked) -> Said:
        asked.append(request.path)
        if len(asked) in (2, 3):
            return as_json(problem, 429)
        if len(asked) == 5:
            return as_json({"kind": "unauthenticated", "detail": "the key is not valid any more"}, 401)
        event = json.dumps({"type": "x", "topic": "t", "at": "", "cursor": f"c{len(asked)}", "data": {}}).encode()
        return Said(200, SUBSCRIBED + b"event: x\ndata: " + event + b"\n\n", "text/event-stream; charset=utf-8")

    with stand_in(mesh) as url:
        done = devmesh(tmp_path, "watch", "--json", settings={"DEVMESH_URL": url, "DEVMESH_API_KEY": KEY})
    assert [json.loads(line)["cursor"] for line in done.stdout.splitlines()] == ["c1", "c4"]
    assert [path.partition("since=")[2] for path in asked] == ["", "c1", "c1", "c1", "c4"]
    assert f"{kind}: slower; trying again in 0.5 s" in done.stderr.splitlines()
    assert (done.returncode, "unauthenticated" in done.stderr) == (Exit.FAILED, True)
    assert "cursor: c4" in done.stderr.splitlines()


@pytest.mark.parametrize(("pause_ms", "told"), [(300, "0.3 s"), (896_930, "15 min")])
def test_a_watch_that_may_not_begin_says_when_it_may(tmp_path: Path, pause_ms: int, told: str) -> None:
    problem = {"kind": "rate_limited", "detail": "slower", "retry_after_ms": pause_ms}
    with stand_in(lambda _: as_json(problem, 429)) as url:
        done = devmesh(tmp_path, "watch", settings={"DEVMESH_URL": url, "DEVMESH_API_KEY": KEY})
    assert (done.returncode, f"try again in {told}\n" in done.stderr) == (Exit.FAILED, True)


APP = """
from devmesh.client import Mesh

mesh = Mesh()


@mesh.job("t")
def handle(job):
    pass
"""


@pytest.mark.parametrize("option", [["--health-check"], ["--host", "127.0.0.1"], ["--port", "8088"]], ids=" ".join)
def test_a_remote_worker_cannot_be_asked_how_it_is(tmp_path: Path, option: list[str]) -> None:
    """Above all not by starting another."""
    (tmp_path / "app.py").write_text(APP)
    code, line = fails(tmp_path, "worker", "--app", "app:mesh", "--remote", *option, key="")
    assert (code, "--remote serves nothing that could be asked" in line) == (Exit.USAGE, True), line


def test_a_remote_worker_takes_its_mesh_from_the_directory_that_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "dev.env").write_text("DEVMESH_WS_URL=nowhere\n")
    code, line = fails(tmp_path, "worker", "--app", "app:mesh", "--remote", "--data-dir", "elsewhere")
    assert (code, "DEVMESH_WS_URL is 'nowhere'" in line) == (Exit.FAILED, True), line


@pytest.mark.parametrize("option", [["--remote"], ["--port", "0"]], ids=" ".join)
def test_an_application_that_ends_the_process_is_one_line(tmp_path: Path, option: list[str]) -> None:
    (tmp_path / "app.py").write_text("import sys\nsys.exit(3)\n")
    settings = {"DATABASE_DSN": "postgresql://nobody@127.0.0.1:1/none"}
    done = devmesh(tmp_path, "worker", "--app", "app:mesh", *option, settings=settings)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    expected = (Exit.USAGE, "error") if option == ["--remote"] else (Exit.FAILED, "devmesh worker")
    assert (done.returncode, lines) == (
        expected[0], [f"{expected[1]}: app cannot be imported: SystemExit: 3 (app.py, line 2)"],
    )  # fmt: skip
    assert "never retrieved" not in done.stderr


@pytest.mark.parametrize("command", [["jobs", "list"], ["jobs", "list", "--json"], ["--version"]], ids=" ".join)
def test_a_full_disk_behind_standard_output_is_one_line(tmp_path: Path, command: list[str]) -> None:
    """Also when what is to be written is more than a buffer holds."""
    with (
        stand_in(lambda _: as_json(JOBS)) as url,
        Path("/dev/full").open("wb") as full,
        (tmp_path / "said").open("wb") as said,
    ):
        settings = environment({"DEVMESH_URL": url, "DEVMESH_API_KEY": KEY})
        process = forking.start(["devmesh", *command], cwd=tmp_path, env=settings, stdout=full, stderr=said)
        assert process.wait(COMMAND_LIMIT_S) == Exit.FAILED
    expected = "error: standard output cannot be written: No space left on device\n"
    assert (tmp_path / "said").read_text() == expected


@pytest.mark.parametrize("command", ["settings", "jobs list --json", "call job.enqueue -", "--version"])
def test_streams_that_are_closed_are_nothing_and_no_failure(tmp_path: Path, command: str) -> None:
    """As a shell closes them. What is opened later must not take their place, and be written into."""
    with stand_in(lambda _: as_json(JOBS)) as url:
        line = f"exec {sys.executable} -m devmesh {command} <&- >&-"
        settings = environment({"DEVMESH_URL": url, "DEVMESH_API_KEY": KEY})
        done = subprocess.run(
            ["/bin/sh", "-c", line], cwd=tmp_path, env=settings, stderr=subprocess.PIPE, check=False, text=True
        )
    says_that_nothing_was_given = "error: standard input is empty; parameters are a JSON object\n"
    assert (done.returncode, done.stderr) == (
        (Exit.USAGE, says_that_nothing_was_given) if command.endswith("-") else (Exit.OK, "")
    )


def test_other_failures_of_files_are_not_taken_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(application, "commands", lambda: full)
    with pytest.raises(OSError, match="No space left"):
        application.main()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["schedules", "add", "x", "--type", "t", "--interval-s", "nan"], "interval_s"),
        (["schedules", "add", "x", "--type", "t", "--interval-s", "60", "--payload", "[NaN]"], "job"),
        (["call", "job.enqueue", "--params", '{"type": "t", "payload": -Infinity}'], "payload"),
    ],
    ids=" ".join,
)
def test_numbers_that_are_no_json_are_named(tmp_path: Path, command: list[str], name: str) -> None:
    line = f"error: {name}: NaN and the infinities are no JSON"
    assert fails(tmp_path, *command) == (Exit.USAGE, line)


@pytest.mark.parametrize("levels", [970, 980, 990, 9_000])
def test_nor_can_more_brackets_be_sent_than_can_be_read(tmp_path: Path, levels: int) -> None:
    payload = "[" * levels + "]" * levels
    with stand_in(lambda _: as_json({"schedule": {}})) as url:
        settings = {"DEVMESH_URL": url, "DEVMESH_API_KEY": KEY}
        for command in (
            ["schedules", "add", "x", "--type", "t", "--interval-s", "60", "--payload", payload, "--json"],
            ["call", "job.enqueue", "type=t", f"payload={payload}"],
        ):
            done = devmesh(tmp_path, *command, settings=settings)
            assert done.returncode in (Exit.OK, Exit.USAGE), done.stderr
            assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["jobs", "show", "x" * 100_000], "job_id: Invalid UUID"),
        (["jobs", "list", "--tag", "ä" * 50_000], "tag: Expected `str` of length <= 100"),
        (["call", "job.list", f"unheard_of={'x' * 100_000}"], "unheard_of"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_what_is_too_long_for_an_address_is_named_and_not_the_mesh(
    tmp_path: Path, command: list[str], said: str
) -> None:
    code, line = fails(tmp_path, *command)
    assert (code, line.startswith("error: invalid_params: "), said in line) == (Exit.FAILED, True, True), line[:500]
    assert len(line) < 500


def test_a_parameter_that_is_given_twice(tmp_path: Path) -> None:
    assert fails(tmp_path, "call", "job.list", "status=PENDING", "status=FAILED") == (
        Exit.USAGE, "error: status is given twice"
    )  # fmt: skip


def test_a_mark_before_utf_8_is_no_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = b'\xef\xbb\xbf{"title": "x"}'
    (tmp_path / "marked.json").write_bytes(marked)
    given = values.parameters(msgspec.Struct, [f"payload=@{tmp_path / 'marked.json'}"], None)
    assert given == {"payload": {"title": "x"}}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(marked)))
    assert values.parameters(msgspec.Struct, ["-"], None) == {"title": "x"}
