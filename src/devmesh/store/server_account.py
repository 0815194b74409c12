"""Whom the embedded PostgreSQL runs as when we are root, which PostgreSQL refuses to be."""

from __future__ import annotations

import fcntl
import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAME = "pgserver"
ACCOUNTS_DIRECTORY = Path("/etc")  # of the system's file of accounts


def server_account(name: str = NAME) -> pwd.struct_passwd | None:
    """The system's account of that name, added if there is none; None where it cannot be. Must be called as root.

    One at a time on the machine: of two `useradd` at once the second gives the name another number, and the first
    caller's account is gone.
    """
    with suppress(KeyError):
        return pwd.getpwnam(name)
    with _locked(ACCOUNTS_DIRECTORY):
        with suppress(KeyError):
            return pwd.getpwnam(name)
        add = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", name]
        with suppress(FileNotFoundError):  # there is no useradd here
            subprocess.run(add, capture_output=True, check=False)  # noqa: S603 - constants, found as root finds them
        with suppress(KeyError):
            return pwd.getpwnam(name)
        return None


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keeps other processes out that ask for the same. The lock ends with the process that holds it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
