"""The three services on this machine: their ports, and how each says that it is."""

from __future__ import annotations

import asyncio
import errno
import textwrap
from typing import Any, NamedTuple

import httpx

from devmesh import __version__
from devmesh.cli.checks.case import Case
from devmesh.cli.checks.finding import Finding, State, note, ok, problem, warning
from devmesh.cli.ports import holder, in_address, why_not

ANSWER_LIMIT_S = 1.5
REASON_CHARACTERS_MAX = 160  # a reason may hold the SQL that mends it, which the checks of the schema show anyway


class Place(NamedTuple):
    """Where one service listens."""

    service: str
    setting: str
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{in_address(self.host)}:{self.port}"


def _places(case: Case) -> dict[str, Place]:
    host = case.settings.host
    return {
        "rest-api": Place("rest-api", "DEVMESH_REST_PORT", host, case.settings.rest_port),
        "mcp-server": Place("mcp-server", "DEVMESH_WS_PORT", host, case.settings.ws_port),
        "worker": Place("worker", "DEVMESH_WORKER_PORT", host, case.settings.worker_port),
    }


async def ports(case: Case) -> list[Finding]:
    """Whether each service has its port, or can have it."""
    places = list(_places(case).values())
    found = await asyncio.gather(*(_look_at_port(place) for place in places))
    wrong = [finding for finding in found if finding.state is not State.OK]
    return wrong or [ok(", ".join(finding.found for finding in found))]


async def _look_at_port(place: Place) -> Finding:
    if place.port == 0:
        return ok(f"{place.service} takes a free one")
    label = f"port {place.port} of {place.host}, which {place.service} needs,"
    error = await asyncio.to_thread(why_not, place.host, place.port)
    if error is None:
        return ok(f"{place.port} {place.service} (free)")
    if error.errno != errno.EADDRINUSE:
        return problem(f"{label} cannot be had: {error.strerror}", f"correct DEVMESH_HOST or {place.setting}")
    name = (await _ask(place) or {}).get("service")
    if name == place.service:
        return ok(f"{place.port} {place.service}")
    advice = f"end that, or choose another port with {place.setting}"
    if name is not None:
        return problem(f"{label} is taken by DevMesh's {name}", advice)
    who = await asyncio.to_thread(holder, place.port) or "another program"
    return problem(f"{label} is taken by {who}, which does not answer as DevMesh does", advice)


async def rest_api(case: Case) -> list[Finding]:
    """How the REST service says that it is."""
    return await _look_at_service(_places(case)["rest-api"])


async def mcp_server(case: Case) -> list[Finding]:
    """How the agents' gateway says that it is."""
    return await _look_at_service(_places(case)["mcp-server"])


async def worker(case: Case) -> list[Finding]:
    """How the worker says that it is."""
    return await _look_at_service(_places(case)["worker"])


async def _look_at_service(place: Place) -> list[Finding]:
    health = await _ask(place)
    if health is None or health.get("service") != place.service:
        return [note(f"does not run at {place.url}", f"devmesh {place.service}, or devmesh up for all three")]
    version = "" if health["version"] == __version__ else f" (version {health['version']}; this is {__version__})"
    if not health["ready"]:
        reasons = (textwrap.shorten(reason, REASON_CHARACTERS_MAX, placeholder=" …") for reason in health["reasons"])
        return [problem(f"{health['status']}{version}: {reason}") for reason in reasons]
    worn = {name: part for name, part in health["components"].items() if part["status"] != "healthy"}
    if worn:
        words = "; ".join(f"{name} is {part['status']}: {part['message']}" for name, part in worn.items())
        return [warning(f"{health['status']}{version}: {words}", f"curl {place.url}/health?details=true")]
    return [ok(f"{health['status']} at {place.url}{version}")]


async def _ask(place: Place) -> dict[str, Any] | None:
    """What a service says of its health; nothing, where there is none or something else."""
    try:
        async with httpx.AsyncClient(timeout=ANSWER_LIMIT_S, trust_env=False) as client:
            answer = (await client.get(f"{place.url}/health")).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None
    return answer if isinstance(answer, dict) and "components" in answer else None
