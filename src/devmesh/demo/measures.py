"""What there is to measure of a file: the counts of `wc`, its longest line, and its SHA-256. Pure."""

from __future__ import annotations

import hashlib
import re

import msgspec

# As `wc -w` has it in a UTF-8 locale: no-break spaces separate words, and what cannot be seen alone is no word.
SPACES = "\t-\r \u00a0\u1680\u2000-\u200a\u202f\u205f\u2060\u3000"
_RUN = re.compile(f"[^{SPACES}]+")
_UNSEEN = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)))


class Measured(msgspec.Struct):
    path: str
    lines: int  # line feeds, as `wc -l` counts
    words: int
    bytes: int
    longest_line: int  # in characters
    sha256: str


def measure(path: str, data: bytes) -> Measured:
    text = data.decode(errors="replace")
    return Measured(
        path=path,
        lines=data.count(b"\n"),
        words=sum(1 for run in _RUN.findall(text) if run.strip(_UNSEEN)),
        bytes=len(data),
        longest_line=max(map(len, text.split("\n"))),
        sha256=hashlib.sha256(data).hexdigest(),
    )
