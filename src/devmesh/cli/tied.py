"""Runs a command that must not outlive the `devmesh up` that started it, however that one ends.

`python -m devmesh.cli.tied FD GRACE_S COMMAND …`: FD is the reading end of a pipe whose writing end only the parent holds,
so its end is seen at once and cannot be missed: also after kill -9, and if it came before this program was loaded. The
command is then asked to stop in good order, and is ended when it has not after GRACE_S.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from devmesh.cli.application import main


def follow(parent_fd: int, grace_s: float) -> None:
    """Waits for the parent's end, then brings about our own."""
    while os.read(parent_fd, 1):
        pass
    # Nobody reads our output any more: a line that cannot be written must not disturb the stopping.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os._exit(1)


if __name__ == "__main__":
    parent_fd, grace_s = int(sys.argv[1]), float(sys.argv[2])
    os.set_inheritable(parent_fd, False)
    threading.Thread(target=follow, args=(parent_fd, grace_s), daemon=True, name="parent").start()
    sys.argv = ["devmesh", *sys.argv[3:]]
    main()
