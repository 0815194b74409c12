"""The image is made of what it names, and runs as nobody in particular: as far as that shows without an engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from devmesh import __version__
from tests.deploy import dockerfile
from tests.deploy.dockerfile import Instruction
from tests.deploy.files import ASKING_LIMIT_S, DOCKERFILE, KUBERNETES, PORTS, ROOT, SETTINGS, is_command, seconds

BUILD, FINAL = dockerfile.read(DOCKERFILE)
OTHERS_KNOW = {"PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}


def sources(copy: Instruction) -> list[str]:
    return copy.arguments.split()[:-1]


def shown(command: Sequence[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_stages_stand_on_one_image_pinned_by_its_minor_version() -> None:
    assert BUILD.image == FINAL.image
    assert re.fullmatch(r"python:3\.1[123]-slim-\w+", FINAL.image)
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert requires == ">=3.11,<3.14"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="these files are no working copy")
def test_what_is_copied_is_there_in_git_and_sent_to_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    known = shown(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT).splitlines()
    for copy in BUILD.all("COPY"):
        for source in sources(copy):
            assert f"!{source}" in ignored
            assert any(path == source or path.startswith(f"{source}/") for path in known), source
    [copy] = FINAL.all("COPY")
    assert copy.arguments == f"--from={BUILD.name} /opt/devmesh /opt/devmesh"


def test_everything_is_installed_from_locked_files_or_from_what_is_at_hand() -> None:
    steps = " && ".join(run.arguments for run in BUILD.all("RUN"))
    installs = re.findall(r"pip (?:--python \S+ )?(?:install|wheel).*?(?=&&|$)", steps)
    assert len(installs) == 4
    for install in installs:
        assert "--require-hashes" in install or "--no-index" in install or "--no-build-isolation" in install, install
    locked = (ROOT / "requirements-build.txt").read_text()
    for needed in tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]:
        name = re.split(r"[<>=]", needed)[0]
        assert re.search(rf"^{name}==\S+ \\\n\s+--hash=sha256:", locked, re.MULTILINE), name


def test_the_final_stage_installs_nothing_and_is_not_root() -> None:
    steps = " ".join(run.arguments for run in FINAL.all("RUN"))
    assert not re.search(r"pip|apt|apk|curl|wget|gcc|make", steps)
    user = FINAL.one("USER").arguments
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    uid = user.split(":")[0]
    assert f"--uid {uid}" in steps
    for manifest in KUBERNETES.glob("*.yaml"):
        assert set(re.findall(r"runAsUser: (\d+)", manifest.read_text())) <= {uid}


def test_it_runs_devmesh_and_is_told_to_stop_as_devmesh_expects() -> None:
    assert FINAL.one("ENTRYPOINT").exec_form == ["devmesh"]
    assert is_command(FINAL.one("CMD").exec_form)
    assert FINAL.one("STOPSIGNAL").arguments == "SIGTERM"
    assert sorted(map(int, FINAL.one("EXPOSE").arguments.split())) == sorted(PORTS.values())
    assert set(FINAL.one("ENV").pairs) <= SETTINGS | OTHERS_KNOW


@pytest.mark.parametrize("service", PORTS)
def test_the_health_check_asks_the_service_that_runs(service: str, tmp_path: Path) -> None:
    options, _, command = FINAL.one("HEALTHCHECK").arguments.partition("CMD ")
    timeout = re.search(r"--timeout=(\S+)", options)
    assert timeout is not None
    assert seconds(timeout[1]) > ASKING_LIMIT_S
    shell, flag, script = Instruction("CMD", command, 0).exec_form
    first_process = tmp_path / "cmdline"
    first_process.write_bytes(
        b"\0".join([b"/opt/devmesh/bin/python", b"/opt/devmesh/bin/devmesh", service.encode(), b""])
    )
    (tmp_path / "devmesh").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "devmesh").chmod(0o755)
    script = script.replace("/proc/1/cmdline", str(first_process))
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert shown([shell, flag, script], env=environment).split() == [service, "--health-check"]
    assert is_command([service, "--health-check"])


@pytest.mark.soak
def test_its_steps_lead_to_a_working_devmesh(tmp_path: Path) -> None:
    """What the build stage does, done in a directory of its own: the steps themselves, on this Python."""
    base, opt, build = tmp_path / "base", tmp_path / "opt", tmp_path / "build"
    shown([sys.executable, "-m", "venv", str(base)])
    build.mkdir()
    environment = {**os.environ, "PATH": f"{base / 'bin'}:{os.environ['PATH']}"}
    for instruction in BUILD.instructions:
        if instruction.keyword == "COPY":
            for source in sources(instruction):
                _copy(ROOT / source, build / source)
        elif instruction.keyword == "RUN":
            step = instruction.arguments.replace("/opt/devmesh", str(opt))
            subprocess.run(["sh", "-ec", step], cwd=build, env=environment, timeout=600, check=True)
    devmesh = str(opt / "bin" / "devmesh")
    assert shown([devmesh, "--version"]) == f"devmesh {__version__}\n"
    assert "task.create" in shown([devmesh, "call", "--list"])
    assert not (opt / "bin" / "pip").exists()
    statements = "from devmesh.store.statements import all_statements; print(len(all_statements()))"
    assert int(shown([str(opt / "bin" / "python"), "-c", statements], cwd=tmp_path)) > 100


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)
