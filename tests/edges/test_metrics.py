"""What Prometheus reads: whole, of a bounded number of series whatever callers send, and without a secret."""

from __future__ import annotations

import secrets
import uuid

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from devmesh.core import keys
from tests.edges.rest import Rest, new_key
from tests.harness import Mesh, eventually
from tests.wire import Wire

SERVICES = ("rest-api", "mcp-server", "worker")


async def scrape(http: httpx.AsyncClient, mesh: Mesh, service: str) -> str:
    answer = await http.get(f"http://127.0.0.1:{mesh.of(service)[0].port}/metrics")
    assert answer.status_code == 200
    return answer.text


def series(text: str) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """What is counted, without the figures."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")  # when a series began
    }


@pytest.mark.parametrize("service", SERVICES)
async def test_metrics_are_prometheus_text(rest: Rest, mesh: Mesh, service: str) -> None:
    families = list(text_string_to_metric_families(await scrape(rest.http, mesh, service)))
    names = [family.name for family in families]
    assert len(names) == len(set(names)) > 10
    for family in families:
        assert family.name.startswith("devmesh_")
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")
        assert family.type != "histogram" or family.samples == [] or {"le"} & family.samples[0].labels.keys()


async def everything_new(rest: Rest, mesh: Mesh, admin: str) -> list[str]:
    """Uses names, ids and secrets that were never there before, right and wrong. Answers with the secrets."""
    word = secrets.token_hex(8)
    made = await new_key(rest, admin, "admin", name=word)
    wrong = keys.new_key().secret
    async with await Wire.connect(mesh.ws_url, made["secret"]) as wire:
        agent = (await wire.call("agent.register", name=word, capabilities=[word]))["agent"]
        task = (await wire.call("task.create", title=word, type=word, tags=[word], assign="pull"))["task"]
        await wire.call("task.claim", agent_id=agent["id"], capabilities=[word])
        await wire.ask(f"task.{word}", {})
        await wire.ask(word, {word: word})
        await wire.call("subscribe", topics=[f"queue:{word}", f"task:{task['id']}"])
    await rest.ask("GET", f"/{word}", None)
    await rest.ask("GET", f"/tasks/{uuid.uuid4()}", made["secret"])
    await rest.ask("GET", f"/tasks?type={word}", wrong)
    await rest.http.request(word.upper(), f"/{word}")
    await rest.call("POST", f"/keys/{made['key']['id']}/revoke", admin)
    return [made["secret"], wrong, word]


async def test_no_caller_adds_a_series_and_no_series_tells_a_secret(rest: Rest, mesh: Mesh, tenant: str) -> None:
    told = [mesh.admin_key, tenant]
    for _ in range(2):
        told += await everything_new(rest, mesh, tenant)
    before = {service: series(await scrape(rest.http, mesh, service)) for service in SERVICES}
    for _ in range(3):
        told += await everything_new(rest, mesh, tenant)
    labels: set[str] = set()
    for service in SERVICES:
        text = await scrape(rest.http, mesh, service)
        assert not [secret for secret in told if secret in text]
        new = series(text) - before[service]
        # Other tests use this mesh as well and may be the first to call something: what they add is none of ours.
        assert not [added for added in new if any(word in str(added) for word in told)], new
        labels |= {label for _, named in series(text) for label, _ in named}
    assert labels <= {
        "operation", "kind", "cause", "code", "event", "loop", "state", "table", "dependency", "carrier", "outcome", "le",
    }, "a label that is new here needs a bounded number of values"  # fmt: skip


async def test_what_is_counted_is_what_happened(rest: Rest, mesh: Mesh, tenant: str) -> None:
    async def connections() -> float:
        families = text_string_to_metric_families(await scrape(rest.http, mesh, "mcp-server"))
        [gauge] = [family for family in families if family.name == "devmesh_connections"]
        return float(gauge.samples[0].value)

    before = await connections()
    wires = [await Wire.connect(mesh.ws_url, tenant) for _ in range(3)]
    assert await connections() >= before + 3
    for wire in wires:
        await wire.close()

    async def are_gone() -> bool:
        return await connections() <= before

    await eventually(are_gone, "they are not counted any more")
