"""The demo as it goes on: a picture that moves on a terminal, lines everywhere else."""

from __future__ import annotations

import collections
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from devmesh.demo.story import AgentSeen, Line, Story

LINES_SHOWN = 8
PICTURE_INTERVAL_S = 0.1
BAR_WIDTH = 20
COLOURS = {"available": "green", "busy": "cyan", "offline": "red", "starting": "yellow"}


def screen_for(console: Console) -> Screen:
    return LiveScreen(console) if console.is_terminal and not console.is_dumb_terminal else Screen(console)


class Screen:
    """A line for what is notable, with the time since the start."""

    def __init__(self, console: Console) -> None:
        self._console, self._began = console, time.monotonic()

    def tell(self, line: Line) -> None:
        if line.is_notable:
            self.say(line.text)

    def say(self, text: str) -> None:
        self._console.print(Text.assemble((f"{time.monotonic() - self._began:5.1f} s  ", "dim"), text), soft_wrap=True)

    def show(self, story: Story) -> None:
        """How things are at this moment; may be called as often as one likes. Here, the lines say it all."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        pass


class LiveScreen(Screen):
    """What is notable stays; below it the agents, the progress of the whole, and the last events move."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._shown_at = 0.0
        self._lines: collections.deque[Line] = collections.deque(maxlen=LINES_SHOWN)
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def tell(self, line: Line) -> None:
        self._lines.append(line)
        super().tell(line)

    def show(self, story: Story) -> None:
        now = time.monotonic()
        if now - self._shown_at >= PICTURE_INTERVAL_S:
            self._shown_at = now
            self._live.update(self._picture(story), refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._live.stop()

    def _picture(self, story: Story) -> RenderableType:
        agents = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
        for agent in story.agents.values():
            agents.add_row(*_agent(agent, story))
        whole = Table.grid(padding=(0, 2))
        whole.add_row(
            ProgressBar(total=max(len(story.tasks), 1), completed=story.tasks_done, width=BAR_WIDTH * 2),
            f"{story.tasks_done} of {len(story.tasks)} subtasks",
            f"{time.monotonic() - self._began:.1f} s",
        )
        events = [Text(f"  {line.text}", style="dim", overflow="ellipsis", no_wrap=True) for line in self._lines]
        return Group(Text(), agents, Text(), whole, Text(), *events)


def _agent(agent: AgentSeen, story: Story) -> tuple[RenderableType, ...]:
    task = story.tasks[agent.holds] if agent.holds is not None else None
    return (
        Text(agent.name, style="bold"),
        Text(agent.status, style=COLOURS.get(agent.status, "yellow")),
        f"{agent.tasks_done} done",
        ProgressBar(total=1.0, completed=task.progress, width=BAR_WIDTH) if task is not None else "",
        task.title if task is not None else "",
    )
