"""Whether the ports are free, and who holds one that is not: asked before anything is started."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping

from devmesh.cli.console import Exit, Failure

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to reach what listens everywhere


def reachable(host: str) -> str:
    """Where somebody on this machine reaches what listens there."""
    return ANYWHERE.get(host, host)


def in_address(host: str) -> str:
    """The same as it stands in an address."""
    found = reachable(host)
    return f"[{found}]" if ":" in found else found


def require_free(host: str, ports: Mapping[str, int]) -> None:
    """Raises `Failure` that names the first port that a service cannot have, and who holds it if that can be known."""
    users: dict[int, str] = {}
    for service, port in ports.items():
        if port in users:
            raise Failure(f"{users[port]} and {service} cannot both listen on port {port}", Exit.USAGE)
        users[port] = service
        if error := why_not(host, port):
            raise _failure(error, host, port, service) from error


def why_not(host: str, port: int) -> OSError | None:
    """What keeps anybody from listening there; nothing, when the port can be had."""
    try:
        _bind(host, port).close()
    except OSError as error:
        return error
    return None


def free_port(host: str) -> int:
    """A port that nobody holds at this moment."""
    with _bind(host, 0) as probe:
        port: int = probe.getsockname()[1]
        return port


def holder(port: int) -> str:
    """Who listens on a port, as far as this user may know."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                process = psutil.Process(connection.pid)
                command = " ".join(process.cmdline())
                return f"process {connection.pid} ({command[:100] or process.name()})"
    except (psutil.Error, ValueError):  # not ours to see, or just gone; psutil takes no process for the own one
        pass
    return ""


def _bind(host: str, port: int) -> socket.socket:
    """Takes a port just as the services will: one that a closed connection still lingers on is free."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    probe = socket.socket(family, socket.SOCK_STREAM)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
    except OSError:
        probe.close()
        raise
    return probe


def _failure(error: OSError, host: str, port: int, service: str) -> Failure:
    if isinstance(error, socket.gaierror):
        return Failure(f"cannot listen on {host!r}: {error.strerror}", Exit.USAGE)
    if error.errno == errno.EADDRINUSE:
        who = holder(port) or "another program"
        hint = "end it, or choose other ports: `devmesh up --port 9000` takes 9000, 9001 and 9002"
        return Failure(f"port {port}, which {service} needs, is taken by {who}", Exit.FAILED, hint)
    return Failure(f"{service} cannot listen on {host} port {port}: {error.strerror}", Exit.FAILED)
