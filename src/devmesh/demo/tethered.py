"""Runs a module as `python -m` does, for as long as somebody holds the other end of standard input.

The fleet's processes are started this way, so that none of them outlives the demo, however that ends.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
import time

GRACE_S = 1.0


def follow() -> None:
    """Waits for the end of standard input, which a killed parent brings about as well, and then ends this process."""
    while os.read(0, 1):
        pass
    time.sleep(GRACE_S)  # whoever was told to stop at the same moment may do so in good order
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=follow, name="tether", daemon=True).start()
    _, module, *arguments = sys.argv
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
