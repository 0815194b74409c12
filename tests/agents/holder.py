"""An agent as a process: holds the first task that it gets and renews its lease, until the lease is lost or it is killed.

    AGENT_KEY=... python -m tests.agents.holder WS_URL NAME CAPABILITY

It prints a line of JSON for each thing that happens to it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from tests.wire import Wire, WireError

HEARTBEAT_INTERVAL_S = 0.1


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)


async def hold(url: str, name: str, capability: str) -> None:
    wire = await Wire.connect(url, os.environ["AGENT_KEY"])
    await wire.call("agent.register", name=name, capabilities=[capability])
    say(happened="registered")
    task = (await wire.next_event("task.assigned", within_s=60))["data"]["task"]
    held = {"task_id": task["id"], "attempt": task["attempt"]}
    await wire.call("task.progress", **held, progress=0.5)
    say(happened="holding", attempt=task["attempt"])
    while True:
        try:
            await wire.call("task.heartbeat", **held)
        except WireError as refused:
            say(happened="lost", reason=refused.reason)
            break
        await asyncio.sleep(HEARTBEAT_INTERVAL_S)
    for verb, params in (("progress", {"progress": 0.9}), ("complete", {"result": "too late"}), ("fail", {})):
        try:
            await wire.call(f"task.{verb}", **held, **params)
            say(happened="accepted", verb=verb)
        except WireError as refused:
            say(happened="refused", verb=verb, reason=refused.reason)
    say(happened="done")


if __name__ == "__main__":
    asyncio.run(hold(*sys.argv[1:]))
