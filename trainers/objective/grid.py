"""Grids: the noise levels of a schedule, by the rule that spaces them."""

from __future__ import annotations

from enum import Enum

from torch import Tensor

from ...samplers.noise import NoiseFamily
from ...samplers.schedules import cosine_sigmas, karras_sigmas, trailing_sigmas


class Grid(Enum):
    """The levels of a schedule. TRAILING: even in the model's own timesteps, for every model.

    For models of the variance-exploding family also COSINE (`cosine_sigmas`: Salimans and Ho's own) and EDM
    (`karras_sigmas`), between the ends of the model's table.
    """

    TRAILING = "trailing"
    COSINE = "cosine"
    EDM = "edm"

    def sigmas(self, steps: int, *, table: Tensor, name: str = "steps") -> Tensor:
        """(steps + 1,) on or between the levels of a model's ascending table (T,). ValueError for more steps than it has.

        name: of the input that gave the steps.
        """
        ends = {"sigma_min": float(table[0]), "sigma_max": float(table[-1])}
        match self:
            case Grid.TRAILING:
                if steps > len(table):
                    raise ValueError(f"{name} is {steps}; this model has {len(table)} noise levels.")
                return trailing_sigmas(steps, table=table)
            case Grid.COSINE:
                return cosine_sigmas(steps, **ends)
            case Grid.EDM:
                return karras_sigmas(steps, **ends)

    def require_for(self, family: NoiseFamily) -> None:
        """ValueError where a model of the family has no such grid."""
        if family is NoiseFamily.FLOW and self is not Grid.TRAILING:
            raise ValueError(
                f"grid is {self.value}, but this is a flow model; allowed is {Grid.TRAILING.value}, which follows the model's "
                "own shift."
            )
