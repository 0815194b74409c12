"""No two threads of a client meet over a shape that the decoder does not know yet: that would end the process."""

from __future__ import annotations

import subprocess
import sys

UNKNOWN = """
import gc, pkgutil, importlib, sys
import devmesh.client
loaded = set(sys.modules)
from devmesh.client.shapes import OURS, _declared
import msgspec

def is_known(shape):
    return any(type(held).__name__ == "StructInfo" for held in gc.get_referents(shape))

ours = [shape for shape in _declared(msgspec.Struct) if shape.__module__.startswith(OURS)]
assert len(ours) > 20, ours
print([f"{shape.__module__}.{shape.__name__}" for shape in ours if not is_known(shape)])
print([module.name for module in pkgutil.iter_modules(devmesh.client.__path__, "devmesh.client.") if module.name not in loaded])
"""


def test_every_shape_of_the_client_is_known_to_the_decoder_once_the_client_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", UNKNOWN], capture_output=True, text=True, check=False)
    unknown, not_loaded = done.stdout.splitlines() or (done.stderr, "")
    assert unknown == "[]"
    assert not_loaded == "[]", "what is imported later has shapes that nobody makes known"
