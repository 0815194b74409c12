"""What a file has for its reader: headings, functions, and marks of unfinished work. Pure.

A heading is a line of Markdown that begins with # to ######, outside of code; the other two are what
`grep -cE '^\\s*(async +def|def|func|function|fn) +\\w'` and `grep -cwE 'TODO|FIXME|XXX|HACK'` count.
"""

from __future__ import annotations

import re

import msgspec

MARKS_SHOWN_MAX = 5  # of one file
_FUNCTION = re.compile(rb"[ \t]*(?:async +def|def|func|function|fn) +\w")
_MARK = re.compile(rb"\b(?:TODO|FIXME|XXX|HACK)\b")
_HEADING = re.compile(rb" {0,3}#{1,6}(?:[ \t]|$)")
_FENCE = re.compile(rb" {0,3}(```|~~~)")


class Extracted(msgspec.Struct):
    path: str
    headings: int
    functions: int
    marks: int  # lines that have one
    mark_lines: list[int]  # the first of them, counted from 1


def extract(path: str, data: bytes) -> Extracted:
    lines = data.split(b"\n")
    marked = [number for number, line in enumerate(lines, start=1) if _MARK.search(line)]
    return Extracted(
        path=path,
        headings=_headings(lines) if path.lower().endswith((".md", ".markdown")) else 0,
        functions=sum(1 for line in lines if _FUNCTION.match(line)),
        marks=len(marked),
        mark_lines=marked[:MARKS_SHOWN_MAX],
    )


def _headings(lines: list[bytes]) -> int:
    count = 0
    fence: bytes | None = None
    for line in lines:
        if (found := _FENCE.match(line)) is not None:
            if fence is None:
                fence = found[1]
            elif fence == found[1]:
                fence = None
        elif fence is None and _HEADING.match(line):
            count += 1
    return count
