"""Distribution matching with a companion that learns: a one-step student of Gaussian data draws what its teacher would."""

import contextlib

import pytest
import torch
from comfyui_fewstep.samplers.few_step import sample_few_step
from comfyui_fewstep.samplers.noise import NoiseFamily, expand_like
from comfyui_fewstep.trainers.data.batches import TensorData
from comfyui_fewstep.trainers.methods.distribution_matching import DistributionMatchingOptions
from comfyui_fewstep.trainers.objective.method import TeacherKind
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.adapters import Adapters, LoRAOptions
from comfyui_fewstep.trainers.students.student import LoRAStudent
from comfyui_fewstep.trainers.training.loop import train
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from gaussian import FAMILIES, gaussian_denoiser, table
from thorough import first_then_thorough
from torch import nn

VE, FLOW = NoiseFamily
COND, EMPTY, STD = 0.7, 0.2, 0.5
KNOTS = 8


class Corrected(nn.Module):
    """The exact denoiser of Gaussian data and one linear layer on top, which can be that of any other Gaussian.

    Affine in x, with hats over the model's time: as adapters learn it. The means differ between the prompts y = 1 and y = 0.
    """

    def __init__(self, family):
        super().__init__()
        self.family = family
        self.register_buffer("table", table(family))
        self.correction = nn.Linear(2 * KNOTS, 1)
        for value in self.parameters():
            nn.init.zeros_(value).requires_grad_(False)

    def forward(self, x, sigma, y):
        exact = gaussian_denoiser(self.family, mean=0.0, std=STD)
        mean = expand_like(EMPTY + (COND - EMPTY) * y[:, 0], x)
        alpha = expand_like(1.0 - sigma if self.family is FLOW else torch.ones_like(sigma), x)
        level = expand_like(sigma, x)
        scale = (alpha**2 + level**2).sqrt()
        time = torch.searchsorted(self.table, sigma.contiguous()) / len(self.table) * (KNOTS - 1)
        hats = (1.0 - (time[:, None] - torch.arange(KNOTS)).abs()).clamp(min=0.0)
        features = torch.cat([hats * (x / scale).reshape(-1, 1), hats], dim=1)
        correction = self.correction(features).reshape(x.shape)
        return mean + exact(x - alpha * mean, sigma) + (level / scale) ** 2 * correction


@contextlib.contextmanager
def learnt(root, family, *, iterations=400, **changed):
    """(the trained method, its student)."""
    chosen = {"steps": 1, "learning_rate": 1e-2, "guidance_scale": 1.0, "companion_learning_rate": 3e-2}
    values = {**chosen, "companion_updates": 5, "companion_first": 20, "strength": "plain", "iterations": iterations}
    kind = TeacherKind(family=family, table=table(family), empty_prompt=True)
    method = DistributionMatchingOptions.read(values | changed).on(kind)
    network, lora = Corrected(family), LoRAOptions(rank=4, alpha=4.0)
    data = TensorData(
        x0=torch.zeros(1, 1, 1, 1), condition={"y": torch.ones(1, 1)}, unconditional={"y": torch.zeros(1, 1)}
    )
    training = TrainOptions(batch_size=128, ema_decay=0.98, gradient_clip=100.0, log_every=10, checkpoint_every=10**6)
    with Adapters(network, lora) as adapters:
        student = LoRAStudent(adapters, lora, denoise=network, names={"correction": "lora_unet_correction"}, seed=1)
        train(RunFolder(root, "run"), method, student, data, options=training)
        yield method, student


def samples(method, student, count=20000):
    (stage,) = method.stages()
    noise = torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(3))
    start = method.family.initial(noise, sigma=stage.sigmas[0])
    with torch.no_grad():
        drawn = sample_few_step(
            student.denoiser,
            start,
            stage.sigmas,
            {"y": torch.ones(count, 1)},
            disable=True,
            family=method.family,
            gamma=stage.gamma,
            noise_sampler=lambda *_: torch.randn(start.shape, generator=torch.Generator().manual_seed(4)),
        )
    return float(drawn.mean()), float(drawn.std())


FORMS = {
    "dmd": ({}, COND),
    "guided": ({"guidance_scale": 3.0}, EMPTY + 3.0 * (COND - EMPTY)),
    "normalised": ({"strength": "normalised"}, COND),
    "diff-instruct and swiftbrush": ({"strength": "score", "learning_rate": 3e-2}, COND),
    "decoupled": ({"guidance_scale": 3.0, "guidance": "decoupled"}, EMPTY + 3.0 * (COND - EMPTY)),
    "tdm": ({"steps": 2, "rollout": "segments"}, COND),
    "landings": ({"steps": 2, "rollout": "landings"}, COND),
    "two steps": ({"steps": 2}, COND),
    "deterministic": ({"steps": 2, "rollout": "deterministic", "learning_rate": 2e-2}, COND),
}


@pytest.mark.parametrize(
    ("form", "family", "iterations"),
    first_then_thorough(
        [("dmd", VE, 250)],
        [(form, family, 800 if form == "deterministic" else 400) for form in FORMS for family in FAMILIES],
    ),
)
def test_a_student_with_a_learning_companion_draws_the_gaussian(form, family, iterations, tmp_path):
    """From a teacher that says its mean in one step: to 0.05 in mean and deviation, of data of deviation 0.5."""
    changed, mean = FORMS[form]
    with learnt(tmp_path, family, iterations=iterations, **changed) as (method, student):
        assert samples(method, student) == pytest.approx((mean, STD), abs=0.05)


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_a_companion_that_lags_leads_the_student_astray(family, tmp_path):
    """One update for each of the student's at a thirtieth of the rate: why there are more, and at a higher one."""
    lagging = {"companion_updates": 1, "companion_learning_rate": 1e-3, "learning_rate": 2e-2}
    with learnt(tmp_path / "lagging", family, iterations=200, **lagging) as (method, student):
        astray = abs(samples(method, student)[0] - COND)
    with learnt(tmp_path / "keeping up", family, iterations=200) as (method, student):
        assert astray > 0.1 + abs(samples(method, student)[0] - COND)
