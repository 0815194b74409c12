"""Execution contexts: how they are searched."""

from __future__ import annotations

import enum


class By(enum.StrEnum):
    VECTOR = "vector"
    TEXT = "text"
