"""What networks keep of a prompt from one pass to the next (HiDream O1, Qwen-Image 2.1): of no weights but those of that pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def forget(network: Any) -> None:
    """Before a sampling: a LoRA may have come or gone since, and the host draws with what the weights before made."""
    getattr(network, "clear_kv_cache", lambda: None)()


@contextmanager
def none_kept(network: Any) -> Iterator[None]:
    """A pass takes nothing that other weights made of its prompt, and leaves nothing: teacher and student are one network."""
    getattr(network, "reset_prefix_cache", lambda enabled: None)(False)
    forget(network)
    try:
        yield
    finally:
        forget(network)
