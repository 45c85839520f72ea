"""One file per distillation method.

| file | method | paper |
|---|---|---|
| progressive.py | two teacher steps into one, halving the step count stage by stage | Salimans and Ho 2022, arXiv 2202.00512 |
| guidance.py | two forwards of guidance into one, at a fixed scale | Meng et al. 2023, arXiv 2210.03142 |
| consistency.py | one level like the next, which the teacher's step leads to | Song et al. 2023, Luo et al. 2023 |
| consistency_training.py | the same without a teacher, from data | Song et al. 2023, Song and Dhariwal 2023, arXiv 2310.14189 |
| distribution_matching.py | the student's own samples, pulled to where the teacher would draw them | Yin et al. 2023, 2024 |
| denoising.py | no teacher: the clean sample is the target; trains the demo teacher | Ho et al. 2020, in the x0 form |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..objective.method import MethodOptions
from .consistency import Consistency, ConsistencyOptions
from .consistency_training import ConsistencyTraining, ConsistencyTrainingOptions
from .distribution_matching import DistributionMatching, DistributionMatchingOptions
from .guidance import GuidanceDistillation, GuidanceOptions
from .progressive import Progressive, ProgressiveOptions

METHODS: dict[str, type[MethodOptions]] = {
    Progressive.name: ProgressiveOptions,
    GuidanceDistillation.name: GuidanceOptions,
    Consistency.name: ConsistencyOptions,
    ConsistencyTraining.name: ConsistencyTrainingOptions,
    DistributionMatching.name: DistributionMatchingOptions,
}
"""By the name that run.json has."""
UNCHOSEN = ("level_count", "reaches_last")
"""Options that no input sets: a run keeps those that it was begun with."""


def read_method(name: str, options: Mapping[str, Any]) -> MethodOptions:
    """A method and its options as run.json has them, which may be older than some. ValueError for an unknown name."""
    if name not in METHODS:
        raise ValueError(f"the run's method is {name!r}; known are {', '.join(METHODS)}.")
    kind = METHODS[name]
    return kind.read(kind.as_begun(options))
