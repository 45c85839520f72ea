"""Boundary scalings: how consistency models mix their input into their output so that x0 is exact where noise ends."""

from __future__ import annotations

from torch import Tensor


def lcm_scalings(timestep: Tensor, *, sigma_data: float = 0.5, timestep_scaling: float = 10.0) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) at training timesteps: x0 = c_skip * x + c_out * x0_predicted, x in the variance-preserving scale.

    As the released LCM weights were trained (diffusers' LCMScheduler): time scaled by ten, and no sigma_data in c_out,
    unlike Luo et al. 2023, equation 9.
    """
    scaled = timestep.float() * timestep_scaling
    return sigma_data**2 / (scaled**2 + sigma_data**2), scaled / (scaled**2 + sigma_data**2) ** 0.5


def consistency_scalings(sigma: Tensor, *, sigma_data: float, sigma_min: float) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) at noise levels: x0 = c_skip * x + c_out * F, with F the raw network (Song et al. 2023, appendix C).

    At sigma_min they are 1 and 0: there the consistency function is the identity.
    """
    c_skip = sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2)
    return c_skip, (sigma - sigma_min) * sigma_data / (sigma**2 + sigma_data**2) ** 0.5
