"""What the parts of the work say together: totals, the largest files, duplicates, the most frequent words. Pure."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import msgspec

from devmesh.demo import words
from devmesh.demo.extracts import Extracted
from devmesh.demo.measures import Measured
from devmesh.demo.words import WordCount

LARGEST_SHOWN = 5
MARKS_SHOWN = 5


class Part(msgspec.Struct, omit_defaults=True):
    """What one task found; each kind of task fills in its own."""

    measured: list[Measured] = []
    extracted: list[Extracted] = []
    counted: list[WordCount] = []


class Sized(msgspec.Struct):
    path: str
    bytes: int


class LongestLine(msgspec.Struct):
    path: str
    characters: int


class Duplicates(msgspec.Struct):
    """Files with the same content."""

    sha256: str
    bytes: int
    paths: list[str]


class Comparison(msgspec.Struct):
    files: int
    lines: int
    words: int
    bytes: int
    longest_line: LongestLine
    largest: list[Sized]
    duplicates: list[Duplicates]
    frequent_words: list[WordCount]
    headings: int
    functions: int
    marks: int
    first_marks: list[str]  # as path:line


def compare(parts: Sequence[Part]) -> Comparison:
    """The order of the parts makes no difference. There is at least one measured file."""
    measured = sorted((file for part in parts for file in part.measured), key=lambda file: file.path)
    extracted = sorted((file for part in parts for file in part.extracted), key=lambda file: file.path)
    longest = max(measured, key=lambda file: file.longest_line)
    largest = sorted(measured, key=lambda file: (-file.bytes, file.path))
    marks = [f"{file.path}:{line}" for file in extracted for line in file.mark_lines]
    return Comparison(
        files=len(measured),
        lines=sum(file.lines for file in measured),
        words=sum(file.words for file in measured),
        bytes=sum(file.bytes for file in measured),
        longest_line=LongestLine(longest.path, longest.longest_line),
        largest=[Sized(file.path, file.bytes) for file in largest[:LARGEST_SHOWN]],
        duplicates=_duplicates(measured),
        frequent_words=words.most_frequent(word for part in parts for word in part.counted),
        headings=sum(file.headings for file in extracted),
        functions=sum(file.functions for file in extracted),
        marks=sum(file.marks for file in extracted),
        first_marks=marks[:MARKS_SHOWN],
    )


def _duplicates(measured: Sequence[Measured]) -> list[Duplicates]:
    same: dict[str, list[Measured]] = collections.defaultdict(list)
    for file in measured:
        same[file.sha256].append(file)
    groups = [
        Duplicates(sha256, files[0].bytes, [file.path for file in files])
        for sha256, files in same.items()
        if len(files) > 1
    ]
    return sorted(groups, key=lambda group: (-group.bytes * len(group.paths), group.paths))


def differences(expected: Comparison, found: Comparison) -> list[str]:
    """What the two say differently, a line each."""
    return [
        f"{name}: expected {_short(getattr(expected, name))}, found {_short(getattr(found, name))}"
        for name in Comparison.__struct_fields__
        if getattr(expected, name) != getattr(found, name)
    ]


def _short(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 200 else text[:199] + "…"
