"""The plan: which tasks the work is cut into, and which agents are there for them. Pure.

Measuring and extracting are shared out by files, counting words by letters; comparing comes last and is given the results.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from devmesh.client.tasks import Spec
from devmesh.demo import words
from devmesh.demo.comparison import Comparison, Part, compare
from devmesh.demo.extracts import extract
from devmesh.demo.files import Found
from devmesh.demo.measures import measure

LEASE_S = 2.0  # short, so that the work of a killed agent comes back soon
FILES_PER_TASK_MAX = 10
TASKS_WANTED = 12  # of each kind, before a task gets more than one file
REPORTS_MAX = 20  # of a task's progress, however many files it has

# Two of a kind can do without one of them.
FLEET = {
    "measurer-1": "measure",
    "measurer-2": "measure",
    "counter-1": "count",
    "counter-2": "count",
    "extractor-1": "extract",
    "comparer-1": "compare",
}


class Plan(NamedTuple):
    found: Found
    run: str
    """A capability that only this run's agents offer, so that nobody else is given its tasks."""
    subtasks: Sequence[Spec]
    reduce: Spec


def make(found: Found, run: str) -> Plan:
    size = min(FILES_PER_TASK_MAX, math.ceil(len(found.files) / TASKS_WANTED))
    batches = [found.files[start : start + size] for start in range(0, len(found.files), size)]
    shares: list[Spec] = []
    for kind in ("measure", "extract"):
        for number, batch in enumerate(batches, start=1):
            shares.append(_spec(f"{kind} {number}/{len(batches)}", kind, run, root=found.root, files=batch))
        if kind == "measure":
            shares += [
                _spec(
                    f"count {letters[0]}-{letters[-1]}",
                    "count",
                    run,
                    root=found.root,
                    files=found.files,
                    letters=letters,
                )
                for letters in words.SHARES
            ]
    return Plan(found, run, shares, _spec("compare all", "compare", run))


def report_every(files: int) -> int:
    """After how many files a task of so many reports its progress; it also does after the last one."""
    return math.ceil(files / REPORTS_MAX)


def reports_ahead(files: int, progress: float) -> int:
    """How many reports a task of so many files has yet to make."""
    return math.ceil(round((1 - progress) * files) / report_every(files)) if files else 0


def _spec(title: str, capability: str, run: str, **parameters: object) -> Spec:
    return Spec(
        title=title,
        type="demo",
        required_capabilities=[capability, run],
        parameters=parameters,
        lease_s=LEASE_S,
        tags=[run],
    )


def local_result(found: Found, contents: Mapping[str, bytes]) -> Comparison:
    """The same work done in one place: what the mesh's result is held against."""
    counter: collections.Counter[bytes] = collections.Counter()
    for letters in words.SHARES:
        for data in contents.values():
            counter.update(words.count(data, letters))
    whole = Part(
        measured=[measure(name, contents[name]) for name in found.files],
        extracted=[extract(name, contents[name]) for name in found.files],
        counted=words.top(counter),
    )
    return compare([whole])
