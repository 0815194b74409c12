"""What keeps a run of schemathesis from sawing off the branch it sits on, and from waiting for what nobody does.

Loaded by schemathesis (see schemathesis.toml). It takes no check away: it only steers what is asked for.
"""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import schemathesis

CLAIM_WAIT_MS_MAX = 50


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    for name, value in case.path_parameters.items():
        if value in (None, "None"):  # it makes a link of a null, such as the agent of a key that is bound to none
            case.path_parameters[name] = str(uuid.uuid4())
    operation_id = case.operation.definition.raw.get("operationId")
    if operation_id in ("key.revoke", "key.confirm") and case.path_parameters.get("key_id") in own_keys(case, kwargs):
        case.path_parameters["key_id"] = str(uuid.uuid4())  # the run would go on without a key
    if operation_id == "task.claim" and isinstance(case.body, dict):
        wait_ms = case.body.get("wait_ms")
        if isinstance(wait_ms, int | float) and CLAIM_WAIT_MS_MAX < wait_ms <= 60_000:
            case.body["wait_ms"] = CLAIM_WAIT_MS_MAX


def own_keys(case: schemathesis.Case, kwargs: dict[str, Any]) -> set[str]:
    """The run's own key and those that replace it."""
    headers = {**(case.headers or {}), **(kwargs.get("headers") or {})}
    given = {name.lower(): value for name, value in headers.items()}
    secret = given.get("x-api-key") or str(given.get("authorization", "")).removeprefix("Bearer ")
    url = f"{case.operation.schema.get_base_url().rstrip('/')}/api/v1/keys?limit=200"
    answer = httpx.get(url, headers={"X-API-Key": str(secret)}, trust_env=False)
    keys = answer.json().get("keys", [])
    own = {key["id"] for key in keys if key["prefix"] == str(secret)[: len(key["prefix"])]}
    return own | {key["id"] for key in keys if key["replaces_key_id"] in own}
