"""Distillation trained from scratch lands on the student that is known in closed form, whatever its network predicts.

Of Gaussian data the exact denoiser is affine in x at each level, and so are two of its steps solved back into one. A
network with two numbers for each level can be that student exactly.
"""

import itertools

import pytest
import torch
from comfyui_fewstep.samplers.few_step import sample_few_step
from comfyui_fewstep.samplers.noise import NoiseFamily, expand_like
from comfyui_fewstep.trainers.data.batches import TensorData
from comfyui_fewstep.trainers.methods.progressive import ProgressiveOptions
from comfyui_fewstep.trainers.objective.method import TeacherKind
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from comfyui_fewstep.trainers.students.x0_and_eps import combined_x0
from comfyui_fewstep.trainers.training.loop import train
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from gaussian import gaussian_denoiser, paper_target, table
from thorough import first_then_thorough
from torch import nn

VE, FLOW = NoiseFamily
FAMILY_OF = {"eps": VE, "v_prediction": VE, "x0": VE, "flow": FLOW}
READINGS = {
    "eps": lambda x, out, s: x - s * out,
    "v_prediction": lambda x, out, s: x / (1 + s**2) - s / (1 + s**2) ** 0.5 * out,
    "x0": lambda x, out, s: out,
    "flow": lambda x, out, s: x - s * out,
    "x0_and_eps": lambda x, out, s: combined_x0(x, out, sigma=s),
}
OUTPUTS = {
    "eps": lambda x, x0, s: (x - x0) / s,
    "v_prediction": lambda x, x0, s: (x / (1 + s**2) - x0) * (1 + s**2) ** 0.5 / s,
    "x0": lambda x, x0, s: x0,
    "flow": lambda x, x0, s: (x - x0) / s,
}
"""The inverses of READINGS where there is one."""


class Affine(nn.Module):
    """gain * x / scale + shift, both of the nearest level, for each channel out; begins at random numbers of unit size."""

    def __init__(self, levels, *, family, channels=1, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("levels", levels)
        self.register_buffer("scale", torch.ones_like(levels) if family is FLOW else (1 + levels**2) ** 0.5)
        self.gain, self.shift = (
            nn.Parameter(torch.randn(len(levels), channels, generator=generator)) for _ in range(2)
        )

    def forward(self, x, sigma):
        k = (self.levels - sigma[:, None]).abs().argmin(dim=1)
        gain, shift, scale = (expand_like(value[k], x) for value in (self.gain, self.shift, self.scale))
        return gain * x / scale + shift

    @torch.no_grad()
    def fit(self, denoiser, output):
        """Exactly the network that says `denoiser`, from its values at 0 and at scale."""
        at = [torch.zeros_like(self.levels), self.scale]
        low, high = (output(x, denoiser(x, self.levels), self.levels) for x in at)
        self.shift.copy_(low[:, None])
        self.gain.copy_((high - low)[:, None])


def read(module, kind):
    return lambda x, sigma, **_: READINGS[kind](x, module(x, sigma), expand_like(sigma, x))


def first_channel(module, kind):
    """A teacher in a module that has room for a student of two channels, both of which say what it predicts."""
    return lambda x, sigma, **_: READINGS[kind](x, module(x, sigma)[:, :1], expand_like(sigma, x))


def distilled(folder, *, teacher, student, observers=(), **changed):
    """(the trained method, its student) from networks that predict so; the teacher is exact, the student random."""
    family = FAMILY_OF[teacher]
    chosen = {"start_steps": 8, "target_steps": 4, "iterations": 120, "learning_rate": 0.15, "guidance_scale": 1.0}
    values = {**chosen, "weighting": "truncated_snr", "student_prediction": student, **changed}
    kind = TeacherKind(family=family, table=table(family), prediction_type=teacher)
    method = ProgressiveOptions.read(values).on(kind)
    own = teacher if student == "as_teacher" else student
    channels = 2 if own == "x0_and_eps" else 1
    networks = [Affine(method._finest[:-1], family=family, channels=channels, seed=seed) for seed in (1, 2)]
    networks[1].fit(gaussian_denoiser(family), OUTPUTS[teacher])
    full = FullWeightsStudent(
        *networks,
        as_denoiser=lambda module: read(module, own),
        first_teacher=None if own == teacher else lambda module: first_channel(module, teacher),
    )
    x0 = 0.7 + 0.5 * torch.randn(4096, 1, 1, 1, generator=torch.Generator().manual_seed(5))
    options = TrainOptions(batch_size=256, log_every=10**6, checkpoint_every=10**6, gradient_clip=1e6)
    data = TensorData(x0=x0, condition={"y": torch.ones(1, 1)})
    train(RunFolder(folder, "toy"), method, full, data, options=options, observers=observers)
    return method, full


KINDS = [("eps", "as_teacher"), ("x0", "as_teacher"), ("v_prediction", "as_teacher"), ("flow", "as_teacher")]
CONVERTED = [
    pair
    for pair in itertools.product(("eps", "v_prediction", "x0"), ("eps", "v_prediction", "x0", "x0_and_eps"))
    if pair[0] != pair[1]
]


def spread(sigma, family):
    """Samples over three deviations of what is seen at sigma."""
    alpha = 1.0 - sigma if family is FLOW else 1.0
    return alpha * 0.7 + torch.linspace(-3, 3, 13).reshape(-1, 1, 1, 1) * (0.25 * alpha**2 + sigma**2) ** 0.5


@pytest.mark.parametrize(
    ("teacher", "student", "distance", "iterations", "rate"),
    first_then_thorough(
        [("x0", "as_teacher", "squared", 120, 0.15), ("flow", "as_teacher", "pseudo_huber", 120, 0.15)],
        [(*pair, distance, 400, 0.05) for pair in KINDS for distance in ("squared", "pseudo_huber")],
    ),
)
def test_a_student_from_scratch_is_the_papers_at_every_level(teacher, student, distance, iterations, rate, tmp_path):
    """To 0.01, data of deviation 0.5. The optimum of either distance is the target itself."""
    training = {"distance": distance, "iterations": iterations, "learning_rate": rate}
    method, full = distilled(tmp_path, teacher=teacher, student=student, **training)
    fine = method._finest
    for k in range(0, 8, 2):
        x = spread(fine[k], method.family)
        exact = paper_target(gaussian_denoiser(method.family), x, levels=fine[k : k + 3], family=method.family)
        learnt = full.denoiser(x, fine[k].expand(len(x))).detach()
        assert (learnt - exact).abs().max() < 0.01, f"level {k}"


WHOLE_RUNS = first_then_thorough(
    [("eps", "v_prediction", "cosine"), ("v_prediction", "x0_and_eps", "trailing"), ("flow", "as_teacher", "trailing")],
    [*((*pair, "trailing") for pair in CONVERTED), ("eps", "v_prediction", "edm")],
)


@pytest.mark.parametrize(("teacher", "student", "grid"), WHOLE_RUNS)
def test_the_last_student_goes_where_its_first_teacher_goes(teacher, student, grid, tmp_path):
    """Conversion and two halvings: two steps end where eight do, to 0.02 of data of deviation 0.5, on the chosen grid."""
    method, full = distilled(tmp_path, teacher=teacher, student=student, target_steps=2, grid=grid)
    assert [stage.steps for stage in method.stages()] == ([4, 2] if teacher == "flow" else [8, 4, 2])
    x = spread(method._finest[0], method.family)
    ways = [(gaussian_denoiser(method.family), method._finest), (full.denoiser, method.stages()[-1].sigmas)]
    far, near = (
        sample_few_step(model, x, sigmas, disable=True, family=method.family, gamma=0.0) for model, sigmas in ways
    )
    assert (far - near).abs().max() < 0.02
    taught = full.teacher(x, method._finest[0].expand(len(x)))
    learnt = full.denoiser(x, method._finest[0].expand(len(x)))
    torch.testing.assert_close(taught, learnt.detach())


@pytest.mark.parametrize("kind", first_then_thorough(["flow"], ["eps"]))
def test_a_student_of_four_merged_steps_is_the_teachers_way(kind, tmp_path):
    """Eight steps to two in one stage, from random weights, to 0.02."""
    method, full = distilled(tmp_path, teacher=kind, student="as_teacher", target_steps=2, merged_steps=4)
    assert [stage.steps for stage in method.stages()] == [2]
    x = spread(method._finest[0], method.family)
    ways = [(gaussian_denoiser(method.family), method._finest), (full.denoiser, method.stages()[-1].sigmas)]
    far, near = (
        sample_few_step(model, x, sigmas, disable=True, family=method.family, gamma=0.0) for model, sigmas in ways
    )
    assert (far - near).abs().max() < 0.02


def test_a_converting_run_goes_on_with_the_reading_that_it_had(tmp_path):
    """Before and after the teacher was a student: equal to the bit to the run that never stopped."""
    method, whole = distilled(tmp_path, teacher="eps", student="v_prediction", iterations=6)
    assert [stage.iterations for stage in method.stages()] == [6, 6]
    for stop in (3, 9):

        def interrupt(metrics, stop=stop):
            if metrics.iteration == stop:
                raise KeyboardInterrupt

        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            distilled(folder, teacher="eps", student="v_prediction", observers=[interrupt], iterations=6)
        _, resumed = distilled(folder, teacher="eps", student="v_prediction", iterations=6)
        assert torch.equal(resumed.module.gain, whole.module.gain)
        x = spread(method._finest[0], VE)
        ones = torch.ones(len(x))
        assert torch.equal(resumed.teacher(x, ones), whole.teacher(x, ones))
