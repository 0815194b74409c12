from __future__ import annotations

from pathlib import Path

import pytest
from tests.store.migrations import FIRST_DOWN, FIRST_UP, SECOND_DOWN, SECOND_UP, THIRD_DOWN, THIRD_UP, write


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write(tmp_path, 1, "things", FIRST_UP, FIRST_DOWN)
    write(tmp_path, 2, "more", SECOND_UP, SECOND_DOWN)
    write(tmp_path, 3, "index", THIRD_UP, THIRD_DOWN)
    return tmp_path
