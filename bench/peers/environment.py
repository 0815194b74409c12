"""The peers' own environment: installed into a folder that git ignores, once for each change of what is named."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = Path(".bench-peers")
INSTALL_LIMIT_S = 900.0


class NotInstalled(Exception):
    """Why peers of a language cannot be had here."""


def python() -> Path:
    """The interpreter with the Python peers. Raises NotInstalled."""
    folder = FOLDER / "python"
    wanted = HERE / "requirements.txt"
    if not _is_fresh(folder, wanted):
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--requirement", str(wanted)])
        _note(folder, wanted)
    return (folder / "bin" / "python").absolute()


def node() -> tuple[str, Path]:
    """The interpreter and the folder with the JavaScript peers. Raises NotInstalled."""
    interpreter, npm = shutil.which("node"), shutil.which("npm")
    if interpreter is None or npm is None:
        raise NotInstalled("there is no node and npm")
    folder, wanted = FOLDER / "node", HERE / "package.json"
    if not _is_fresh(folder, wanted):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(wanted, folder)
        _run(
            [
                npm,
                "install",
                "--no-audit",
                "--no-fund",
                "--no-package-lock",
                "--ignore-scripts",
                "--prefix",
                str(folder),
            ]
        )
        _note(folder, wanted)
    for script in HERE.glob("*.js"):
        shutil.copy(script, folder)
    return interpreter, folder.absolute()


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{command[0]} took too long") from None
    if done.returncode != 0:
        raise NotInstalled(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"{command[0]} failed")


def _digest(wanted: Path) -> str:
    return hashlib.sha256(wanted.read_bytes()).hexdigest()


def _is_fresh(folder: Path, wanted: Path) -> bool:
    stamp = folder / "installed.stamp"
    return stamp.exists() and stamp.read_text() == _digest(wanted)


def _note(folder: Path, wanted: Path) -> None:
    (folder / "installed.stamp").write_text(_digest(wanted))
