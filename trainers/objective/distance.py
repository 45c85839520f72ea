"""Distances between the student's x0 and the target's: what the loss is the weighted mean of."""

from __future__ import annotations

from enum import Enum

from torch import Tensor

PSEUDO_HUBER_C = 0.00054
"""c over the square root of the dimension (Song and Dhariwal 2023, section 3.3), for pictures of deviation 0.5."""


class Distance(Enum):
    """SQUARED: the mean square |e|^2 / d of the error e over its d elements, Salimans and Ho's choice.

    PSEUDO_HUBER: sqrt(|e|^2 + c^2) - c with c = 0.00054 sqrt(d) (Song and Dhariwal 2023, equation 7), over sqrt(d): so it is
    sqrt(|e|^2 / d + 0.00054^2) - 0.00054, which does not grow with the picture, as the mean square does not either. Large
    errors count by their size and not its square: outliers pull less.

    PSEUDO_HUBER_LATENTS: the same for data of deviation 1, as latents are, whose errors are twice as large: 2 c.

    LPIPS: of the pictures that both decode to, see `perceptual`; Song et al. 2023 use it alone. No function of the error.
    """

    SQUARED = "squared"
    PSEUDO_HUBER = "pseudo_huber"
    LPIPS = "lpips"
    PSEUDO_HUBER_LATENTS = "pseudo_huber_latents"

    def __call__(self, squared_error: Tensor, *, unit: float = 1.0) -> Tensor:
        """(B, ...) or (B,) whose means over all but B are the distances; squared_error: (B, ...), of each element.

        unit: what is 1 of these data where c is for those of deviation 0.5 or 1, see TeacherKind.

        The squared distance is the squared error itself, elements and all: a caller's mean is then one mean. ValueError for
        LPIPS, which wants both x0 and not their error.
        """
        if self is Distance.LPIPS:
            raise ValueError("lpips is no function of the squared error; it compares pictures.")
        if self is Distance.SQUARED:
            return squared_error
        c = unit * (2 * PSEUDO_HUBER_C if self is Distance.PSEUDO_HUBER_LATENTS else PSEUDO_HUBER_C)
        return (squared_error.flatten(1).mean(dim=1) + c**2).sqrt() - c
