"""W5 and W6: for every operation, on every wire: nobody reaches another tenant's things, and all wires answer alike.

The list of operations is the registry's own, so one that is added later is held to the same without being added here.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest

from devmesh import operations
from devmesh.operations.registry import REGISTRY, Operation
from tests import forking
from tests.harness import Mesh
from tests.wire import Wire

operations.load_all()

SAMPLES: dict[str, Any] = {
    "algorithm": "JWKS",
    "attempt": 1,
    "capabilities": ["sum"],
    "issuer": "https://issuer.example",
    "depends_on": [],
    "job": {"type": "sample"},
    "interval_s": 3_600,
    "jobs": [],
    "kind": "user",
    "name": "sample",
    "progress": 0.5,
    "queue": "sample",
    "rate_per_s": 100_000,
    "subtasks": [{"title": "part"}],
    "tasks": [{"title": "part"}],
    "text": "sample",
    "timeout_ms": 0,
    "title": "sample",
    "type": "sample",
}
# What an operation needs besides, or otherwise.
ALSO: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
    "task.delegate": lambda _: {"capabilities": ["sum"]},
    "job.enqueue_many": lambda _: {"jobs": [{"type": "part"}]},
    "job.depend": lambda ids: {"depends_on": [ids["job"]]},
    "dead_letter.replay": lambda ids: {"job_ids": [ids["job"]]},
    "dead_letter.discard": lambda ids: {"job_ids": [ids["job"]]},
    "schedule.create": lambda _: {"interval_s": 3_600},
    "context.search": lambda _: {"text": "sample"},
    "snapshot.restore": lambda ids: {"snapshot_id": ids["snapshot"]},
    "issuer.create": lambda _: {"jwks_url": "https://issuer.example/keys"},
}
REPORTED: dict[str, dict[str, Any]] = {
    "job.fail": {"error": "broken"}, "job.snooze": {"delay_ms": 1}, "job.progress": {"progress": 0.5}
}  # fmt: skip
ID_FIELDS = {
    "task_id": "task", "parent_id": "task", "agent_id": "agent", "to_agent": "agent", "agent": "agent", "assigned_to": "agent",
    "created_by": "agent", "key_id": "key", "tenant_id": "tenant", "issuer_id": "issuer",
    "job_id": "job", "worker_id": "worker", "schedule_id": "schedule", "snapshot_id": "snapshot", "context_id": "context",
}  # fmt: skip


class Answer(NamedTuple):
    """What a wire answered: a result, or the kind of an error with the field that it names."""

    result: dict[str, Any] | None
    kind: str | None = None
    field: str | None = None


def required(operation: Operation, ids: dict[str, str]) -> dict[str, Any]:
    """The least that an operation can be called with, about these things."""
    params: dict[str, Any] = {}
    for field in msgspec.structs.fields(operation.params):
        is_needed = (
            field.required
            or field.name in operation.path_fields
            or (operation.name == "task.wait" and field.name == "timeout_ms")
        )
        if is_needed:
            noun = ID_FIELDS.get(field.name)
            params[field.name] = ids[noun] if noun else SAMPLES[field.name]
    if "jobs" in params:
        params["jobs"] = [{"job_id": ids["job"], "attempt": 1, **REPORTED.get(operation.name, {})}]
    params |= ALSO.get(operation.name, lambda _: {})(ids)
    return params


async def over_websocket(wire: Wire, operation: Operation, params: dict[str, Any]) -> Answer:
    answer = await wire.ask(operation.name, params)
    if "error" in answer:
        return Answer(None, answer["error"]["data"]["kind"], answer["error"]["data"].get("field"))
    return Answer(answer["result"])


async def over_rest(mesh: Mesh, key: str, operation: Operation, params: dict[str, Any]) -> Answer:
    left = {name: value for name, value in params.items() if name not in operation.path_fields}
    path = operation.path.format(**{name: params[name] for name in operation.path_fields})
    has_body = operation.method in ("POST", "PATCH")
    query = {name: value if isinstance(value, str | list) else json.dumps(value) for name, value in left.items()}
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        answer = await client.request(
            operation.method,
            f"{mesh.rest_url}/api/v1{path}",
            params=None if has_body else query,
            json=left if has_body else None,
            headers={"Authorization": f"Bearer {key}"},
        )
    if answer.is_error:
        assert answer.headers["content-type"] == "application/problem+json"
        return Answer(None, answer.json()["kind"], answer.json().get("field"))
    result: dict[str, Any] = answer.json()
    return Answer(result)


async def over_cli(mesh: Mesh, key: str, operation: Operation, params: dict[str, Any]) -> Answer:
    environment = {**os.environ, "DEVMESH_URL": mesh.rest_url, "DEVMESH_API_KEY": key, "NO_COLOR": "1"}
    command = ["devmesh", "call", operation.name, "--params", json.dumps(params)]
    done = await asyncio.to_thread(forking.run, command, cwd=Path.cwd(), env=environment, timeout=30)
    if done.returncode == 0:
        return Answer(json.loads(done.stdout))
    told = re.match(r"error: ([a-z_]+)", done.stderr)
    assert told is not None, done.stderr
    return Answer(None, told[1])


async def things_of(wire: Wire) -> dict[str, str]:
    """One of each noun, in the tenant of a connection."""
    agent = (await wire.call("agent.register", name=f"a{uuid.uuid4().hex}", capabilities=["nobody-asks"]))["agent"]
    task = (await wire.call("task.create", title="theirs", assign=agent["id"], lease_s=600))["task"]
    await wire.next_event("task.assigned")
    key = (await wire.call("key.create", kind="user"))["key"]
    issuer = (
        await wire.call(
            "issuer.create", name="theirs", issuer="https://i.example", algorithm="JWKS", jwks_url="https://i.example/k"
        )
    )["issuer"]
    job = (await wire.call("job.enqueue", type="theirs", queue="theirs"))["job"]
    worker = (await wire.call("worker.register", name=f"w{uuid.uuid4().hex}"))["worker"]
    schedule = (
        await wire.call("schedule.create", name=f"s{uuid.uuid4().hex}", cron="0 0 1 1 *", job={"type": "theirs"})
    )["schedule"]
    snapshot = (await wire.call("snapshot.create"))["snapshot"]
    context = (await wire.call("context.store", type="theirs", text="theirs"))["context"]
    return {
        "agent": agent["id"], "task": task["id"], "key": key["id"], "issuer": issuer["id"], "job": job["id"],
        "worker": worker["id"], "schedule": schedule["id"], "snapshot": snapshot["id"], "context": context["id"],
        "tenant": wire.initialized["tenant_id"],
    }  # fmt: skip


@pytest.mark.timeout(240)
async def test_w05_another_tenant_s_things_are_not_found_on_any_wire(mesh: Mesh, tenant: str) -> None:
    stranger_key = mesh.new_tenant()
    async with (
        await Wire.connect(mesh.ws_url, tenant) as owner,
        await Wire.connect(mesh.ws_url, stranger_key) as stranger,
    ):
        theirs = await things_of(owner)
        before = await owner.call("task.history", task_id=theirs["task"])
        own = await things_of(stranger)
        for operation in REGISTRY.values():
            if operation.name.startswith("tenant."):
                continue  # for the operator alone: see the test of that
            for field in msgspec.structs.fields(operation.params):
                if field.name not in ID_FIELDS or (operation.name, field.name) == ("task.delegate", "agent_id"):
                    continue  # an administrator hands on what others hold, whoever they are
                params = {**required(operation, own), field.name: theirs[ID_FIELDS[field.name]]}
                if operation.name == "task.delegate" and field.name == "to_agent":
                    params.pop("capabilities")
                nowhere = {**params, field.name: str(uuid.uuid4())}
                for answer, about_nothing in (
                    (
                        await over_websocket(stranger, operation, params),
                        await over_websocket(stranger, operation, nowhere),
                    ),
                    (
                        await over_rest(mesh, stranger_key, operation, params),
                        await over_rest(mesh, stranger_key, operation, nowhere),
                    ),
                ):
                    assert answer == about_nothing, (operation.name, field.name)
                    # Who names an agent that does not hold the task is told so, whether or not there is such an agent.
                    is_held_by_another = field.name == "agent_id" and "task_id" in operation.path_fields
                    expected = {"not_found", "forbidden"} if is_held_by_another else {"not_found"}
                    if operation.name == "task.list":
                        assert answer.result == {"tasks": [], "next_cursor": None}
                    else:
                        assert answer.kind in expected, (operation.name, field.name, answer)
        unreachable = await over_cli(mesh, stranger_key, REGISTRY["task.get"], {"task_id": theirs["task"]})
        assert unreachable.kind == "not_found"
        assert await owner.call("task.history", task_id=theirs["task"]) == before


async def test_w05_lists_and_counts_hold_nothing_of_another_tenant(mesh: Mesh, tenant: str) -> None:
    stranger_key = mesh.new_tenant()
    async with (
        await Wire.connect(mesh.ws_url, tenant) as owner,
        await Wire.connect(mesh.ws_url, stranger_key) as stranger,
    ):
        theirs = await things_of(owner)
        for operation in REGISTRY.values():
            if operation.mutates or operation.name.startswith("tenant.") or operation.path_fields:
                continue
            answer = await over_websocket(stranger, operation, required(operation, theirs))
            assert answer.result is not None, (operation.name, answer)
            shown = json.dumps(answer.result)
            assert not [noun for noun, thing_id in theirs.items() if thing_id in shown], operation.name
        assert (await stranger.call("task.stats"))["total"] == 0


async def test_w05_a_bound_key_acts_as_its_agent_and_no_other(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as admin:
        agents = [(await admin.call("agent.register", name=name))["agent"]["id"] for name in ("one", "two")]
        bound = await admin.call("key.create", kind="agent", agent=agents[0])
        task = (await admin.call("task.create", title="for two", assign=agents[1]))["task"]
        async with await Wire.connect(mesh.ws_url, bound["secret"]) as wire:
            assert wire.initialized["agent_id"] == agents[0]
            for operation in REGISTRY.values():
                fields = {field.name for field in msgspec.structs.fields(operation.params)}
                if operation.scope != "agent" or "agent_id" not in fields:
                    continue
                ids = {"agent": agents[1], "task": task["id"]}
                params = {**required(operation, ids), "agent_id": agents[1]}
                for answer in (
                    await over_websocket(wire, operation, params),
                    await over_rest(mesh, bound["secret"], operation, params),
                ):
                    assert answer.kind == "forbidden", (operation.name, answer)
            taken = await wire.ask("agent.register", {"name": "two"})
            assert taken["error"]["data"]["kind"] == "forbidden"
            denied = await admin.call("audit.list", limit=200)
            assert {entry["outcome"] for entry in denied["entries"] if entry["key_id"] == bound["key"]["id"]} == {
                "denied"
            }
        refused = await Wire.bare(mesh.ws_url, bound["secret"])
        other = await refused.ask("initialize", {"agent": "two"})
        assert other["error"]["data"]["kind"] == "forbidden"
        await refused.close()


async def test_w05_only_the_operator_looks_after_tenants(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as wire:
        for operation in (found for found in REGISTRY.values() if found.name.startswith("tenant.")):
            params = required(operation, {"tenant": wire.initialized["tenant_id"]})
            assert (await over_websocket(wire, operation, params)).kind == "forbidden"


@pytest.mark.parametrize("scope", ["read", "write", "agent", "worker"])
async def test_every_operation_asks_for_its_scope(mesh: Mesh, tenant: str, scope: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as admin:
        key = await admin.call("key.create", kind="user", scopes=[scope])
        ids = dict.fromkeys(
            ("agent", "task", "key", "tenant", "issuer", "job", "worker", "schedule", "snapshot", "context"),
            str(uuid.uuid4()),
        )
        async with await Wire.connect(mesh.ws_url, key["secret"]) as wire:
            for operation in REGISTRY.values():
                answer = await over_websocket(wire, operation, required(operation, ids))
                assert (answer.kind == "forbidden") == (operation.scope != scope), (operation.name, answer)


@pytest.mark.timeout(360)
async def test_w06_every_wire_gives_the_same_answer_and_the_same_error(mesh: Mesh, tenant: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as owner, await Wire.connect(mesh.ws_url, tenant) as wire:
        ids = await things_of(owner)
        unknown = dict.fromkeys(ids, str(uuid.uuid4()))
        for operation in REGISTRY.values():
            if operation.name.startswith("tenant."):
                continue
            wrong = {**required(operation, ids), "no_such_parameter": True}
            absent = required(operation, unknown)
            names_a_thing = any(field in ID_FIELDS for field in operation.path_fields)
            for params in (wrong, absent) if names_a_thing else (wrong,):
                answers = [
                    await over_websocket(wire, operation, params),
                    await over_rest(mesh, tenant, operation, params),
                ]
                assert answers[0].kind is not None, (operation.name, answers)
                assert answers[0] == answers[1], operation.name

        async def cli_agrees(operation: Operation) -> None:
            """The same idempotency key gives the same stored answer, whichever wire asks again."""
            params = required(operation, ids)
            if operation.mutates:
                params["idempotency_key"] = f"parity {operation.name}"
            first = await over_websocket(wire, operation, params)
            answers = [
                await over_rest(mesh, tenant, operation, params),
                await over_cli(mesh, tenant, operation, params),
            ]
            for answer in answers:
                assert answer.kind == first.kind, (operation.name, first, answer)
                if operation.mutates or operation.name in ("task.get", "task.history", "key.list", "agent.get"):
                    assert without_secret(answer.result) == without_secret(first.result), operation.name

        endings = (
            "task.cancel",
            "job.cancel",
            "worker.evacuate",
            "worker.deregister",
            "agent.register",
            "agent.deregister",
            "key.revoke",
            "issuer.delete",
        )  # the session becomes the agent
        for operation in sorted(REGISTRY.values(), key=lambda operation: [operation.name == name for name in endings]):
            if not operation.name.startswith(("tenant.", "audit.")):
                await cli_agrees(operation)


def without_secret(result: dict[str, Any] | None) -> dict[str, Any] | None:
    """Secrets are shown once, and last-seen times move on."""
    if result is None:
        return None
    result = {name: value for name, value in result.items() if name != "secret"}
    if "agent" in result:
        result["agent"] = {name: value for name, value in result["agent"].items() if name != "last_seen_at"}
    return result


async def in_hand(wire: Wire, ids: dict[str, str]) -> dict[str, str]:
    """These things, with a job that the worker holds and a task that the agent works on."""
    queue = f"q{uuid.uuid4().hex}"
    job = (await wire.call("job.enqueue", type="t", queue=queue))["job"]
    [claimed] = (await wire.call("job.claim", worker_id=ids["worker"], queues=[queue]))["jobs"]
    assert claimed["id"] == job["id"]
    await wire.call("task.accept", task_id=ids["task"], agent_id=ids["agent"], attempt=1)
    return {**ids, "job": job["id"]}


@pytest.mark.timeout(360)
async def test_every_operation_may_be_called_twice_at_once(mesh: Mesh) -> None:
    """Both calls come into one batch, about one thing. Each has an answer of its own, and none of them is a fault of ours."""
    for operation in REGISTRY.values():
        if operation.name.startswith("tenant."):
            continue
        async with await Wire.connect(mesh.ws_url, mesh.new_tenant()) as wire:
            params = required(operation, await in_hand(wire, await things_of(wire)))
            calls = [
                {"jsonrpc": "2.0", "id": uuid.uuid4().hex, "method": operation.name, "params": params} for _ in "12"
            ]
            await wire.send(calls)
            answers = [await wire.answer(call["id"]) for call in calls]
        kinds = {answer["error"]["data"]["kind"] for answer in answers if "error" in answer}
        assert kinds <= {"conflict", "not_found"}, (operation.name, answers)
