"""The report for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from devmesh.demo.comparison import Comparison
from devmesh.demo.report import DoneAgain, Report

NAME_WIDTH = 16
PATHS_SHOWN = 3  # of a group of duplicates
DUPLICATES_SHOWN = 3


def print_summary(report: Report, console: Console) -> None:
    if report.result is not None:
        _print_facts("The result", _result(report.result), console)
    console.print(Text("Check by hand (lines, words, bytes)", style="bold"))
    console.print(Text(f"  {report.check_by_hand}"), soft_wrap=True)
    _print_facts("What happened", _events(report), console)
    _print_facts("In figures", _figures(report), console)


def _print_facts(title: str, facts: Mapping[str, str], console: Console) -> None:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
    table.add_column(style="cyan", no_wrap=True, min_width=NAME_WIDTH)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(value))
    console.print()
    console.print(Text(title, style="bold"))
    console.print(table)
    console.print()


def _result(result: Comparison) -> dict[str, str]:
    duplicates = [
        f"{group.bytes:,} bytes: {_some(group.paths, PATHS_SHOWN)}" for group in result.duplicates[:DUPLICATES_SHOWN]
    ]
    return {
        "files": f"{result.files:,}",
        "lines": f"{result.lines:,}",
        "words": f"{result.words:,}",
        "bytes": f"{result.bytes:,}",
        "longest line": f"{result.longest_line.characters:,} characters, in {result.longest_line.path}",
        "largest": "\n".join(f"{file.bytes:>9,}  {file.path}" for file in result.largest),
        "duplicates": "\n".join([*duplicates, *_more(len(result.duplicates) - DUPLICATES_SHOWN)]) or "none",
        "frequent words": ", ".join(f"{found.word} {found.count:,}" for found in result.frequent_words) or "none",
        "functions": f"{result.functions:,}",
        "headings": f"{result.headings:,}",
        "unfinished marks": f"{result.marks:,}" + (f" ({', '.join(result.first_marks)})" if result.marks else ""),
    }


def _events(report: Report) -> dict[str, str]:
    killed = report.killed
    facts = {
        "agents": ", ".join(f"{agent.name} {agent.tasks_done}" for agent in report.agents) + " (tasks done by each)"
    }
    if killed is not None:
        facts["killed"] = f"{killed.agent} (pid {killed.pid}), which held {_some([h.title for h in killed.held], 5)}"
    facts["done again"] = "\n".join(map(_again, report.done_again)) or "nothing"
    return facts


def _again(again: DoneAgain) -> str:
    return f"{again.title}: " + ", ".join(
        f"attempt {made.attempt} by {made.agent} {made.outcome}" for made in again.attempts
    )


def _figures(report: Report) -> dict[str, str]:
    counts, seconds = report.counts, report.seconds
    mesh_start = [f"{seconds.mesh_start:.1f} s to start the mesh"] if seconds.mesh_start is not None else []
    parts = [
        *mesh_start,
        f"{seconds.fleet_start:.1f} s to start the agents",
        f"{seconds.work:.1f} s of work",
        f"{seconds.rest:.1f} s to look back and to stop it all",
    ]
    return {
        "tasks": f"{counts.tasks:,}: 1 distributed, with {counts.tasks - 1:,} subtasks",
        "attempts": f"{counts.attempts:,} at the subtasks",
        "events": f"{counts.events:,}" + (", numbered without a gap, and all of them heard" if report.is_whole else ""),
        "lost": f"{counts.lost:,}",
        "time": f"{seconds.total:.1f} s: {', '.join(parts)}",
    }


def _some(names: Sequence[str], limit: int) -> str:
    return ", ".join([*names[:limit], *_more(len(names) - limit)])


def _more(count: int) -> list[str]:
    return [f"and {count} more"] if count > 0 else []
