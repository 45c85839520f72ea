"""What passes between our nodes and the running host: answers to its checks, cancel, progress, messages."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.utils

from ..sampling.models import log


def error_of(make: Callable[[], object]) -> bool | str:
    """True, or the message of the ValueError that make raises: the shape that ComfyUI's VALIDATE_INPUTS wants."""
    try:
        make()
    except ValueError as error:
        return str(error)
    return True


def asked_whether_changed(node: type) -> type:
    """A node class that has links and IS_CHANGED, without the latter where the host would die of asking.

    Hosts before August 2024 look the links up, by number alone, among what nodes gave in the prompt before. Where another
    node of that number gave less, their only worker ends, and no prompt runs until they are started again.
    """
    if importlib.util.find_spec("comfy_execution") is None:
        del node.IS_CHANGED  # type: ignore[attr-defined]
    return node


_heeded: list[Callable[[], bool]] = []
"""What else cancels the work that goes on."""


@contextmanager
def heeding(cancelled: Callable[[], bool]) -> Iterator[None]:
    """Inside, check_cancelled heeds this wish too: of one run, where the host's own is of whatever it executes."""
    _heeded.append(cancelled)
    try:
        yield
    finally:
        _heeded.remove(cancelled)


def check_cancelled() -> None:
    """Raises the host's own exception when the user pressed cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    if any(cancelled() for cancelled in _heeded):
        raise Cancelled


HASHING = "hashing"
"""Work inside of whatever else goes on: weights are read as a whole, to be known again."""
_followers: list[Callable[[float, str | None], None]] = []
"""Who is told how far the work is that goes on."""


@contextmanager
def following(follow: Callable[[float, str | None], None]) -> Iterator[None]:
    """Inside, follow is told the share that is done, and of what, whenever progressed is called."""
    _followers.append(follow)
    try:
        yield
    finally:
        _followers.remove(follow)


def progressed(done: int, total: int, *, of: str | None = None) -> None:
    """Of work that takes its time: heeds a cancel, and tells whoever follows. of: None for what they follow itself."""
    check_cancelled()
    for follow in _followers:
        follow(done / total, of)


def hashed(done: int, total: int) -> None:
    progressed(done, total, of=HASHING)


def progress_bar(total: int) -> Any:
    """The bar on the running node: update_absolute(value, total, ("JPEG", picture, largest side))."""
    return comfy.utils.ProgressBar(total)


def _cancelled() -> type[Exception]:
    """Where its class lies differs between hosts."""
    try:
        from comfy import interruption
    except ImportError:
        interruption = comfy.model_management
    return interruption.InterruptProcessingException


Cancelled = _cancelled()
"""What the host raises when the user pressed cancel, and takes as no error when a node raises it."""


def server() -> Any | None:
    """The host's running server, or None where there is none: on a worker, in a test."""
    try:
        from server import PromptServer
    except ImportError:
        return None
    return getattr(PromptServer, "instance", None)


def send(event: str, data: dict[str, Any]) -> None:
    """A message to every open browser tab; nothing where no server runs."""
    running = server()
    if running is not None:
        running.send_sync(event, data)


def say(text: str, *, warning: bool = False) -> None:
    """Into the log and, where the host can, on the node that it executes now."""
    log.log(logging.WARNING if warning else logging.INFO, "%s", text)
    running: Any = server()
    node = getattr(running, "last_node_id", None)
    if node is not None and hasattr(running, "send_progress_text"):
        running.send_progress_text(text, node)
