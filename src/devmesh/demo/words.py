"""The most frequent words of many files, counted in shares of the alphabet. Pure.

Each share looks at all files, but only at words that begin with its letters. So the shares have no word in common, and the most
frequent words of all are among the most frequent of the shares: few figures travel, and the result is exact.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import msgspec

SHARES = ("abc", "defgh", "ijklmnop", "qrs", "tuvwxyz")
LETTERS_MIN = 4  # shorter words say little
KEPT_MAX = 10


class WordCount(msgspec.Struct):
    word: str
    count: int


def count(data: bytes, letters: str) -> Counter[bytes]:
    """The words of letters a-z, case ignored, that begin with one of these letters."""
    pattern = rb"(?<![a-z])[%s][a-z]{%d,}" % (letters.encode(), LETTERS_MIN - 1)
    return Counter(re.findall(pattern, data.lower()))


def most_frequent(counts: Iterable[WordCount]) -> list[WordCount]:
    """The first few; equal ones in the order of the alphabet."""
    return sorted(counts, key=lambda found: (-found.count, found.word))[:KEPT_MAX]


def top(counter: Counter[bytes]) -> list[WordCount]:
    return most_frequent(WordCount(word.decode(), number) for word, number in counter.items())
