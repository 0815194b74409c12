"""Every line of docs/faults.md names a test that is there, and nothing that an operator would look for in vain."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
LINES = [line for line in PAGE.splitlines() if line.startswith("|") and not line.startswith(("|---", "| fault"))]


@pytest.mark.parametrize("line", LINES, ids=[line.split("|")[1].strip()[:60] for line in LINES])
def test_a_line_has_its_four_parts_and_a_test_that_is_there(line: str) -> None:
    fault, does, seen, tests = (part.strip() for part in line.strip("|").split(" | "))
    assert fault
    assert does
    assert seen
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
    assert named
    for file, name in named:
        module = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert name in [node.name for node in module.body if isinstance(node, kinds)], f"{file} has no {name}"


@pytest.mark.parametrize(("pattern", "page"), [(r"`(devmesh_\w+)", "metrics.md"), (r"`(DEVMESH_\w+)`", "settings.md")])
def test_what_it_sends_an_operator_to_is_there(pattern: str, page: str) -> None:
    known = (ROOT / "docs" / page).read_text(encoding="utf-8")
    names = set(re.findall(pattern, PAGE))
    assert names
    assert [name for name in sorted(names) if f"`{name}`" not in known] == []
