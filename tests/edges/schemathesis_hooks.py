"""What keeps a run of schemathesis from sawing off the branch it sits on, and from waiting for what nobody does.

Loaded by schemathesis (see schemathesis.toml). It takes no check away: it only steers what is asked for.
"""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import httpx
import schemathesis

CLAIM_WAIT_MS_MAX = 50
ABOUT_KEYS = ("key.revoke", "key.confirm", "key.limit")
ABOUT_TENANTS = ("tenant.suspend", "tenant.limit")


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    operation_id = case.operation.definition.raw.get("operationId")
    for name, value in case.path_parameters.items():
        if value in (None, "None"):  # it makes a link of a null, such as the agent of a key that is bound to none
            case.path_parameters[name] = str(uuid.uuid4())
    own_name = {"key_id": ABOUT_KEYS, "tenant_id": ABOUT_TENANTS}
    for name, about in own_name.items():
        if operation_id in about and case.path_parameters.get(name) in own(case, kwargs):
            case.path_parameters[name] = str(uuid.uuid4())  # the run would go on without a key, or without a breath
    if operation_id in ("task.claim", "job.claim") and isinstance(case.body, dict):
        wait_ms = case.body.get("wait_ms")
        if isinstance(wait_ms, int | float) and CLAIM_WAIT_MS_MAX < wait_ms <= 60_000:
            case.body["wait_ms"] = CLAIM_WAIT_MS_MAX
    if operation_id in ("schedule.create", "schedule.update") and isinstance(case.body, dict):
        steer_times(case.body, is_new=operation_id == "schedule.create")


def steer_times(body: dict[str, Any], *, is_new: bool) -> None:
    """What a cron expression and a time zone are is not for a pattern to say, nor that a schedule ends in times to come."""
    if isinstance(body.get("cron"), str):
        body["cron"] = "*/5 * * * *"
    if isinstance(body.get("time_zone"), str):
        body["time_zone"] = "Europe/Berlin"
    for name, moment in (("starts_at", "2026-01-01T00:00:00Z"), ("ends_at", "2999-01-01T00:00:00Z")):
        if is_new and is_moment(body.get(name)):
            body[name] = moment


def is_moment(value: Any) -> bool:
    try:
        return isinstance(value, str) and datetime.datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def own(case: schemathesis.Case, kwargs: dict[str, Any]) -> set[str]:
    """The run's own key, those that replace it, and, when it is the operator's, its tenant."""
    headers = {**(case.headers or {}), **(kwargs.get("headers") or {})}
    given = {name.lower(): str(value) for name, value in headers.items()}
    secret = given.get("x-api-key") or given.get("authorization", "").removeprefix("Bearer ")
    base_url = case.operation.schema.get_base_url().rstrip("/")
    with httpx.Client(base_url=base_url, headers={"X-API-Key": secret}, trust_env=False) as http:
        keys = http.get("/api/v1/keys?limit=200").json().get("keys", [])
        tenants = http.get("/api/v1/tenants?limit=200").json().get("tenants", [])
    found = {key["id"] for key in keys if key["prefix"] == secret[: len(key["prefix"])]}
    found |= {key["id"] for key in keys if key["replaces_key_id"] in found}
    return found | {tenant["id"] for tenant in tenants if tenant["name"] == "default"}
