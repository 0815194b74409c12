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
        self._handled, self._handled_s = 0, 0.0
        self._handled_before, self._handled_before_s = 0, 0.0

    def handled(self, duration_s: float) -> None:
        """A handler has ended. Only from the thread of the worker; the heart's looks at the sums, and changes none."""
        self._handled += 1
        self._handled_s += duration_s

    def measure(self) -> dict[str, float]:
        """`cpu_usage` since the last time, of one processor; the most memory that it had; how busy the machine is; and
        `latency_ms`, how long handlers that have ended since took on average, if any has.
        """
        now_s, cpu_s = time.monotonic(), time.process_time()
        usage = (cpu_s - self._cpu_s) / max(now_s - self._at_s, 1e-3)
        self._at_s, self._cpu_s = now_s, cpu_s
        return self._latency() | {
            "cpu_usage": round(usage, 4),
            "memory_bytes_max": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MEMORY_UNIT_BYTES),
            "load_per_processor": round(os.getloadavg()[0] / (os.cpu_count() or 1), 3),
        }

    def _latency(self) -> dict[str, float]:
        handled, handled_s = self._handled, self._handled_s
        count, taken_s = handled - self._handled_before, handled_s - self._handled_before_s
        self._handled_before, self._handled_before_s = handled, handled_s
        return {"latency_ms": round(taken_s * 1000 / count, 3)} if count else {}
