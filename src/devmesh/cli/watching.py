"""`devmesh watch`: what happens in the mesh, a line each, as it happens, without a hole however often the line breaks."""

from __future__ import annotations

import itertools
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from devmesh.cli.calling import AsJson
from devmesh.cli.console import Exit, Failure, note, shorten, visible
from devmesh.cli.loading import client_settings
from devmesh.cli.services import DataDir
from devmesh.cli.tables import cell

if TYPE_CHECKING:
    import httpx

    from devmesh.cli.wire import Rest

MEDIA_TYPE = "text/event-stream"
SILENCE_LIMIT_S = 45.0  # the server says something every 15 s
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
TYPE_WIDTH = 18
# Of a whole thing, only these are told; of a change, everything but what every change brings along.
TOLD_OF_WHOLE = ("title", "name", "status", "priority", "attempt", "assigned_to", "capabilities", "concurrency")
NEVER_TOLD = frozenset({"id", "version", "updated_at", "lease_until", "ready_at", "timeout_at"})
COLOURS = {
    "completed": typer.colors.GREEN, "failed": typer.colors.RED, "timed_out": typer.colors.RED,
    "lease_expired": typer.colors.RED, "cancelled": typer.colors.YELLOW, "retrying": typer.colors.YELLOW,
    "created": typer.colors.CYAN, "assigned": typer.colors.BLUE,
}  # fmt: skip


class Message(NamedTuple):
    """One message of the stream of server-sent events."""

    event: str
    data: dict[str, Any]


class Disconnected(Exception):
    """The stream ended; it can be taken up again where it was, but not before so many seconds."""

    def __init__(self, message: str, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.pause_s = pause_s


def watch(
    since: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Begin after this place, as an earlier watch printed it.")
    ] = None,
    topic: Annotated[
        list[str] | None,
        typer.Option(help="Only what concerns this: task:ID, agent:ID, queue:NAME; repeat it.", show_default="tenant"),
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show live events, a line each, until Ctrl-C; then the cursor from which another watch goes on.

    [bold]Examples[/]

    devmesh watch
    devmesh watch --topic task:0198d2c0-0000-7000-8000-000000000000 --json
    """
    from devmesh.cli.wire import Rest, require_sendable

    for number in (signal.SIGINT, signal.SIGTERM):  # in a script's background a shell has the first ignored
        signal.signal(number, signal.default_int_handler)
    require_sendable({"--topic": topic, "--since": since})
    watcher = Watcher(Rest(client_settings(data_dir)), topic or ["tenant"], since)
    try:
        for event in watcher.events():
            typer.echo(as_text(event) if as_json else line(event))
    except KeyboardInterrupt:
        pass
    finally:
        if watcher.has_begun:
            note(f"cursor: {watcher.cursor}")


class Watcher:
    """Follows topics from a cursor on, and knows how far it has come."""

    def __init__(self, rest: Rest, topics: list[str], cursor: str | None) -> None:
        self._rest, self._topics, self.cursor = rest, topics, cursor
        self.has_begun = False  # `cursor` is then one that the mesh has told

    def events(self) -> Iterator[dict[str, Any]]:
        """Every event, once and in order. Raises `Failure` when the mesh refuses, or was never there."""
        pauses = iter(BACKOFF_S)
        while True:
            try:
                for message in self._messages():
                    pauses = iter(BACKOFF_S)
                    if message.event == "subscribed":
                        self._begin(message.data)
                    elif not self.has_begun:
                        raise Disconnected(_detail(message, "the server does not speak as a mesh does"))
                    elif message.event == "error":
                        raise Disconnected(_detail(message, "the server ended the stream"))
                    else:
                        yield message.data
                        self.cursor = message.data["cursor"]
                raise Disconnected("the server ended the stream")
            except Disconnected as error:
                if not self.has_begun:
                    raise Failure(f"no events from {self._rest.url}: {error}", Exit.UNREACHABLE) from error
                pause_s = max(next(pauses, BACKOFF_S[-1]), error.pause_s)
                note(f"{error}; trying again in {pause_s:g} s")
                time.sleep(pause_s)

    def _begin(self, subscribed: Mapping[str, Any]) -> None:
        if not subscribed["recovered"]:
            note("some events since the cursor are not kept any more; these are the ones that are")
        self.has_begun = True
        self.cursor = subscribed["cursor"]

    def _messages(self) -> Iterator[Message]:
        """Those of one connection. Raises `Disconnected`, or `Failure` for what no other try would mend."""
        import httpx

        from devmesh.cli.wire import CONNECT_LIMIT_S, PREFIX

        query: dict[str, Any] = {"topics": self._topics, **({"since": self.cursor} if self.cursor is not None else {})}
        timeout = httpx.Timeout(SILENCE_LIMIT_S, connect=CONNECT_LIMIT_S)
        url = f"{self._rest.url}{PREFIX}/events"
        try:
            with (
                self._rest.reaching(),
                httpx.stream(
                    "GET", url, params=query, headers=self._rest.headers, timeout=timeout, trust_env=False
                ) as response,
            ):
                self._require_stream(response)
                yield from parse(response.iter_bytes())
        except Failure as failure:
            if failure.code is Exit.UNREACHABLE and self.has_begun:
                raise Disconnected(failure.message) from failure
            raise

    def _require_stream(self, response: httpx.Response) -> None:
        """Raises `Disconnected` when there will be one at another time, or `Failure`."""
        from httpx import codes

        from devmesh.cli.wire import no_mesh, refused, retry_after_s

        if response.is_success and response.headers.get("content-type", "").startswith(MEDIA_TYPE):
            return
        if response.is_success:
            raise no_mesh(response)
        response.read()
        failure = refused(response)
        if self.has_begun and (response.is_server_error or response.status_code == codes.TOO_MANY_REQUESTS):
            raise Disconnected(failure.message, retry_after_s(response) or 0.0)
        raise failure


def _detail(message: Message, otherwise: str) -> str:
    return visible(str(message.data.get("detail", otherwise)))


def parse(chunks: Iterator[bytes]) -> Iterator[Message]:
    """Messages of a stream, cut wherever the network cut it. A message without data is a sign of life, no more."""
    event, data = "message", b""
    for text in lines(chunks):
        name, _, value = text.partition(b": ")
        if name == b"event":
            event = value.decode(errors="replace")
        elif name == b"data":
            data = value
        elif not text:
            if data:
                yield _message(event, data)
            event, data = "message", b""


def _message(event: str, data: bytes) -> Message:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Disconnected("the server does not speak as a mesh does")
    return Message(event, found)


def lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Whole lines. (Text splitters also split at line separators inside of JSON strings.)"""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole


def as_text(event: Mapping[str, Any]) -> str:
    """An event for programs, a line of JSON."""
    text = json.dumps(event, ensure_ascii=False)
    return visible(text) if sys.stdout.isatty() else text


def line(event: Mapping[str, Any]) -> str:
    """An event for people: when, what kind, of what, and what changed."""
    at = event["at"][11:23]
    kind, colour = f"{event['type']:<{TYPE_WIDTH}}", COLOURS.get(event["type"].partition(".")[2])
    kind = typer.style(kind, fg=colour) if colour else kind
    return f"{at}  {kind}  {cell(event['topic'])}  {_changes(event['data'])}".rstrip()


def _changes(data: Mapping[str, Any]) -> str:
    thing = next((value for value in data.values() if isinstance(value, dict) and "id" in value), {})
    beside = {name: value for name, value in data.items() if value is not thing}
    names = TOLD_OF_WHOLE if "created_at" in thing else [name for name in thing if name not in NEVER_TOLD]
    told = itertools.chain(((name, thing.get(name)) for name in names), beside.items())
    return "  ".join(
        f"{visible(name)}={shorten(cell(value))}" for name, value in told if value not in (None, "", [], {})
    )
