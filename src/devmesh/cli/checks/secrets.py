"""What secrets are kept under, and whether it is at hand."""

from __future__ import annotations

from devmesh.cli.checks.case import Case
from devmesh.cli.checks.finding import Finding, note, ok, problem, warning
from devmesh.core import envelope
from devmesh.store import vault
from devmesh.store.vault import Vault

GENERATE = "devmesh keys generate, and set ENCRYPTION_MASTER_KEY to what it prints"


async def master_key(case: Case) -> list[Finding]:
    """Whether there is a master key, as production needs one."""
    if case.settings.master_keys:
        return [ok(f"given: {len(case.settings.master_keys)}")]
    if case.settings.environment == "production":
        return [problem("none is set, and in production no service starts without one", GENERATE)]
    return [note("none is set, so no secret can be stored", GENERATE)]


async def encryption(case: Case) -> list[Finding]:
    """Whether what is sealed can be opened with the keys that are given, and what is left to be sealed anew."""
    master_keys = envelope.master_keys(case.settings.master_keys)
    health = await Vault(master_keys).check(case.database)
    report = await vault.report(case.database, master_keys)
    if health.status == "unhealthy":
        return [problem(health.message, "set ENCRYPTION_KEY to the missing master key")]
    if report.lost_values:
        return [problem(f"{report.lost_values} secrets are sealed under data keys that are gone", "store them anew")]
    left = f"; {report.values_to_reseal} are left to be sealed anew" if report.values_to_reseal else ""
    if health.status == "degraded":
        return [warning(f"{health.message}{left}", "let a worker run: it does this")]
    sealed = sum(key.sealed_values for key in report.data_keys)
    return [ok(f"all secrets can be opened: {sealed}{left}")]
