"""The judge of tests that ill-treat jobs: `devmesh check history`'s own rules, and a list of what breaks them."""

from __future__ import annotations

import datetime

from devmesh.store.history import snapshot


async def broken_rules(dsn: str, tenant_name: str = "default", since: datetime.datetime | None = None) -> list[str]:
    """A line for each example of what breaks a rule: none, if all that happened adds up."""
    async with snapshot(dsn) as seen:
        [tenant] = await seen.tenants([tenant_name])
        bounds = await seen.bounds(tenant, since)
        return [
            f"{verdict.rule.name} ({verdict.total}): {example.thing}: {example.found}"
            async for verdict in seen.verdicts(tenant, bounds, 5)
            for example in verdict.examples
        ]
