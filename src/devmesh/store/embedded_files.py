"""The files of the embedded PostgreSQL: how its cluster is configured, where its socket is, who may reach what.

Kept apart from the server's life so that each can be read alone. Must not start or stop anything.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import stat
import tempfile
from pathlib import Path

LOG_NAME = "postgres.log"
LOG_BYTES_MAX = 16 << 20
LOG_TAIL_BYTES = 64 << 10
CONFIGURATION_NAME = "devmesh.conf"
SOCKET_NAME = ".s.PGSQL.5432"
SOCKET_DIRECTORY_BYTES_MAX = 85  # the system's limit for a socket's whole path is 104 to 108 bytes

# Whoever reaches the socket is trusted, and only the owner of its directory, and root, reach it.
ACCESS = """\
# Written when the cluster was made: connections come through the socket alone.
local all         all trust
local replication all trust
"""

CONFIGURATION = """\
# Written at every start: changes belong in postgresql.conf, below the line that includes this file.
listen_addresses = ''
port = 5432
unix_socket_directories = '{socket_directory}'
unix_socket_permissions = 0700
cluster_name = 'devmesh'
max_connections = 200

fsync = on
synchronous_commit = on
full_page_writes = on
wal_compression = on
wal_buffers = 8MB  # it and the next would be a few segments by themselves, and ours are small
min_wal_size = 80MB
max_wal_size = 2GB
checkpoint_timeout = 15min

shared_buffers = 256MB
random_page_cost = 1.1
jit = off
autovacuum_naptime = 10s
autovacuum_vacuum_cost_delay = 0

timezone = 'UTC'
log_timezone = 'UTC'
log_min_error_statement = panic  # a failed statement may hold what users say
log_line_prefix = '%m [%p] %a '
logging_collector = off
"""


def configure_cluster(data: Path) -> None:
    """Makes a new cluster read our configuration, and lets people in through the socket only."""
    with (data / "postgresql.conf").open("a", encoding="utf-8") as configuration:
        configuration.write(f"\ninclude_if_exists '{CONFIGURATION_NAME}'\n")
    (data / "pg_hba.conf").write_text(ACCESS, encoding="utf-8")


def write_configuration(data: Path, socket_directory: Path, owner: tuple[int, int]) -> None:
    """Writes what the server is started with, whole or not at all."""
    draft = data / f"{CONFIGURATION_NAME}.new"
    draft.write_text(CONFIGURATION.format(socket_directory=socket_directory), encoding="utf-8")
    draft.chmod(0o600)
    os.chown(draft, *owner)
    draft.replace(data / CONFIGURATION_NAME)


def socket_directory(data: Path, owner: tuple[int, int]) -> Path:
    """Where the socket is: the cluster's own directory, or where its path is too long or too strange, a short one.

    Raises `PermissionError` if the short one has been taken by somebody else.
    """
    path = str(data)
    if len(os.fsencode(path)) <= SOCKET_DIRECTORY_BYTES_MAX and re.fullmatch(r"[A-Za-z0-9_./+-]+", path):
        return data
    name = "devmesh-" + hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:16]
    place = Path(tempfile.gettempdir()).resolve()
    if len(os.fsencode(place)) + len(name) >= SOCKET_DIRECTORY_BYTES_MAX:
        place = Path("/tmp")  # noqa: S108 - the directory made in it is checked below
    directory = place / name
    try:
        directory.mkdir(mode=0o700)
        os.chown(directory, *owner)
    except FileExistsError:
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner[0]:
            raise PermissionError(f"{directory}, where the socket belongs, has been taken by somebody else") from None
        directory.chmod(0o700)
    return directory


def let_traverse(path: Path, account: pwd.struct_passwd) -> None:
    """Lets an account pass through the directories above a path: passage only where it is missing, nothing more."""
    for directory in path.resolve().parents:
        found = directory.stat()
        if found.st_uid == account.pw_uid:
            may_pass = found.st_mode & stat.S_IXUSR
        elif found.st_gid == account.pw_gid:
            may_pass = found.st_mode & stat.S_IXGRP
        else:
            may_pass = found.st_mode & stat.S_IXOTH
        if not may_pass:
            directory.chmod(stat.S_IMODE(found.st_mode) | stat.S_IXOTH)


def let_read(binaries: Path) -> None:
    """Lets everybody run the server's programs, if a strict umask at installation has prevented that."""
    everybody = stat.S_IROTH | stat.S_IXOTH
    if (binaries / "postgres").stat().st_mode & everybody == everybody and binaries.stat().st_mode & everybody:
        return
    for path in (binaries.parent, *binaries.parent.rglob("*")):
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))


def rotate(log: Path) -> None:
    """Keeps one older log when the current one has grown long."""
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_name(log.name + ".1"))


def tail(log: Path, from_byte: int = 0) -> str:
    """The end of a log, from a place in it on; nothing if there is none."""
    try:
        with log.open("rb") as lines:
            lines.seek(max(from_byte, log.stat().st_size - LOG_TAIL_BYTES))
            return lines.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def sync_directory(directory: Path) -> None:
    """Makes a rename in a directory outlast a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
