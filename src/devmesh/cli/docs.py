"""`devmesh docs`: the pages of the documentation that are made from the program, so that they cannot go out of date."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from devmesh.cli.console import Exit, Failure, say

WRITTEN_BY = "<!-- Written by `devmesh docs` from the declarations in the program. Do not edit. -->"


def docs(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit with 1 if a page is out of date.")
    ] = False,
    directory: Annotated[Path, typer.Option(help="Where the pages are.")] = Path("docs"),
) -> None:
    """Write the reference pages: protocol, settings, metrics."""
    made = {directory / name: text for name, text in pages().items()}
    if check:
        if stale := [str(path) for path, text in made.items() if _read(path) != text]:
            raise Failure(f"out of date: {', '.join(stale)}", hint="run `devmesh docs`")
        return
    for path, text in made.items():
        if _read(path) != text:
            _write(path, text)
            say(f"written {path}")


def pages() -> dict[str, str]:
    """Every page by its file's name."""
    from devmesh.cli import protocol

    return {"protocol.md": protocol.page(), "settings.md": settings_page(), "metrics.md": metrics_page()}


def settings_page() -> str:
    from devmesh.cli.markdown import table
    from devmesh.settings import ClientSettings, Settings

    sections = []
    for title, group in (("Services", Settings()), ("Tools and clients", ClientSettings())):
        rows = [
            (f"`{setting.name}`", setting.meaning, f"`{setting.default}`", setting.unit) for setting in group.describe()
        ]
        sections.append(f"## {title}\n\n{table(('setting', 'meaning', 'default', 'unit'), rows)}")
    text = (
        "Read from the environment, then from `.env` in the working directory, then from `dev.env`, which `devmesh up` writes"
        " into its data directory. `devmesh settings` shows those in force and where each came from. A value that cannot be"
        " understood stops the start; a `DEVMESH_` name that is none of these is reported."
    )
    return f"# Settings\n\n{WRITTEN_BY}\n\n{text}\n\n" + "\n\n".join(sections) + "\n"


def metrics_page() -> str:
    from prometheus_client import Counter, Gauge, Histogram

    from devmesh import telemetry
    from devmesh.cli.markdown import table

    rows = []
    for metric in vars(telemetry).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            [family] = metric.describe()
            name = f"{family.name}_total" if isinstance(metric, Counter) else family.name
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)  # nothing public tells them
            rows.append((f"`{name}`", family.type, labels, family.documentation))
    return (
        f"# Metrics\n\n{WRITTEN_BY}\n\nEvery service serves these at `/metrics` for Prometheus.\n\n"
        f"{table(('metric', 'type', 'labels', 'what it tells'), rows)}\n"
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}", Exit.FAILED) from error
