"""What the tests of the HTTP edges share: a REST client on the run's mesh."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.edges.rest import Rest, connected
from tests.harness import Mesh


@pytest.fixture
async def rest(mesh: Mesh) -> AsyncIterator[Rest]:
    async with connected(mesh.rest_url) as client:
        yield client
