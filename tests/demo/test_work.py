"""The demo's work on files, held against the tools that everybody has."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from devmesh.demo import comparison, extracts, files, measures, plan, words
from devmesh.demo.comparison import Part
from devmesh.demo.files import Found, Nothing

UTF8 = {**os.environ, "LC_ALL": "C.UTF-8"}
# Sorted as whole names are, byte by byte: "-" comes before "/", so "a-b" before "a/z".
TEXTS = {
    "a-b": b"one\n",
    "a/deep/er": b"two words, no end of line",
    "a/z": "dash \u2014 dash\nno\u00a0break\nwide\u3000space\n".encode(),
    "b.md": b"# Head\n```\n# no head\n```\n\n## Tail\n",
    "odd 'name'\n": b"tab\tand\rreturn \x0b\x0c\n\n\n",
    "same": b"one\n",
    "tool.py": b"async def a(): pass\n  def b(): pass\nundef c\n# TODO and FIXME\n# TODOs\n",
}
LEFT_OUT = {
    "binary": b"a\0b",
    "binary-late": b"a\n" * 40_000 + b"\0",
    "latin": b"fine\n" * 1_000 + b"caf\xe9\n",
    "empty": b"",
    ".hidden": b"hidden\n",
    ".git/config": b"hidden\n",
    "large": b"x" * (files.FILE_BYTES_MAX + 1),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, data in {**TEXTS, **LEFT_OUT}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "link").symlink_to("same")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def wc(data: bytes) -> list[int]:
    counted = subprocess.run(["wc"], input=data, env=UTF8, capture_output=True, check=True)
    return [int(number) for number in counted.stdout.split()]


def counted_by_hand(found: Found) -> list[int]:
    done = subprocess.run(files.by_hand(found), shell=True, capture_output=True, check=True)
    assert done.stderr == b""
    return [int(number) for number in done.stdout.split()[:3]]


def totals(found: Found) -> list[int]:
    measured = [measures.measure(name, data) for name, data in files.contents(found).items()]
    return [
        sum(file.lines for file in measured),
        sum(file.words for file in measured),
        sum(file.bytes for file in measured),
    ]


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_is_measured_as_wc_does(name: str) -> None:
    found = measures.measure(name, TEXTS[name])
    assert [found.lines, found.words, found.bytes] == wc(TEXTS[name])
    assert found.longest_line == max(len(line) for line in TEXTS[name].decode().split("\n"))


def test_exactly_the_text_files_are_found_and_the_others_are_counted_under_their_reason(place: Path) -> None:
    found = files.find(place)
    assert found.files == sorted(TEXTS, key=str.encode)
    assert found.skipped == {
        "binary": 3, "empty": 1, "hidden": 2, "linked": 1, "over 1 MiB": 1, "special": 1,
    }  # fmt: skip
    assert found.bytes == sum(map(len, TEXTS.values()))
    assert not found.is_cut


def test_the_printed_command_counts_the_same_files(place: Path) -> None:
    found = files.find(place)
    assert counted_by_hand(found) == totals(found)
    single = files.find(place / "odd 'name'\n")
    assert counted_by_hand(single) == totals(single) == wc(TEXTS["odd 'name'\n"])


@pytest.mark.parametrize("bound", ["FILES_MAX", "TOTAL_BYTES_MAX", "NAMES_BYTES_MAX", "LOOKED_AT_MAX"])
def test_a_bound_that_is_reached_is_said_and_the_printed_command_keeps_it(
    place: Path, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "a" / "more").mkdir()
    monkeypatch.setattr(
        files, bound, {"FILES_MAX": 3, "TOTAL_BYTES_MAX": 90, "NAMES_BYTES_MAX": 18, "LOOKED_AT_MAX": 10}[bound]
    )
    found = files.find(place)
    assert found.is_cut
    assert 0 < len(found.files) < len(TEXTS)
    assert found.files == sorted(TEXTS, key=str.encode)[: len(found.files)]
    assert counted_by_hand(found) == totals(found)
    assert any("there are more" in line for line in files.account(found))


def test_where_there_is_nothing_to_work_on_it_says_why(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\0")
    (tmp_path / "none").mkdir()
    for name, why in (("absent", "does not exist"), ("none", "holds no text"), ("binary", "holds no text .*1 binary")):
        with pytest.raises(Nothing, match=why):
            files.find(tmp_path / name)


def test_what_changed_is_noticed(place: Path) -> None:
    found = files.find(place)
    before = files.contents(found)
    assert files.changed(found, before) == []
    (place / "same").write_text("other\n")
    (place / "a-b").unlink()
    assert files.changed(found, before) == ["a-b", "same"]


def test_headings_functions_and_marks_are_extracted() -> None:
    markdown, python = (extracts.extract(name, TEXTS[name]) for name in ("b.md", "tool.py"))
    assert (markdown.headings, markdown.functions, markdown.marks) == (2, 0, 0)
    assert (python.headings, python.functions, python.marks, python.mark_lines) == (0, 2, 1, [4])


def test_the_shares_of_the_alphabet_give_the_most_frequent_words_of_all() -> None:
    assert sorted("".join(words.SHARES)) == list("abcdefghijklmnopqrstuvwxyz")
    data = b"Zebra zebra, apple_apple x9lorem KIWIS\xc3\xa9kiwi and the tiny " * 3 + b"kiwis"
    expected = Counter(re.findall(rb"[a-z]{4,}", data.lower()))
    shares = [words.top(words.count(data, letters)) for letters in words.SHARES]
    found = words.most_frequent(word for share in shares for word in share)
    assert {word.word.encode(): word.count for word in found} == expected
    assert [word.word for word in found] == ["apple", "zebra", "kiwis", "kiwi", "lorem", "tiny"]


def test_parts_in_any_order_compare_to_what_one_place_gives(place: Path) -> None:
    found = files.find(place)
    contents = files.contents(found)
    expected = plan.local_result(found, contents)
    parts = [
        *(Part(measured=[measures.measure(name, data)]) for name, data in contents.items()),
        *(Part(extracted=[extracts.extract(name, data)]) for name, data in contents.items()),
        *(Part(counted=words.top(sum((words.count(data, letters) for data in contents.values()), Counter())))
          for letters in words.SHARES),
    ]  # fmt: skip
    assert comparison.compare(parts[::-1]) == expected
    assert [group.paths for group in expected.duplicates] == [["a-b", "same"]]
    assert expected.largest[0].path == "tool.py"
    assert expected.first_marks == ["tool.py:4"]
    assert comparison.differences(expected, expected) == []
    [difference] = comparison.differences(
        expected, comparison.compare([*parts, Part(counted=[words.WordCount("xxxx", 9)])])
    )
    assert difference.startswith("frequent_words: expected [")


def test_every_file_is_in_one_task_of_its_kind_and_nobody_else_is_asked(tmp_path: Path) -> None:
    for count in (1, 11, 12, 13, 119, 121, 400):
        names = [f"f{number:03}" for number in range(count)]
        made = plan.make(Found("/place", files=names), "demo-1")
        for kind in ("measure", "extract"):
            batches = [spec["parameters"]["files"] for spec in made.subtasks if kind in spec["required_capabilities"]]
            assert [name for batch in batches for name in batch] == names
            assert max(map(len, batches)) <= plan.FILES_PER_TASK_MAX
        assert all("demo-1" in spec["required_capabilities"] for spec in (*made.subtasks, made.reduce))


@pytest.mark.parametrize("count", [1, 7, 20, 21, 208, 400])
def test_the_reports_that_are_ahead_are_those_that_a_task_will_make(count: int) -> None:
    every = plan.report_every(count)
    reports = [done for done in range(1, count + 1) if done % every == 0 or done == count]
    assert len(reports) <= plan.REPORTS_MAX
    for made, done in enumerate([0, *reports]):
        assert plan.reports_ahead(count, done / count) == len(reports) - made
