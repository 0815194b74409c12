"""Applications beside the database: what is said of those that cannot be loaded, and the time that handlers have to end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devmesh.engine.app_worker import AppUnusable, handlers_limit_s, load_app

BEGIN = """\
import os
from devmesh.client import Mesh
mesh = Mesh()
"""
TWICE = """
@mesh.job("x")
def one(job): pass

@mesh.job("x")
def two(job): pass
"""
COROUTINE = """
@mesh.job("x", in_process=True)
async def one(job): pass
"""
NO_MESH_JOB = {
    "@mesh.job\ndef one(job): pass": "TypeError: type: expected a name, as in @mesh.job('resize'), and not <function one at",
    "@mesh.job('x y')\ndef one(job): pass": "ValueError: type: expected 1 to 100 letters, digits and _.:/+-, the first a",
    "@mesh.job('x', queue='')\ndef one(job): pass": "ValueError: queue: expected 1 to 100 letters, digits and _.:/+-,",
    "@mesh.job('x')\nclass One: pass": "ValueError: jobs of type 'x': expected a function, and not a class",
    "mesh.job('x')(3)": "ValueError: jobs of type 'x': expected a function, and not 3",
    "@mesh.job('x')\ndef one(job): yield 1": "ValueError: jobs of type 'x': a function that yields has no result;",
    "@mesh.job('x')\nasync def one(job): yield 1": "ValueError: jobs of type 'x': a function that yields has no result;",
    "@mesh.job('x')\ndef one(): pass": "ValueError: jobs of type 'x': the function is called with the job and nothing else,",
    "@mesh.job('x')\nasync def one(job, base): pass": "ValueError: jobs of type 'x': the function is called with the job and",
    "mesh.job('x', in_process=True)(lambda job: 1)": "ValueError: jobs of type 'x': a process imports its function by its",
    "Mesh(capacity=0)": "ValueError: capacity: expected a whole number from 1 to 10,000, and not 0",
    "Mesh(capacity=True)": "TypeError: capacity: expected a whole number, and not True",
    "Mesh(lease_s=0.2)": "ValueError: lease_s: expected a number from 0.5 to 86,400.0, and not 0.2",
    "Mesh(lease_s='30')": "TypeError: lease_s: expected a number, and not '30'",
    "Mesh(drain_limit_s=float('nan'))": "ValueError: drain_limit_s: expected a number from 0 to inf, and not nan",
    "Mesh(worker='a\\nb')": "ValueError: worker: expected 1 to 200 characters on one line, and not 'a\\nb'",
}
WELL = """
import functools
from devmesh.client import Mesh
mesh = Mesh(drain_limit_s=float("inf"), worker="", lease_s=1)

class Counts:
    async def __call__(self, job): return 1

def gives(base):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(job): return function(job, base)
        return wrapper
    return decorate

@mesh.job("given")
@gives("base")
def given(job, base): pass

@mesh.job("default")
def default(job, *more, base=None): pass

mesh.job("partial")(functools.partial(lambda base, job: 1, "base"))
mesh.job("method")(Counts().__call__)
mesh.job("builtin")(print)
mesh.job("object")(Counts())
"""
WRAPPED = """
import functools

def other(function):
    @functools.wraps(function)
    def wrapper(job): return function(job)
    return wrapper

@other
@mesh.job("x", in_process=True)
def one(job): pass
"""
A_COROUTINE = "jobs of type 'x': a coroutine runs in this process's loop; give a plain function"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where applications are looked for; what is loaded from there is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in {"app_ill", "app_well", "app_helper"} & sys.modules.keys():
        del sys.modules[name]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("os.nothing", "AttributeError: module 'os' has no attribute 'nothing' (app_ill.py, line 4)"),
        ("def (", "SyntaxError: invalid syntax (app_ill.py, line 4)"),
        ("raise SystemExit(3)", "SystemExit: 3 (app_ill.py, line 4)"),
        ("assert not mesh", "AssertionError (app_ill.py, line 4)"),
        ("raise ValueError('first\\nsecond')", "ValueError: first second (app_ill.py, line 4)"),
        (
            "import json\njson.loads('[')",
            "JSONDecodeError: Expecting value: line 1 column 2 (char 1) (app_ill.py, line 5)",
        ),
        ("import nothing_here", "ModuleNotFoundError: No module named 'nothing_here' (app_ill.py, line 4)"),
        ("import app_helper", "ZeroDivisionError: division by zero (app_helper.py, line 2)"),
        (TWICE, "ValueError: jobs of type 'x' have two handlers (app_ill.py, line 8)"),
        (COROUTINE, f"ValueError: {A_COROUTINE} (app_ill.py, line 5)"),
    ],
)
def test_a_mistake_in_an_application_is_told_with_its_place(directory: Path, code: str, said: str) -> None:
    (directory / "app_helper.py").write_text("import os\n1 / 0\n")
    (directory / "app_ill.py").write_text(BEGIN + code + "\n")
    with pytest.raises(AppUnusable) as raised:
        load_app("app_ill:mesh")
    assert str(raised.value) == f"app_ill cannot be imported: {said}"


@pytest.mark.parametrize(("code", "said"), NO_MESH_JOB.items())
def test_what_can_do_no_jobs_is_refused_where_it_is_declared(directory: Path, code: str, said: str) -> None:
    (directory / "app_ill.py").write_text(BEGIN + code + "\n")
    with pytest.raises(AppUnusable) as raised:
        load_app("app_ill:mesh")
    told = str(raised.value).removeprefix("app_ill cannot be imported: ")
    assert told.startswith(said)
    assert "(app_ill.py, line " in told


def test_a_script_that_runs_its_mesh_is_loaded_as_well(directory: Path) -> None:
    """Or it would work within the import, and begin again when it is told to stop."""
    (directory / "app_well.py").write_text(BEGIN + "@mesh.job('x')\ndef one(job): pass\nmesh.run()\n")
    assert list(load_app("app_well:mesh").job_handlers) == ["x"]


def test_what_a_job_can_be_given_to_may_be_declared(directory: Path) -> None:
    (directory / "app_well.py").write_text(WELL)
    handlers = load_app("app_well:mesh").job_handlers
    assert [name for name, handler in handlers.items() if handler.is_coroutine] == ["method", "object"]
    assert len(handlers) == 6


def test_a_function_that_no_process_can_import_is_told_before_it_is_to(directory: Path) -> None:
    (directory / "app_ill.py").write_text(BEGIN + WRAPPED)
    with pytest.raises(AppUnusable) as raised:
        load_app("app_ill:mesh")
    assert str(raised.value).startswith(
        "app_ill:mesh cannot be run: jobs of type 'x': a process cannot import its function:"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("app_nowhere:mesh", "app_nowhere cannot be imported: ModuleNotFoundError: No module named 'app_nowhere'"),
        ("app_well", "'app_well' names no mesh: say module:name, such as app:mesh"),
        ("json:dumps", "json:dumps is no Mesh but a function"),
        (
            "app_well.py:mesh",
            "'app_well.py:mesh' names no module, which app.py has as app: say module:name, such as app:mesh",
        ),
        (
            "./app_well:mesh",
            "'./app_well:mesh' names no module, which app.py has as app: say module:name, such as app:mesh",
        ),
        (":mesh", "':mesh' names no mesh: say module:name, such as app:mesh"),
        ("app_well:absent", "app_well has no 'absent'"),
        ("app_well:mesh", "app_well:mesh has no jobs: declare some with @mesh.job(…)"),
    ],
)
def test_what_is_not_there_is_named(directory: Path, name: str, said: str) -> None:
    (directory / "app_well.py").write_text(BEGIN)
    with pytest.raises(AppUnusable) as raised:
        load_app(name)
    assert str(raised.value) == said


def test_who_has_nothing_but_agents_is_told_what_runs_them(directory: Path) -> None:
    (directory / "app_well.py").write_text(BEGIN + "@mesh.agent('x')\ndef one(task): pass\n")
    with pytest.raises(AppUnusable, match=r"app_well:mesh has no jobs: .*; agents are run by mesh.run\(\)$"):
        load_app("app_well:mesh")


@pytest.mark.parametrize(
    ("drain_limit_s", "grace_s", "limit_s"), [(20, 10, 8), (3, 10, 3), (20, 60, 20), (20, 1, 0.5), (20, 0, 0)]
)
def test_handlers_have_the_time_of_their_application_within_the_grace(
    drain_limit_s: float, grace_s: float, limit_s: float
) -> None:
    assert handlers_limit_s(drain_limit_s, grace_s) == limit_s
