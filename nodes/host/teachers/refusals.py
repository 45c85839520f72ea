"""What a network itself refuses, in words that name an input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_OF_WIDTHS = ("shapes cannot be multiplied", "normalized_shape")
"""In torch's errors of a layer that gets features of another width. Pictures of a size that does not fit have others."""


@contextmanager
def of_prompts() -> Iterator[None]:
    """Around a pass of a network: ValueError for prompts that another model's text encoder made."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _OF_WIDTHS):
            raise
        raise ValueError(
            f"the model cannot take what was made of the prompts: {error}. Connect the CLIP that belongs to the model, or "
            "prompts that it encoded."
        ) from error
