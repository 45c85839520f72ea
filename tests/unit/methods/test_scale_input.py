"""Students that take their guidance scale as an input: closed forms of what they are taught, and training that finds them."""

import math

import pytest
import torch
from comfyui_fewstep.samplers.guidance_embedding import GuidedTimeEmbedding, LearntGuidance, at_scale, w_embedding
from comfyui_fewstep.samplers.noise import NoiseFamily, expand_like, solved_x0
from comfyui_fewstep.trainers.data.batches import Batch, TensorData
from comfyui_fewstep.trainers.methods.consistency import ConsistencyOptions
from comfyui_fewstep.trainers.methods.guidance import GuidanceOptions
from comfyui_fewstep.trainers.methods.progressive import ProgressiveOptions
from comfyui_fewstep.trainers.objective.guidance_range import GuidanceRange
from comfyui_fewstep.trainers.objective.method import Lesson, TeacherKind
from comfyui_fewstep.trainers.objective.weighting import Weighting
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.student import FullWeightsStudent
from comfyui_fewstep.trainers.training.loop import train
from comfyui_fewstep.trainers.training.optimisation.micro_batches import in_pieces, split
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from gaussian import FAMILIES, gaussian_denoiser, table
from test_guidance_distillation import EMPTY, PROMPT, two_prompts
from thorough import first_then_thorough

LOW, HIGH = 1.0, 5.0
RANGE = {"guidance_scale": LOW, "guidance_scale_max": HIGH, "iterations": 10, "learning_rate": 1e-3}
EMPTY_PROMPT = {"y": torch.zeros(1, 1)}


def guided_at(family, scales):
    """The guided denoiser of two Gaussians in closed form, at a scale for each sample (B,)."""
    without, with_prompt = gaussian_denoiser(family, **EMPTY), gaussian_denoiser(family, **PROMPT)

    def denoise(x, sigma, **_):
        s = expand_like(scales, x)
        return (1.0 - s) * without(x, sigma) + s * with_prompt(x, sigma)

    return denoise


def batch(count=256):
    x0 = 0.7 + 0.5 * torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    return Batch(x0, {"y": torch.ones(count, 1)}, unconditional=EMPTY_PROMPT)


def made(options, family, **changed):
    given = {"family": family, "table": table(family), "prediction_type": "any", "empty_prompt": True}
    return options.on(TeacherKind(**{**given, **changed}))


def target_of(method, *, teacher=None, student=None, stage=0, count=256):
    return method.target(
        Lesson(
            batch=batch(count),
            stage=stage,
            teacher=teacher or two_prompts(method.family),
            student=student,
            generator=torch.Generator().manual_seed(3),
        )
    )


# --- what is taught --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_is_taught_at_a_scale_of_each_samples_own(family):
    target = target_of(made(GuidanceOptions(**RANGE), family), count=20000)
    scales = target.condition["guidance_scale"]
    exact = guided_at(family, scales.double())(target.x_t.double(), target.sigma.double())
    assert (target.x0 - exact).abs().max() < 1e-4
    assert LOW <= scales.min() < LOW + 0.01
    assert HIGH - 0.01 < scales.max() <= HIGH
    counts = scales.histc(8, LOW, HIGH)
    assert counts.min() > 0.9 * counts.mean(), "evenly"
    levels = target.sigma.unique()
    assert abs(torch.corrcoef(torch.stack([scales, torch.searchsorted(levels, target.sigma).float()]))[0, 1]) < 0.03


@pytest.mark.parametrize("takes_scale", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_consistency_asks_student_and_teacher_at_one_scale(family, takes_scale):
    """The teacher by both of its prompts, or by its own input; the student, which is its own target, by its input."""
    asked = []

    def with_input(x, sigma, y, guidance_scale):
        return guided_at(family, guidance_scale)(x, sigma)

    def student(x, sigma, y, guidance_scale):
        asked.append((x, sigma, guidance_scale))
        return torch.zeros_like(x)

    method = made(ConsistencyOptions(**RANGE, steps=4, levels=10, scale_input=True), family, takes_scale=takes_scale)
    target = target_of(method, teacher=with_input if takes_scale else None, student=student)
    ((x_s, sigma_next, scales),) = asked
    assert torch.equal(target.condition["guidance_scale"], scales)
    assert len(scales.unique()) == len(scales)
    x0 = guided_at(family, scales)(target.x_t, target.sigma)
    step = family.jump(target.x_t, x0, sigma=target.sigma, sigma_next=sigma_next)
    torch.testing.assert_close(x_s, step, atol=1e-4, rtol=1e-4)


def test_a_teacher_with_an_input_is_asked_as_it_is_where_nothing_is_guided():
    """At the scale that Guidance Embedding has set."""

    def teacher(x, sigma, **condition):
        assert condition.keys() == {"y"}
        return 2.0 * x

    data, x = batch(2), torch.ones(2, 1, 1, 1)
    taught = GuidanceRange(1.0, 1.0).teaching(teacher, data, 1.0, takes_scale=True)
    assert torch.equal(taught(x, torch.ones(2), **data.condition), 2.0 * x)


def test_without_the_input_the_student_is_not_told(family=NoiseFamily.FLOW):
    """As LCM-LoRA is trained."""
    method = made(ConsistencyOptions(**RANGE, steps=4, levels=10), family)
    target = target_of(method, student=lambda x, sigma, y: x)
    assert target.condition.keys() == {"y"}
    assert method.scale_input is None


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stage_is_judged_by_its_teacher_at_the_middle_of_the_scales(family, stage):
    """By both of its prompts, or, as the student of the stage before, by its input."""
    method = made(ProgressiveOptions(**RANGE, start_steps=4, target_steps=1, weighting=Weighting.CONSTANT), family)
    student = lambda x, sigma, y, guidance_scale: guided_at(family, guidance_scale)(x, sigma)  # noqa: E731
    data, sigma = batch(8), torch.full((8,), 0.5)
    taught = method.teaching(student if stage else two_prompts(family), stage=stage, batch=data)
    middle = torch.full((8,), (LOW + HIGH) / 2)
    torch.testing.assert_close(
        taught(data.x0, sigma, **data.condition), guided_at(family, middle)(data.x0, sigma), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("takes_scale", [False, True])
@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_progressive_halves_at_each_scale(family, stage, takes_scale):
    """Meng et al. 2023, section 3.2: both steps of the teacher at the sample's own scale; after a stage by its input."""
    options = ProgressiveOptions(**RANGE, start_steps=4, target_steps=1, weighting=Weighting.CONSTANT)
    method = made(options, family, takes_scale=takes_scale, empty_prompt=not takes_scale)
    by_input, asked = stage > 0 or takes_scale, []

    def with_input(x, sigma, y, guidance_scale):
        asked.append(guidance_scale)
        return guided_at(family, guidance_scale)(x, sigma)

    target = target_of(method, teacher=with_input if by_input else None, stage=stage)
    scales, fine = target.condition["guidance_scale"], method.stages()[stage].teacher_sigmas
    assert all(torch.equal(given, scales) for given in asked)
    assert len(asked) == (2 if by_input else 0), "one forward a step"
    k = (fine[:, None] - target.sigma).abs().argmin(dim=0)
    x, exact = target.x_t, guided_at(family, scales)
    for step in range(2):
        sigma, sigma_next = fine[k + step], fine[k + step + 1]
        x = family.jump(x, exact(x, sigma), sigma=sigma, sigma_next=sigma_next)
    wanted = solved_x0(target.x_t, x, sigma_t=target.sigma, sigma_s=fine[k + 2])
    torch.testing.assert_close(target.x0, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        GuidanceOptions(**RANGE),
        ConsistencyOptions(**RANGE, steps=2, scale_input=True),
        ProgressiveOptions(**RANGE, start_steps=4, target_steps=2, weighting=Weighting.CONSTANT),
    ],
)
def test_previews_and_recipe_are_at_the_middle(options):
    method = made(options, NoiseFamily.FLOW)
    assert method.scale_input == GuidanceRange(LOW, HIGH)
    assert method.recipe(stage=0, prediction_type="flow").guidance_scale == 3.0
    x, sigma = torch.randn(4, 1, 1, 1), torch.full((4,), 0.5)
    drawn = method.teaching(two_prompts(NoiseFamily.FLOW), stage=0, batch=batch(4))(x, sigma, y=torch.ones(4, 1))
    torch.testing.assert_close(drawn, guided_at(NoiseFamily.FLOW, torch.full((4,), 3.0))(x, sigma))
    assert type(options).read(options.written()) == options


def test_scales_go_with_their_samples_where_a_batch_is_split():
    target = target_of(made(GuidanceOptions(**RANGE), NoiseFamily.FLOW), count=12)
    assert torch.equal(
        torch.cat([piece.condition["guidance_scale"] for piece in split(target, 3)]), target.condition["guidance_scale"]
    )
    by_input = lambda x, sigma, guidance_scale: x * expand_like(guidance_scale, x)  # noqa: E731
    scales = target.condition["guidance_scale"]
    whole = by_input(target.x_t, target.sigma, guidance_scale=scales)
    assert torch.equal(in_pieces(by_input, 3)(target.x_t, target.sigma, guidance_scale=scales), whole)


# --- the embedding ---------------------------------------------------------------------------------------------------


def time_embedding():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.SiLU(), torch.nn.Linear(12, 12))


def test_what_learns_begins_as_what_there_was():
    layers, x = time_embedding(), torch.randn(3, 8)
    learnt = LearntGuidance(layers, None, guidance_scale=4.0)
    with at_scale(learnt, torch.tensor([1.0, 2.0, 9.0])):
        assert torch.equal(learnt(x), layers(x))
    assert learnt.state_dict().keys() == layers.state_dict().keys() | {"cond_proj.weight"}
    assert learnt.cond_proj.weight.shape == (8, 256)


def test_learning_sampling_and_fixed_layers_say_the_same():
    """One scale for each sample in training, one for all when the host samples, and none at all in ordinary weights."""
    layers, x = time_embedding(), torch.randn(3, 8)
    cond_proj = torch.randn(8, 16)
    learnt = LearntGuidance(layers, cond_proj, guidance_scale=4.0)
    scales = torch.tensor([1.0, 2.5, 7.0])
    with at_scale(learnt, scales):
        each = learnt(x)
    expected = layers(x + w_embedding(scales, dim=16) @ cond_proj.T)
    torch.testing.assert_close(each, expected)
    for row, scale in enumerate(scales.tolist()):
        sampling = GuidedTimeEmbedding(layers, cond_proj, guidance_scale=scale)
        torch.testing.assert_close(sampling(x)[row], each[row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(sampling.fixed()(x)[row], each[row], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        learnt(x), GuidedTimeEmbedding(layers, cond_proj, guidance_scale=4.0)(x), atol=1e-5, rtol=1e-5
    )
    assert (learnt(x) - each).abs().max() > 1e-3, "outside it is at its own scale again"


# --- training --------------------------------------------------------------------------------------------------------


class Network(torch.nn.Module):
    """x0 = shift + gain x, both out of an embedding of the noise level and the scale, in the way of a UNet's."""

    def __init__(self, family):
        super().__init__()
        torch.manual_seed(1)
        layers = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64))
        self.family, self.time_embed = family, LearntGuidance(layers, None, guidance_scale=3.0)
        self.head = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Linear(64, 2))

    def forward(self, x, sigma, guidance_scale=None, **_):
        angles = (sigma if self.family is NoiseFamily.FLOW else sigma.log() / math.pi)[:, None] * torch.arange(1, 9)
        embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
        with at_scale(self.time_embed, self.time_embed.guidance_scale if guidance_scale is None else guidance_scale):
            gain, shift = self.head(self.time_embed(embedding)).T
        scale = 1.0 if self.family is NoiseFamily.FLOW else (1.0 + sigma**2).rsqrt()
        return expand_like(shift, x) + expand_like(gain * scale, x) * x


@pytest.mark.parametrize(
    ("family", "iterations", "rate", "limit"),
    first_then_thorough([(NoiseFamily.FLOW, 250, 1e-2, 0.3)], [(family, 2500, 5e-3, 0.06) for family in FAMILIES]),
)
def test_a_student_says_at_every_scale_in_one_forward_what_two_said(family, iterations, rate, limit, tmp_path):
    """On noise and at scales that it never saw: the rms error at every level, where guidance moves x0 by up to 4."""
    levels = table(family)[[99, 299, 499, 699, 899, 999]]
    options = GuidanceOptions(**{**RANGE, "iterations": iterations, "learning_rate": rate}, steps=6)
    method = made(options, family, table=levels)
    calls = []

    def as_denoiser(module):
        def denoise(x, sigma, **condition):
            calls.append(module)
            return module(x, sigma, **condition)

        return denoise

    full = FullWeightsStudent(Network(family), Network(family), as_denoiser=as_denoiser)
    full.teacher, full.promote = two_prompts(family), lambda: None
    data = TensorData(x0=batch(4096).x0, condition={"y": torch.ones(1, 1)}, unconditional=EMPTY_PROMPT)
    training = TrainOptions(batch_size=256, log_every=10**6, checkpoint_every=10**6)
    train(RunFolder(tmp_path, "toy"), method, full, data, options=training)
    calls.clear()
    held_out = torch.randn(64, 1, 1, 1, generator=torch.Generator().manual_seed(77))
    for level in levels:
        sigma = level.expand(64)
        x = family.add_noise(batch(64).x0, held_out, sigma=sigma)
        for scale in (1.0, 1.7, 3.3, 5.0):
            learnt = full.denoiser(x, sigma, guidance_scale=torch.tensor([scale])).detach()
            exact = guided_at(family, torch.full((64,), scale))(x, sigma)
            assert (learnt - exact).square().mean().sqrt() < limit, (float(level), scale)
    assert calls == [full.module] * (4 * len(levels)), "one forward each"


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (
            {"guidance_scale": 6.0},
            r"guidance_scale is 6\.0 and guidance_scale_max is 5\.0; the second must not be below",
        ),
        ({"guidance_scale_max": 101.0}, r"guidance_scale_max is 101\.0; allowed is 1"),
        ({"guidance_scale": 0.5}, r"guidance_scale is 0\.5; allowed is 1"),
    ],
)
@pytest.mark.parametrize("kind", ["guidance", "consistency", "progressive"])
def test_bad_ranges_are_named(kind, changed, named):
    kinds = {
        "guidance": lambda **given: GuidanceOptions(**given),
        "consistency": lambda **given: ConsistencyOptions(**given, steps=4),
        "progressive": lambda **given: ProgressiveOptions(
            **given, start_steps=4, target_steps=2, weighting=Weighting.CONSTANT
        ),
    }
    with pytest.raises(ValueError, match=named):
        kinds[kind](**{**RANGE, **changed})


def test_what_does_not_go_together_is_named():
    one = {**RANGE, "guidance_scale": 3.0, "guidance_scale_max": 0.0}
    with pytest.raises(ValueError, match=r"scale_input is on, but .* needs a range to learn"):
        ConsistencyOptions(**one, steps=4, scale_input=True)
    with pytest.raises(ValueError, match="takes its guidance scale as an input already; there is nothing to distil"):
        made(GuidanceOptions(**RANGE), NoiseFamily.FLOW, takes_scale=True)
    for options in (
        ConsistencyOptions(**one, steps=4),
        ProgressiveOptions(**one, start_steps=4, target_steps=2, weighting=Weighting.CONSTANT),
    ):
        with pytest.raises(
            ValueError, match=r"guidance_scale is 3\.0, but the connected model takes its scale as an input"
        ):
            made(options, NoiseFamily.FLOW, takes_scale=True)
