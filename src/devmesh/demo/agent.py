"""An agent of the demo, as a process of its own: `python -m devmesh.demo.agent NAME CAPABILITY…`

All there is to an agent: functions that take a task and return its result, and `Mesh` to bring them together. The first
capability says which function it is; the others are only offered.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from devmesh.client import BlockingTaskContext, Fail, Mesh
from devmesh.demo import words
from devmesh.demo.comparison import Comparison, Part
from devmesh.demo.comparison import compare as compare_parts
from devmesh.demo.extracts import extract as extract_from
from devmesh.demo.measures import measure as measure_file
from devmesh.demo.plan import report_every


def measure(task: BlockingTaskContext) -> Part:
    return Part(measured=[measure_file(name, data) for name, data in files_of(task)])


def extract(task: BlockingTaskContext) -> Part:
    return Part(extracted=[extract_from(name, data) for name, data in files_of(task)])


def count(task: BlockingTaskContext) -> Part:
    counter: Counter[bytes] = Counter()
    for _, data in files_of(task):
        counter += words.count(data, task.parameters["letters"])
    return Part(counted=words.top(counter))


def compare(task: BlockingTaskContext) -> Comparison:
    """The last step: it is given what the others have found."""
    return compare_parts(msgspec.convert(task.parameters["inputs"], list[Part]))


def files_of(task: BlockingTaskContext) -> Iterator[tuple[str, bytes]]:
    """The files of a task, one by one, with reports in between. These raise LeaseLost when the task is not ours any more."""
    names = task.parameters["files"]
    every = report_every(len(names))
    for done, name in enumerate(names, start=1):
        try:
            data = Path(task.parameters["root"], name).read_bytes()
        except OSError as error:
            raise Fail(f"{name}: {error.strerror}", retryable=False) from error
        yield name, data
        if done % every == 0 or done == len(names):
            task.progress(done / len(names), name)


HANDLERS: dict[str, Callable[[BlockingTaskContext], Any]] = {
    "measure": measure,
    "extract": extract,
    "count": count,
    "compare": compare,
}


def main(name: str, capability: str, *others: str) -> None:
    mesh = Mesh()  # finds the mesh and the key as `devmesh up` left them, or in the environment
    mesh.agent(name, capabilities=[capability, *others])(HANDLERS[capability])
    mesh.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
