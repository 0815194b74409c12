"""What this machine gives: settings, a directory, open files."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import stat
from pathlib import Path

from devmesh.cli.checks.case import Case
from devmesh.cli.checks.finding import Finding, note, ok, problem, warning
from devmesh.cli.loading import DEV_ENV, ENCRYPTION_ENV

FREE_BYTES_MIN, FREE_BYTES_LOW = 200 << 20, 1 << 30
FILES_MIN, FILES_LOW = 256, 4096


async def settings(case: Case) -> list[Finding]:
    """Whether every setting can be used and every name means something."""
    groups = (case.settings, case.client)
    problems = dict.fromkeys(problem for group in groups for problem in group.problems)
    warnings = dict.fromkeys(warning for group in groups for warning in group.warnings)
    found = [problem(line, "correct it where it is set; `devmesh settings` shows all of them") for line in problems]
    found += [warning(line, "correct the name or remove it") for line in warnings]
    given = sum(1 for group in groups for setting in group.describe() if setting.source != "default")
    return found or [ok(f"all can be used; {given} are not the default")]


async def data_directory(case: Case) -> list[Finding]:
    """Whether `devmesh up` can keep its state, and keeps its key to itself."""
    return await asyncio.to_thread(_look_at_directory, case.directory)


def _look_at_directory(directory: Path) -> list[Finding]:
    try:
        if not directory.exists():
            return [note(f"{directory} is not there; `devmesh up` makes it, other services do not need it")]
        if not directory.is_dir():
            return [problem(f"{directory} is not a directory", "name another with --data-dir or DEVMESH_DATA_DIR")]
        found = _access(directory) or [*_private_files(directory), *_space(directory)]
    except OSError as error:
        return [problem(f"{directory} cannot be looked at: {error.strerror}", "name another with --data-dir")]
    return found or [ok(f"{directory.absolute()}, {_size(shutil.disk_usage(directory).free)} free")]


def _access(directory: Path) -> list[Finding]:
    if os.access(directory, os.W_OK | os.X_OK):
        return []
    owner = directory.stat().st_uid
    advice = f"run as its owner, or: sudo chown -R {os.geteuid()} {directory.absolute()}"
    return [problem(f"{directory} cannot be written by user {os.geteuid()}; it belongs to user {owner}", advice)]


def _private_files(directory: Path) -> list[Finding]:
    """The files that hold secrets are for nobody else."""
    found = []
    for name in (DEV_ENV, ENCRYPTION_ENV):
        path = directory.absolute() / name
        if path.exists() and (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
            words = f"{path} holds secrets and may be read by others (mode {mode:04o})"
            found.append(
                problem(words, f"chmod 600 {path}", "and replace what may have been read: devmesh keys rotate")
            )
    return found


def _space(directory: Path) -> list[Finding]:
    free_bytes = shutil.disk_usage(directory).free
    found = f"the disk of {directory} has {_size(free_bytes)} free"
    advice = "make room, or name a directory on another disk with --data-dir"
    if free_bytes < FREE_BYTES_MIN:
        return [problem(found, advice)]
    return [warning(found, advice)] if free_bytes < FREE_BYTES_LOW else []


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count >> 20} MiB"


async def file_limit(case: Case) -> list[Finding]:
    """Whether a service may open a file for each connection."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= FILES_LOW:
        many = "without limit" if limit == resource.RLIM_INFINITY else f"{limit:,}"
        return [ok(f"{many}; a service takes all of them, one for each connection")]
    advice = ("ulimit -Hn 65536  (as root)", "systemd: LimitNOFILE=65536; containers: --ulimit nofile=65536")
    found = f"a process may open {limit:,} files; each connection of an agent takes one"
    return [problem(found, *advice) if limit < FILES_MIN else warning(found, *advice)]
