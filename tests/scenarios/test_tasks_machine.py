"""T16: every illegal move is refused and changes nothing: each one from each state, and random sequences of all of them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.fleet import Task, create, get, refusal, wait
from tests.harness import Mesh
from tests.wire import Wire

HELD = {"assigned", "accepted", "running"}
# The table of SPEC, written down a second time.
LEGAL = {
    "accept": {"assigned"},
    "reject": {"assigned", "accepted"},
    "progress": HELD,
    "heartbeat": HELD,
    "complete": HELD,
    "fail": HELD,
    "delegate": HELD,
    "cancel": HELD | {"pending"},
    "reassign": HELD | {"pending"},
    "retry": {"failed", "timed_out", "cancelled"},
}
STATES = ["pending", *sorted(HELD), "completed", "failed", "cancelled", "timed_out"]
FENCED = {"progress", "heartbeat", "complete", "fail"}


async def register(wire: Wire, name: str) -> str:
    """An agent that belongs to the key, not to the session, so that the session acts as whoever holds the task."""
    agent: dict[str, Any] = (await wire.call("agent.register", name=name, concurrency=100))["agent"]
    return str(agent["id"])


def params_of(verb: str, task: Task, other: str) -> dict[str, Any]:
    params: dict[str, Any] = {"task_id": task["id"]}
    if verb in FENCED:
        params["attempt"] = task["attempt"]
    if verb == "progress":
        params["progress"] = task["progress"]
    if verb == "fail":
        params["retryable"] = False
    if verb in ("delegate", "reassign"):
        params["to_agent"] = other
    return params


async def bring_to(wire: Wire, state: str, agent: str) -> Task:
    """A new task in a state."""
    if state == "pending":
        return await create(wire, state, assign="pull")
    task = await create(wire, state, assign="pull", timeout_s=0.2 if state == "timed_out" else None)
    [task] = (await wire.call("task.claim", agent_id=agent))["tasks"]
    verbs = {
        "accepted": "accept",
        "running": "progress",
        "completed": "complete",
        "failed": "fail",
        "cancelled": "cancel",
    }
    if state == "timed_out":
        await wait(wire, task, within_s=5)
    elif state != "assigned":
        await wire.call(f"task.{verbs[state]}", **params_of(verbs[state], task, agent))
    found = await get(wire, task)
    assert found["status"] == state
    return found


@pytest.mark.parametrize("state", STATES)
async def test_t16_each_illegal_move_from_each_state_changes_nothing(mesh: Mesh, tenant: str, state: str) -> None:
    async with await Wire.connect(mesh.ws_url, tenant) as session, await Wire.connect(mesh.ws_url, tenant) as wire:
        agent, other = await register(session, "one"), await register(session, "other")
        before = await bring_to(wire, state, agent)
        for verb, legal in LEGAL.items():
            if state not in legal:
                refused = await refusal(wire, f"task.{verb}", **params_of(verb, before, other))
                assert (refused.kind, refused.reason) == ("conflict", "task.state"), verb
                assert await get(wire, before) == before, verb
        for verb in FENCED:
            for stale in (before["attempt"] - 1, before["attempt"] + 1):
                if stale > 0:
                    params = {**params_of(verb, before, other), "attempt": stale}
                    assert (await refusal(wire, f"task.{verb}", **params)).reason == "task.stale_attempt", verb
        assert await get(wire, before) == before


@pytest.mark.parametrize("seed", range(6))
async def test_t16_random_sequences_of_moves_follow_the_table(mesh: Mesh, tenant: str, seed: int) -> None:
    """Nothing names the next agent, so that only claims assign, and the mesh does not move in between."""
    chance = random.Random(seed)
    moves = 0
    async with await Wire.connect(mesh.ws_url, tenant) as session, await Wire.connect(mesh.ws_url, tenant) as wire:
        agents = [await register(session, f"agent {number}") for number in range(8)]
        for _ in range(8):
            task = await create(wire, assign="pull")
            for _ in range(25):
                task = await step(wire, task, chance.choice([*LEGAL, "claim", "claim"]), chance.choice(agents))
            history = await wire.call("task.history", task_id=task["id"], limit=200)
            check_history(history)
            moves += task["version"] - 1
            await wire.ask("task.cancel", {"task_id": task["id"]})  # so that the next claims are of the next task
    assert moves >= 20, "the walks have gone somewhere"


async def step(wire: Wire, before: Task, verb: str, who: str) -> Task:
    """Tries a move, and holds what came of it against the table."""
    params = {"agent_id": who} if verb == "claim" else params_of(verb, before, who)
    if verb == "reassign":
        del params["to_agent"]
    elif verb == "delegate":
        params = {"task_id": before["id"], "capabilities": []}
    answer = await wire.ask(f"task.{verb}", params)
    task = await get(wire, before)
    if "error" in answer:
        problem = answer["error"]["data"]
        assert problem["kind"] == "conflict"
        is_too_deep = verb == "delegate" and problem["reason"] == "task.delegation_depth"
        assert is_too_deep or before["status"] not in LEGAL[verb], f"{verb} was refused from {before['status']}"
        assert task == before, f"{verb} was refused and changed something"
    elif verb == "claim" and answer["result"] == {"tasks": []}:
        assert task == before
    else:
        assert before["status"] in LEGAL.get(verb, {"pending"}), f"{verb} passed from {before['status']}"
        assert task["attempt"] in (before["attempt"], before["attempt"] + 1)
    return task


def check_history(history: dict[str, Any]) -> None:
    """Each move is one version and one event, and each attempt that was given out has ended once or is the one held."""
    versions = [event["data"]["task"]["version"] for event in history["events"]]
    assert versions == list(range(1, history["task"]["version"] + 1))
    given = [event["data"]["task"]["attempt"] for event in history["events"] if event["type"] == "task.assigned"]
    ended = [attempt["attempt"] for attempt in history["attempts"]]
    held = [history["task"]["attempt"]] if history["task"]["status"] in HELD else []
    assert given == ended + held == sorted(set(given))
