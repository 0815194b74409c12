"""How a worker's process is: what its heartbeats tell of it."""

from __future__ import annotations

import os
import resource
import sys
import time

MEMORY_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024  # of what getrusage gives


class Vitals:
    def __init__(self) -> None:
        self._at_s, self._cpu_s = time.monotonic(), time.process_time()

    def measure(self) -> dict[str, float]:
        """`cpu_usage` since the last time, of one processor; the most memory that it had; how busy the machine is."""
        now_s, cpu_s = time.monotonic(), time.process_time()
        usage = (cpu_s - self._cpu_s) / max(now_s - self._at_s, 1e-3)
        self._at_s, self._cpu_s = now_s, cpu_s
        return {
            "cpu_usage": round(usage, 4),
            "memory_bytes_max": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MEMORY_UNIT_BYTES),
            "load_per_processor": round(os.getloadavg()[0] / (os.cpu_count() or 1), 3),
        }
