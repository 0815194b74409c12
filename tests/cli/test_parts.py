"""The pure parts of the command line."""

from __future__ import annotations

import io
import json
import re
import socket
import sys
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta, Raw

from devmesh.cli import shapes, values, watching
from devmesh.cli.console import Failure, print_json, print_table
from devmesh.cli.listing import print_page, print_thing
from devmesh.cli.ports import require_free
from devmesh.cli.tables import cell, tables_of
from tests.harness import free_port


class Shaped(msgspec.Struct):
    text: Annotated[str, Meta(max_length=9)]
    count: Annotated[int, Meta(ge=1, le=5)]
    words: list[str] = []
    anything: Raw = Raw(b"null")
    maybe: Annotated[float, Meta(gt=0)] | None = None


def test_shapes_say_every_bound() -> None:
    assert [(field.name, field.shape, field.default) for field in shapes.fields(Shaped)] == [
        ("text", "text (at most 9 characters)", None),
        ("count", "integer (1 to 5)", None),
        ("words", "array of text", "[]"),
        ("anything", "any JSON", "null"),
        ("maybe", "number (above 0) or null", "null"),
    ]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("text=1", "1"),
        ("text=true", "true"),
        ('text="quoted"', "quoted"),
        ("text=@@at", "@at"),
        ("text=a=b", "a=b"),
        ("count=3", 3),
        ("count=three", "three"),
        ("words=a,b", ["a", "b"]),
        ('words=["a,b"]', ["a,b"]),
        ("words=1", ["1"]),
        ('anything={"a": 1}', {"a": 1}),
        ("anything=NaN", "NaN"),
        ("maybe=null", None),
        ("unknown=1", 1),
    ],
)
def test_values_are_json_unless_their_parameter_is_a_text(argument: str, value: object) -> None:
    assert values.parameters(Shaped, [argument], None) == {argument.partition("=")[0]: value}


@pytest.mark.parametrize("text", ["1_0", "\u0663", "true", "null", "", "1e999", "nan", "e", "Off"])
def test_a_number_that_may_be_taken_away_is_nothing_else(text: str) -> None:
    assert [values.number_or_off(known) for known in ("off", "2.5", "1e3", ".5")] == [None, 2.5, 1000, 0.5]
    with pytest.raises(Failure, match="is neither a number nor off"):
        values.number_or_off(text)


@pytest.mark.parametrize("text", ['{"a": 1,}', "[1, 2", '{"a": NaN}', " {'a': 1}"])
def test_what_begins_like_json_and_is_none_is_not_taken_for_a_text(text: str) -> None:
    with pytest.raises(Failure, match="anything is not JSON: "):
        values.parameters(Shaped, [f"anything={text}"], None)
    with pytest.raises(Failure, match="words is not JSON: "):
        values.parameters(Shaped, [f"words={text}"], None)
    assert values.parameters(Shaped, [f"text={text}"], None) == {"text": text}


def test_a_stream_is_the_same_however_it_is_cut() -> None:
    stream = (
        'id: a\nevent: x\ndata: {"line": "one\u2028line"}\n\n: alive\n\nevent: y\ndata: {}\n\nevent: cut\nda'.encode()
    )
    whole = list(watching.parse(iter([stream])))
    assert whole == [("x", {"line": "one\u2028line"}), ("y", {})]
    for size in (1, 2, 7):
        assert list(watching.parse(stream[i : i + size] for i in range(0, len(stream), size))) == whole


def test_an_event_is_a_line() -> None:
    event = {
        "type": "task.progress", "topic": "task:1", "at": "2026-01-31T12:00:00.123456Z", "cursor": "c",
        "data": {"task": {"id": "1", "version": 3, "updated_at": "…", "progress": 0.5, "progress_message": None}},
    }  # fmt: skip
    assert watching.line(event) == "12:00:00.123  task.progress       task:1  progress=0.5"


def test_tables_leave_out_what_says_nothing() -> None:
    answer: dict[str, Any] = {
        "task": {"id": "1", "error": None, "tags": ["a", "b"]},
        "attempts": [],
        "next_cursor": None,
        "total": 0,
    }
    thing, beside = tables_of(answer)
    assert thing == ("task", ("field", "value"), [("id", "1"), ("tags", "a, b")], True)
    assert beside == ("", ("field", "value"), [("total", "0")], True)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("output", [Terminal(), io.StringIO()], ids=["terminal", "pipe"])
def test_what_is_long_is_cut_in_lists_on_a_terminal_and_nowhere_else(
    output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setenv("COLUMNS", "100000")
    long = "x" * 30_000
    print_page({"jobs": [{"error": long}]}, "jobs", ("error",), as_json=False)
    is_cut = output.isatty()
    assert (long in output.getvalue(), "x" * 199 + "…" in output.getvalue()) == (not is_cut, is_cut)
    output.truncate(0)
    print_thing({"job": {"error": long}}, "job", ("error",), as_json=False)
    assert long in output.getvalue()


@pytest.mark.parametrize("width", [1, 20, 40, 80])
def test_a_narrow_terminal_hides_nothing(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", str(width))
    columns = [f"c{number}" for number in range(10)]
    jobs = [{column: f"{letter}{column[1:]}" for column in columns} for letter in "ab"]
    print_page({"jobs": [*jobs, {"c0": "only"}]}, "jobs", columns, as_json=False)
    for text in (*columns, *(value for job in jobs for value in job.values()), "only"):
        assert text in terminal.getvalue()
    assert ("c9: b9\n\nc0: only\n" in terminal.getvalue()) == (width < 60)


@pytest.mark.parametrize(("width", "is_table"), [(40, False), (80, False), (120, True), (400, True)])
def test_no_terminal_breaks_an_id_that_somebody_is_to_copy(
    width: int, is_table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", str(width))
    first, second, at = "01a22b5c-2734-724f-9a07-d8d01c5a02e9", "01a22b5c-211c-70e2-a03e-e36aa720db03", "2026-11-30"
    title = "a title of many words, which may well be told on more than one line of a terminal"
    tasks = [{"id": task, "title": title, "assigned_to": first, "created_at": at} for task in (first, second)]
    print_page({"tasks": tasks}, "tasks", ("id", "title", "assigned_to", "created_at"), as_json=False)
    shown = terminal.getvalue()
    assert (shown.count(first), shown.count(second), shown.count(at)) == (3, 1, 2)
    assert (f"id: {second}\n" in shown) == (not is_table)


def test_what_others_write_is_no_markup_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    [table] = tables_of({"metrics": [{"[/]": "[bold]"}]})
    print_table(table.columns, table.rows, "[/title]")
    shown = capsys.readouterr().out
    assert [text in shown for text in ("[/]", "[bold]", "[/title]")] == [True] * 3


FORGED = "a\nb\r\tc\x1b[2J\x7f\x9b0m\u2028\ud800"
SHOWN = r"a\nb\r\tc\u001b[2J\u007f\u009b0m\u2028\ud800"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(FORGED, SHOWN), ([FORGED, "é"], f"{SHOWN}, é"), ({FORGED: [FORGED]}, f'{{"{SHOWN}": ["{SHOWN}"]}}')],
    ids=["text", "list", "object"],
)
def test_a_cell_is_one_line_that_no_terminal_obeys(value: object, shown: str) -> None:
    assert cell(value) == shown
    [thing] = tables_of({"metrics": {FORGED: 1}})
    assert thing.rows == [(SHOWN, "1")]
    [things] = tables_of({"metrics": [{FORGED: 1}]})
    assert things.columns == [SHOWN]


def test_an_event_is_one_line_whatever_its_message_says(monkeypatch: pytest.MonkeyPatch) -> None:
    event: dict[str, Any] = {
        "type": "task.progress", "topic": "task:1", "at": "2026-01-31T12:00:00.123456Z", "cursor": "c",
        "data": {"task": {"id": "1", "progress_message": FORGED}, "reason": FORGED},
    }  # fmt: skip
    assert watching.line(event) == f"12:00:00.123  task.progress       task:1  progress_message={SHOWN}  reason={SHOWN}"
    assert watching.as_text(event) == json.dumps(event, ensure_ascii=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert json.loads(watching.as_text(event)) == event
    assert watching.as_text(event).isprintable()


def test_json_on_a_terminal_is_still_json_and_steers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    print_json({"message": FORGED})
    shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())  # without the colours
    assert shown == f'{{\n  "message": "{SHOWN}"\n}}\n'
    assert json.loads(shown) == {"message": FORGED}


def test_two_services_cannot_have_one_port() -> None:
    port = free_port()
    with pytest.raises(Failure, match=f"rest-api and worker cannot both listen on port {port}"):
        require_free("127.0.0.1", {"rest-api": port, "worker": port})


def test_a_free_port_is_free_even_when_it_was_just_used() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server, socket.create_connection(server.getsockname()):
        accepted, _ = server.accept()
        accepted.close()  # the side that closes first lingers
        port = server.getsockname()[1]
        with pytest.raises(Failure, match=f"port {port}, which worker needs, is taken"):
            require_free("127.0.0.1", {"worker": port})
    require_free("127.0.0.1", {"worker": port})
