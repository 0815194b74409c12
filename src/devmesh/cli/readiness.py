"""`--health-check`: what containers ask every few seconds. So it is quick, and its exit code is 0 or 1 and nothing else.

Must not import the service that it asks.
"""

from __future__ import annotations

import http.client
import json
import sys

import typer

from devmesh.cli.ports import reachable

ANSWER_LIMIT_S = 5.0
ANSWER_BYTES_MAX = 100_000


def exit_code(name: str, host: str, port: int) -> int:
    """0 when the service there says that it is ready. What it says is printed."""
    if port == 0:
        return _failed(f"{name} would listen on any free port: say which with --port")
    connection = http.client.HTTPConnection(reachable(host), port, timeout=ANSWER_LIMIT_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        said = json.loads(answer.read(ANSWER_BYTES_MAX))
        is_ready = answer.status == 200 and said["ready"] is True
    except (OSError, http.client.HTTPException) as error:
        return _failed(f"{name} cannot be reached at {host}:{port}: {error}")
    except (ValueError, KeyError, TypeError):
        return _failed(f"what answers at {host}:{port} is not {name}")
    finally:
        connection.close()
    typer.echo(json.dumps(said))
    return 0 if is_ready else 1


def _failed(message: str) -> int:
    print(message, file=sys.stderr)  # noqa: T201 - the only output
    return 1
