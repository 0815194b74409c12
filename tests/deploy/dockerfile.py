"""A strict reader of Dockerfiles: it knows what ours uses, and takes nothing else for granted."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

KNOWN = {
    "FROM",
    "WORKDIR",
    "RUN",
    "COPY",
    "LABEL",
    "ENV",
    "USER",
    "EXPOSE",
    "STOPSIGNAL",
    "HEALTHCHECK",
    "ENTRYPOINT",
    "CMD",
}


class Instruction(NamedTuple):
    keyword: str
    arguments: str
    line: int

    @property
    def exec_form(self) -> list[str]:
        """The words of a JSON array, as which it has to be written."""
        words = json.loads(self.arguments)
        assert isinstance(words, list), f"line {self.line} is not in exec form"
        assert all(isinstance(word, str) for word in words)
        return words

    @property
    def pairs(self) -> dict[str, str]:
        """Of ENV and LABEL."""
        return dict(word.split("=", 1) for word in shlex.split(self.arguments))


class Stage(NamedTuple):
    image: str
    name: str
    instructions: list[Instruction]

    def all(self, keyword: str) -> list[Instruction]:
        return [instruction for instruction in self.instructions if instruction.keyword == keyword]

    def one(self, keyword: str) -> Instruction:
        [found] = self.all(keyword)
        return found


def read(path: Path) -> list[Stage]:
    """Raises AssertionError that names the line of what cannot be understood."""
    stages: list[Stage] = []
    for instruction in _instructions(path.read_text()):
        if instruction.keyword == "FROM":
            found = re.fullmatch(r"(\S+)(?: AS ([a-z][a-z0-9-]*))?", instruction.arguments)
            assert found is not None, f"line {instruction.line}: FROM {instruction.arguments}"
            stages.append(Stage(found[1], found[2] or "", []))
        else:
            assert stages, f"line {instruction.line}: before the first FROM"
            stages[-1].instructions.append(instruction)
    return stages


def _instructions(text: str) -> list[Instruction]:
    found, continued, begun = [], "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("#") or not (line.strip() or continued):
            continue
        assert line.strip(), f"line {number}: an empty line within an instruction"
        begun = begun if continued else number
        if line.endswith("\\"):
            continued += line[:-1].strip() + " "
            continue
        keyword, _, arguments = (continued + line.strip()).partition(" ")
        assert keyword in KNOWN, f"line {begun}: {keyword} is not known"
        assert arguments.strip(), f"line {begun}: {keyword} of nothing"
        found.append(Instruction(keyword, arguments.strip(), begun))
        continued = ""
    assert not continued, "the last instruction does not end"
    return found
