"""The host's own progress of a sampling, with its quick previews of latents, for what is no sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def watching(model: Any, steps: int) -> Callable[[int, Tensor], None]:
    """Called with how many steps are done and the latents in the model's own scale: the bar, and a picture where wanted."""
    show = _latent_preview().prepare_callback(model, steps)

    def watch(done: int, x: Tensor) -> None:
        show(done - 1, x, x, steps)

    return watch


def _latent_preview() -> Any:
    """The host's module, which the host that PyPI carries keeps elsewhere."""
    try:
        import latent_preview
    except ImportError:
        from comfy.cmd import latent_preview
    return latent_preview
