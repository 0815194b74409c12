"""Which files the demo works on: the text files of a place, in an order that `find` and `sort` repeat.

Whatever is left out is counted under its reason. The bounds keep a demo a demo, wherever it is pointed at.
"""

from __future__ import annotations

import collections
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

FILES_MAX = 400
FILE_BYTES_MAX = 1 << 20
TOTAL_BYTES_MAX = 16 << 20
NAMES_BYTES_MAX = 100_000  # names travel with the tasks, and a message has its limit; so has a command line
LOOKED_AT_MAX = 20_000  # files and directories
HEAD_BYTES = 4096  # most binaries show themselves there


class Nothing(Exception):
    """There is nothing to work on; the message says why."""


class Found(msgspec.Struct):
    """Files by their names below `root`. `skipped` counts what was left out, by reason."""

    root: str
    is_single: bool = False  # a file was named, not a directory
    files: list[str] = []
    bytes: int = 0
    skipped: dict[str, int] = msgspec.field(default_factory=collections.Counter)
    is_cut: bool = False  # these are the first files; there are more


def own_files() -> Path:
    """The project's own files: the checkout that this package is run from or, where it was installed, the package."""
    package = Path(__file__).parent.parent
    checkout = package.parent.parent
    is_checkout = package.parent.name == "src" and (checkout / "pyproject.toml").is_file()
    return checkout if is_checkout else package


def find(path: Path) -> Found:
    """Raises `Nothing`."""
    place = path.absolute()
    if not os.path.lexists(place):
        raise Nothing(f"{path} does not exist")
    found = Found(str(place)) if place.is_dir() else Found(str(place.parent), is_single=True)
    try:
        _gather(found, iter([place.name]) if found.is_single else _names(found))
    except OSError as error:
        raise Nothing(f"{path} cannot be read: {error.strerror}") from error
    if not found.files:
        why = f" ({skipped(found)})" if found.skipped else ""
        raise Nothing(f"{path} holds no text to work on{why}")
    return found


def contents(found: Found) -> dict[str, bytes]:
    """Every file as it is now. Raises `Nothing`."""
    try:
        return {name: Path(found.root, name).read_bytes() for name in found.files}
    except OSError as error:
        raise Nothing(f"{error.filename} was there a moment ago, and cannot be read: {error.strerror}") from error


def changed(found: Found, before: Mapping[str, bytes]) -> list[str]:
    """Files that are not any more what they were."""
    now = {name: Path(found.root, name) for name in found.files}
    return [name for name, path in now.items() if not path.is_file() or path.read_bytes() != before[name]]


def many(found: Found) -> str:
    return "1 file" if len(found.files) == 1 else f"{len(found.files)} files"


def account(found: Found) -> list[str]:
    """What was found, in words."""
    place = Path(found.root, found.files[0]) if found.is_single else Path(found.root)
    lines = [f"{place}: {many(found)} of text, {found.bytes:,} bytes"]
    if found.is_cut:
        bounds = f"{FILES_MAX} files, {TOTAL_BYTES_MAX >> 20} MiB, {NAMES_BYTES_MAX:,} bytes of names"
        lines.append(f"these are the first files only, there are more: the demo takes at most {bounds}")
    if found.skipped:
        lines.append(f"left out: {skipped(found)}")
    return lines


def skipped(found: Found) -> str:
    """What was left out, in words."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(found.skipped.items(), key=lambda item: -item[1]))


def by_hand(found: Found) -> str:
    """A command that counts the same lines, words and bytes."""
    if found.is_single:
        return f"LC_ALL=C.UTF-8 wc {shlex.quote(str(Path(found.root, found.files[0])))}"
    first = f"LC_ALL=C sort -z | head -z -n {len(found.files)} | " if found.is_cut else ""
    return (
        f"(cd {shlex.quote(found.root)} && export LC_ALL=C.UTF-8"
        f" && find . -type f -not -path '*/.*' -not -empty -size -{FILE_BYTES_MAX + 1}c -print0"
        r" | xargs -0 grep -LaxvPZ '[^\x00]*' | "  # text: without NUL, and every line of it UTF-8
        f"{first}xargs -0 wc | tail -n 1)"
    )


def is_text(data: bytes) -> bool:
    """UTF-8 without a NUL: of such files everybody counts the same words."""
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


def _gather(found: Found, names: Iterator[str]) -> None:
    """Takes files until a bound is reached."""
    names_bytes = 0
    for name in names:
        path = Path(found.root, name)
        if (reason := _reason_to_skip(path)) is not None:
            found.skipped[reason] += 1
            continue
        size = path.stat().st_size
        names_bytes += len(name.encode())
        if len(found.files) == FILES_MAX or found.bytes + size > TOTAL_BYTES_MAX or names_bytes > NAMES_BYTES_MAX:
            found.is_cut = True
            return
        found.files.append(name)
        found.bytes += size


def _names(found: Found) -> Iterator[str]:
    """Every file in the order of its whole name, byte by byte, without hidden ones and links."""
    waiting = _entries(found.root, "")
    looked_at = 0
    while waiting:
        below, entry = waiting.pop()
        looked_at += 1
        if looked_at > LOOKED_AT_MAX:
            found.is_cut = True
            return
        if (reason := _reason_to_pass_by(entry)) is not None:
            found.skipped[reason] += 1
        elif entry.is_dir():
            try:
                waiting += _entries(found.root, f"{below}{entry.name}/")
            except OSError:
                found.skipped["unreadable"] += 1
        else:
            yield f"{below}{entry.name}"


def _entries(root: str, below: str) -> list[tuple[str, os.DirEntry[str]]]:
    """What a directory holds, the first last. In whole names a directory is followed by a slash, so it sorts with one."""
    with os.scandir(Path(root, below)) as scanned:
        entries = list(scanned)
    entries.sort(key=lambda entry: os.fsencode(entry.name) + (b"/" if entry.is_dir() else b""), reverse=True)
    return [(below, entry) for entry in entries]


def _reason_to_pass_by(entry: os.DirEntry[str]) -> str | None:
    if entry.name.startswith("."):
        return "hidden"
    if entry.is_symlink():
        return "linked"
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return "with a name that is not UTF-8"
    return None


def _reason_to_skip(path: Path) -> str | None:
    """Why a file is not worked on; None when it is."""
    if not path.is_file():
        return "special"
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            return "over 1 MiB"
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            data = head if b"\0" in head else head + file.read()
    except OSError:
        return "unreadable"
    if not data:
        return "empty"
    return None if is_text(data) else "binary"
