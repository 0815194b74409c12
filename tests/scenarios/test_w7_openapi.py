"""W7: schemathesis, which is somebody else's, finds nothing in the OpenAPI document of the real service.

It sends what the document allows and what it forbids, without credentials and with wrong ones, by methods that are not there,
and holds every answer against the document. Every check is on; schemathesis.toml says what it is told, and why.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Mesh

ROOT = Path(__file__).parents[2]
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
UNLIMITED = {
    "DEVMESH_RATE_PER_KEY_PER_S": "100000",
    "DEVMESH_RATE_PER_TENANT_PER_S": "100000",
    "ENCRYPTION_MASTER_KEY": base64.b64encode(bytes(range(32))).decode(),
}


@pytest.fixture
def unlimited(own_mesh: Callable[..., Mesh]) -> Mesh:
    """A mesh whose limits are not what is being tried."""
    return own_mesh("rest-api", **UNLIMITED)


async def finds_nothing(mesh: Mesh, key: str, *options: str, within_s: float) -> None:
    [child] = mesh.of("rest-api")
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # where its hooks are
    process = await asyncio.create_subprocess_exec(
        str(SCHEMATHESIS), "--config-file", str(ROOT / "schemathesis.toml"), "run", f"{mesh.rest_url}/openapi.json",
        "--header", f"Authorization: Bearer {key}", "--checks", "all", *options,
        cwd=child.log.parent, env={**os.environ, "PYTHONPATH": python_path},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(process.communicate(), within_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    report = output.decode(errors="replace")
    assert process.returncode == 0, report
    assert "generated" in report, report
    assert "Traceback" not in child.log.read_text()


@pytest.mark.timeout(330)
async def test_w7_schemathesis_finds_nothing_by_a_few_examples_of_each_operation(unlimited: Mesh) -> None:
    """The same ones each time, so that nobody's change fails by another's."""
    await finds_nothing(
        unlimited, unlimited.new_tenant(), "--phases", "fuzzing,stateful", "--max-examples", "2",
        "--generation-deterministic", within_s=300,
    )  # fmt: skip


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_w7_schemathesis_finds_nothing_for_long(unlimited: Mesh) -> None:
    """As the administrator of a tenant: other examples each time, and every boundary of every field."""
    await finds_nothing(
        unlimited, unlimited.new_tenant(), "--max-examples", "300", "--generation-database", "none", within_s=3500
    )


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_w7_schemathesis_finds_nothing_as_the_operator(unlimited: Mesh) -> None:
    """Who may make tenants, suspend them and limit them."""
    await finds_nothing(
        unlimited, unlimited.admin_key, "--max-examples", "100", "--generation-database", "none", within_s=3500
    )
