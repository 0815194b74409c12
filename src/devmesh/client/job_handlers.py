"""What `@mesh.job` declares. What cannot work is refused there, and not told by each job that fails of it."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from devmesh.core.names import Label, Name


class JobHandler(NamedTuple):
    """What `@mesh.job` has declared."""

    type: str
    queue: str
    function: Callable[[Any], Any]
    is_coroutine: bool
    in_process: bool


def handler_of(type_: str, queue: str, function: Callable[[Any], Any], *, in_process: bool = False) -> JobHandler:
    """Raises TypeError or ValueError when no job could be done by it."""
    refuse = refusal(function, "job") or (_process_refusal(function) if in_process else None)
    if refuse is not None:
        raise ValueError(f"jobs of type {type_!r}: {refuse}")
    return JobHandler(type_, queue, function, is_coroutine(function), in_process)


def is_coroutine(function: Callable[[Any], Any]) -> bool:
    """Whether it runs in the loop, and not in a thread."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def refusal(function: Any, given: str) -> str | None:
    """Why it can be no handler, which is called with a job or a task; None when it can."""
    if inspect.isclass(function) or not callable(function):
        return f"expected a function, and not {'a class' if inspect.isclass(function) else repr(function)}"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return "a function that yields has no result; give one that returns it"
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # it is not told, as of some that are written in C
        return None
    try:
        signature.bind(None)
    except TypeError as problem:
        return f"the function is called with the {given} and nothing else, and takes {signature}: {problem}"
    return None


def _process_refusal(function: Callable[[Any], Any]) -> str | None:
    if is_coroutine(function):
        return "a coroutine runs in this process's loop; give a plain function"
    name = getattr(function, "__qualname__", "")
    if "<" in name:  # <locals> or <lambda>
        return f"a process imports its function by its name; {name} is not at the top of a module"
    return None


def unfit_for_processes(handlers: Iterable[JobHandler]) -> str | None:
    """Which function no process can import, and why; None when each can. To be asked when their modules are complete."""
    for handler in handlers:
        if handler.in_process:
            try:
                pickle.dumps(handler.function)
            except Exception as problem:
                words = f"jobs of type {handler.type!r}: a process cannot import its function: {problem}"
                return f"{words}; @mesh.job(…) stands above other decorators"
    return None


def check_label(what: str, text: Any, example: str = "@mesh.job('resize')") -> None:
    """A type, a queue or a capability. Raises TypeError or ValueError."""
    if not isinstance(text, str):
        raise TypeError(f"{what}: expected a name, as in {example}, and not {text!r}")
    try:
        msgspec.convert(text, Label)
    except msgspec.ValidationError:
        shape = "1 to 100 letters, digits and _.:/+-, the first a letter or a digit"
        raise ValueError(f"{what}: expected {shape}, and not {text!r}") from None


def check_name(what: str, text: Any) -> None:
    """What a worker or an agent is called. Raises ValueError."""
    try:
        msgspec.convert(text, Name)
    except msgspec.ValidationError:
        raise ValueError(f"{what}: expected 1 to 200 characters on one line, and not {text!r}") from None


def check_number(what: str, value: Any, least: float, most: float, *, is_whole: bool = False) -> None:
    """Raises TypeError or ValueError."""
    sort = "a whole number" if is_whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if is_whole else int | float):
        raise TypeError(f"{what}: expected {sort}, and not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{what}: expected {sort} from {least:,} to {most:,}, and not {value!r}")
