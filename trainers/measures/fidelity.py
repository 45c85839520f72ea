"""How far drawn pictures are from real ones, on given features (N, F), each figure with an interval and without its bias.

Distances of finite samples are too large by a part that falls with their size: comparing two of them compares biases. Here
the Frechet distance is extrapolated to infinite samples and the kernel distance is the unbiased one. What two samples of
one distribution have is 0 for both, within the interval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from scipy import stats
from torch import Tensor

from .evaluate import FeatureStatistics, frechet_distance

PARTS = (1, 2, 4)
"""Into so many disjoint parts the samples are divided, for the line that is extrapolated."""
GROUPS, CONFIDENCE = 10, 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure, and the half width of its interval: it is between value - margin and value + margin in 95 of 100 samples."""

    value: float
    margin: float

    @classmethod
    def of(cls, values: list[float]) -> Estimate:
        """The mean of independent values, by Student's t; of a single one the margin is infinite."""
        found = torch.tensor(values, dtype=torch.float64)
        if len(found) < 2:
            return cls(float(found[0]), float("inf"))
        return cls(float(found.mean()), _quantile(len(found)) * float(found.std()) / len(found) ** 0.5)

    def written(self) -> list[float]:
        return [self.value, self.margin]


def _quantile(count: int) -> float:
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, df=count - 1))


# --- distances -------------------------------------------------------------------------------------------------------


def frechet_at_infinity(drawn: Tensor, real: Tensor) -> float:
    """The Frechet distance of drawn (N, F) and real (M, F) if both had no end (Chong and Forsyth 2020, section 4).

    The distance of parts of 1 / k of both is a line in k: what is left at k = 0 is free of the bias of both. Each k is the
    mean over all of its parts, so that no sample counts more than another; the samples' order must not mean anything.
    ValueError for parts that are too small for a covariance of F features.
    """
    least = min(len(drawn), len(real)) // max(PARTS)
    if least <= 2 * drawn.shape[1]:
        raise ValueError(
            f"{len(drawn)} and {len(real)} samples leave parts of {least}; for {drawn.shape[1]} features each needs more "
            f"than {2 * drawn.shape[1]}."
        )
    means = []
    for k in PARTS:
        pairs = zip(drawn.chunk(k), real.chunk(k), strict=True)
        found = [frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b)) for a, b in pairs]
        means.append(sum(found) / k)
    x, y = torch.tensor(PARTS, dtype=torch.float64), torch.tensor(means, dtype=torch.float64)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return float(y.mean() - slope * x.mean())


def kernel_distance(drawn: Tensor, real: Tensor) -> float:
    """The unbiased squared maximum mean discrepancy with the kernel (x y / F + 1)^3 (Binkowski et al. 2018, section 4)."""
    features = drawn.shape[1]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() @ b.double().T / features + 1.0) ** 3

    def apart(values: Tensor) -> Tensor:
        n = len(values)
        return (values.sum() - values.diagonal().sum()) / (n * (n - 1))

    own = apart(kernel(drawn, drawn)) + apart(kernel(real, real))
    return float(own - 2.0 * kernel(drawn, real).mean())


def jackknife(figure: Callable[[Tensor, Tensor], float], drawn: Tensor, real: Tensor, *, seed: int = 0) -> Estimate:
    """figure of both samples, shuffled; the interval from leaving out one of ten groups of both (Efron and Stein 1981).

    Of some small numbers of samples there are fewer groups, as equal as they can be: 9 of 81, 6 of 12. ValueError unless both
    make as many, and at least 2.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn, real = (values[torch.randperm(len(values), generator=generator)] for values in (drawn, real))
    parts = drawn.chunk(GROUPS), real.chunk(GROUPS)
    count, others = map(len, parts)
    if count != others or count < 2:
        raise ValueError(
            f"{len(drawn)} and {len(real)} samples make {count} and {others} groups; an interval needs as many of both, and at "
            "least 2: give as many samples of both, and more of them."
        )
    groups = list(zip(*parts, strict=True))
    without = []
    for k in range(count):
        kept = [group for i, group in enumerate(groups) if i != k]
        without.append(figure(torch.cat([a for a, _ in kept]), torch.cat([b for _, b in kept])))
    found = torch.tensor(without, dtype=torch.float64)
    error = float(((count - 1) / count * (found - found.mean()).square().sum()).sqrt())
    return Estimate(figure(drawn, real), _quantile(count) * error)


def kernel_estimate(drawn: Tensor, real: Tensor, *, blocks: int = 16, seed: int = 0) -> Estimate:
    """The mean of the kernel distances of disjoint blocks of both, which are independent of each other.

    ValueError for blocks of a single sample, which has no pair of its own, or for more blocks of the one than of the other.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [values[torch.randperm(len(values), generator=generator)].chunk(blocks) for values in (drawn, real)]
    least, (count, others) = min(len(part) for part in (*parts[0], *parts[1])), map(len, parts)
    if least < 2 or count != others:
        raise ValueError(
            f"blocks is {blocks}, which makes {count} and {others} blocks of {len(drawn)} and {len(real)} samples, the smallest "
            f"of {least}; there must be as many of both, of at least 2 samples each: give more samples, or lower blocks."
        )
    return Estimate.of([kernel_distance(a, b) for a, b in zip(*parts, strict=True)])


# --- neighbourhoods --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Neighbourhoods:
    """precision: share of the drawn within a real one's neighbourhood. recall: share of the real within a drawn one's.

    density: how many real neighbourhoods a drawn one lies in, over k; may exceed 1. coverage: share of the real whose
    neighbourhood holds a drawn one; of two samples of one size and distribution 1 - 1 / 2^k in the mean.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbourhoods(drawn: Tensor, real: Tensor, *, k: int = 5) -> Neighbourhoods:
    """Of features drawn (N, F) and real (M, F): Kynkaanniemi et al. 2019, section 2, and Naeem et al. 2020, section 3.

    A sample's neighbourhood is the ball to its k-th nearest of its own kind.
    """
    between = torch.cdist(drawn.double(), real.double())
    of_real, of_drawn = _reach(real, k=k), _reach(drawn, k=k)
    in_real = between <= of_real[None, :]
    return Neighbourhoods(
        precision=float(in_real.any(dim=1).double().mean()),
        recall=float((between <= of_drawn[:, None]).any(dim=0).double().mean()),
        density=float(in_real.double().sum(dim=1).mean() / k),
        coverage=float((between.amin(dim=0) <= of_real).double().mean()),
    )


def _reach(values: Tensor, *, k: int) -> Tensor:
    """(N,) the distance of each to its k-th nearest other."""
    values = values.double()
    return torch.cdist(values, values).kthvalue(k + 1, dim=1).values


def nearest(values: Tensor, others: Tensor, *, chunk: int = 8192) -> Tensor:
    """(N,) Euclidean distance of each (N, ...) to the nearest of others (M, ...)."""
    flat = values.flatten(1)
    found = [torch.cdist(flat, part.flatten(1)).amin(dim=1) for part in others.split(chunk)]
    return torch.stack(found).amin(dim=0)


def copied_share(drawn: Tensor, learnt: Tensor, unseen: Tensor) -> Estimate:
    """The share of drawn (N, ...) that lie nearer to something learnt (M, ...) than to anything of as many unseen.

    About half for whoever learnt the distribution, and 1 for a memoriser (the idea of Meehan, Chaudhuri and Dasgupta 2020).
    The margin is of the drawn alone: which samples were learnt and which not is given.
    """
    if len(learnt) != len(unseen):
        raise ValueError(
            f"{len(learnt)} learnt and {len(unseen)} unseen samples are given; their numbers must be equal."
        )
    to_learnt, to_unseen = nearest(drawn, learnt), nearest(drawn, unseen)
    counted = (to_learnt < to_unseen).double() + 0.5 * (to_learnt == to_unseen).double()
    return share(float(counted.sum()), len(drawn))


def share(hits: float, count: int) -> Estimate:
    """hits of count as a share. The margin reaches to the farther end of Wilson's interval (1927): none at 0 of n would be 0."""
    z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
    p = hits / count
    middle = (p + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (p * (1 - p) / count + z**2 / (4 * count**2)) ** 0.5
    return Estimate(p, half + abs(middle - p))
