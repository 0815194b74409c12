"""How the demo fails: one line that says why."""

from __future__ import annotations


class DemoFailed(Exception):
    """The demo cannot go on, or did not end as it must."""
