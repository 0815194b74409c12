"""A figure, and how figures are shown: one table for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One measured value. `limit` is what pgbench reaches with the same SQL, where SQL is what it is about."""

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    limit: float | None = None
    note: str = ""

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f"≥ {number(self.at_least)}"
        return f"≤ {number(self.at_most)}" if self.at_most is not None else ""

    @property
    def is_met(self) -> bool | None:
        """None: there is no target."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return self.value <= self.at_most if self.at_most is not None else None

    @property
    def ratio(self) -> float | None:
        return self.value / self.limit if self.limit else None


def number(value: float) -> str:
    """Three significant digits, or all of the whole part."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of values does not exceed. 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def table(figures: Sequence[Figure], title: str) -> Table:
    shown = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    shown.add_column("figure", overflow="fold")
    for column in ("measured", "target", "", "pgbench", "ratio"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("note", overflow="fold")
    marks = {True: "[green]met[/]", False: "[red]not met[/]", None: ""}
    for figure in figures:
        limit = number(figure.limit) if figure.limit is not None else ""
        ratio = f"{figure.ratio:.2f}" if figure.ratio is not None else ""
        measured = f"{number(figure.value)} {figure.unit}"
        shown.add_row(figure.name, measured, figure.target, marks[figure.is_met], limit, ratio, figure.note)
    return shown


def as_json(figures: Sequence[Figure], machine: str) -> bytes:
    shown = [{**msgspec.structs.asdict(figure), "is_met": figure.is_met, "ratio": figure.ratio} for figure in figures]
    return msgspec.json.format(msgspec.json.encode({"machine": machine, "figures": shown}), indent=2)


def show(figures: Sequence[Figure], title: str) -> None:
    Console().print(table(figures, title))
