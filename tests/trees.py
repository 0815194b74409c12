"""Other versions of the program: a copy of its source with other migrations, or an earlier commit's, run as it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import devmesh
from tests.cli.commands import devmesh as run

ROOT = Path(__file__).parent.parent
PACKAGE = Path(devmesh.__file__).parent


class Tree:
    """A source tree of its own. Services and commands run from it with `settings`."""

    def __init__(self, directory: Path, source: Path = PACKAGE) -> None:
        self.source = directory / "tree" / "src"
        shutil.copytree(source, self.source / "devmesh", ignore=shutil.ignore_patterns("__pycache__"))

    @property
    def settings(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.source)}

    @property
    def migrations(self) -> Path:
        return self.source / "devmesh" / "store" / "migrations"

    @property
    def newest(self) -> int:
        return max(int(path.name[:6]) for path in self.migrations.glob("*.up.sql"))

    def write(self, version: int, name: str, up: str, down: str = "select 1;\n") -> str:
        """Adds a migration, or writes it anew. Its label."""
        label = f"{version:06d}_{name}"
        (self.migrations / f"{label}.up.sql").write_text(up)
        (self.migrations / f"{label}.down.sql").write_text(down)
        return label

    def write_catalogue(self) -> None:
        """As a developer does who has written a migration."""
        done = run(self.source, "migrate", "catalogue", "--write", settings=self.settings)
        assert done.returncode == 0, done.stderr


def git(*arguments: str) -> str:
    """What git says of this repository; nothing, where there is none."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def commit_before_newest_migration() -> str:
    """The last commit whose program did not know the newest migration; nothing, if the history does not tell."""
    newest = sorted((PACKAGE / "store" / "migrations").glob("*.up.sql"))[-1].relative_to(ROOT)
    if git("rev-parse", "--is-shallow-repository") != "false" or git("status", "--porcelain", str(newest)):
        return ""
    added = git("log", "--diff-filter=A", "--format=%H", "-1", "--", str(newest))
    return git("rev-parse", "--verify", "--quiet", f"{added}^") if added else ""


def check_out(commit: str, directory: Path) -> Tree:
    """The program of a commit."""
    archive = subprocess.run(
        ["git", "archive", commit, "src/devmesh"], cwd=ROOT, capture_output=True, timeout=30, check=True
    )
    directory.mkdir()
    subprocess.run(["tar", "-x", "-C", directory], input=archive.stdout, timeout=30, check=True)
    return Tree(directory, directory / "src" / "devmesh")
