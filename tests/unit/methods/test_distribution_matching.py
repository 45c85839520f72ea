"""Distribution matching against its closed forms: where it rests, where it pulls, what it asks of whom, and how often."""

import itertools

import pytest
import torch
from comfyui_fewstep.samplers.few_step import sample_few_step
from comfyui_fewstep.samplers.noise import NoiseFamily, guided
from comfyui_fewstep.trainers.data.batches import Batch
from comfyui_fewstep.trainers.methods.consistency import ConsistencyOptions
from comfyui_fewstep.trainers.methods.distribution_matching import DistributionMatchingOptions
from comfyui_fewstep.trainers.objective.grid import Grid
from comfyui_fewstep.trainers.objective.method import Lesson, TeacherKind
from comfyui_fewstep.trainers.objective.score import FLOOR, Strength, noised, seen_in, weight_of_seen
from gaussian import FAMILIES, Mixture, gaussian_denoiser, table

VE, FLOW = NoiseFamily
COND, EMPTY, STD = 0.7, 0.2, 0.5
"""Means of the teacher with and without its prompt, and the deviation of both."""
COUNT = 20000


def options(**changed):
    chosen = {"steps": 1, "iterations": 10, "learning_rate": 1e-3, "guidance_scale": 1.0, "strength": Strength.PLAIN}
    return DistributionMatchingOptions.read(
        {name: getattr(value, "value", value) for name, value in (chosen | changed).items()}
    )


def method(family, *, unit=1.0, **changed):
    return options(**changed).on(TeacherKind(family=family, table=table(family), empty_prompt=True, unit=unit))


def teacher_of(family):
    """One mean with the prompt y = 1, another with y = 0."""
    means = {1.0: gaussian_denoiser(family, mean=COND, std=STD), 0.0: gaussian_denoiser(family, mean=EMPTY, std=STD)}

    def teacher(x, sigma, y):
        assert len(set(y.flatten().tolist())) == 1
        return means[float(y.flatten()[0])](x, sigma)

    return teacher


def lesson_of(family, *, count=COUNT, teacher=None, student=None, fake=None, seed=0, examples=None):
    x0 = torch.zeros(count, 1, 1, 1, dtype=torch.float64)
    batch = Batch(x0, {"y": torch.ones(count, 1)}, unconditional={"y": torch.zeros(1, 1)})
    return Lesson(
        batch=batch,
        stage=0,
        teacher=teacher or teacher_of(family),
        student=student or gaussian_denoiser(family, mean=COND, std=STD),
        generator=torch.Generator().manual_seed(seed),
        companions={"fake": fake or gaussian_denoiser(family)},
        examples=examples or {},
    )


def drawn(mean, std, *, sigma, count=COUNT):
    """Examples of a student that draws from a Gaussian, at a step that begins at sigma."""
    x0 = mean + std * torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    sigma = torch.full((count,), float(sigma), dtype=torch.float64)
    matched = {"x_s": x0, "sigma_s": torch.zeros_like(sigma), "levels": torch.tensor([float(sigma[0]), 0.0])}
    return {"x_t": x0, "sigma": sigma, "x0": x0, "start": x0, **matched}


def pull_on(mean, std, family, *, made=None, sigma=None, **lesson):
    """(x0, pull) of a student that draws from that Gaussian and has an exact companion."""
    made = made or method(family)
    examples = drawn(mean, std, sigma=table(family)[-1] if sigma is None else sigma)
    fake = gaussian_denoiser(family, mean=mean, std=std)
    target = made.target(lesson_of(family, fake=fake, examples=examples, **lesson))
    torch.testing.assert_close(target.x0, examples["x0"] - target.pull)
    return examples["x0"].flatten(), target.pull.flatten()


def assert_mean(values, expected):
    """Within four deviations of a mean of so many draws."""
    assert abs(float(values.mean()) - float(expected)) < 4.0 * float(values.std()) / len(values) ** 0.5 + 1e-12


def assert_close(found, expected):
    """Samples are float32 whatever the noise is."""
    torch.testing.assert_close(found.float(), expected.float())


def slopes(std, family):
    """(alpha gain, 1 - alpha gain) of the denoiser of data of that deviation, at each of the levels that samples go to."""
    sigma = table(family, 1000)[20:980].double()
    alpha = 1.0 - sigma if family is FLOW else torch.ones_like(sigma)
    kept = alpha**2 * std**2 / (alpha**2 * std**2 + sigma**2)
    return kept, 1.0 - kept


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exact_companion_pulls_to_the_teachers_mean_and_deviation(family):
    """E g = kappa (m - mu), and the slope of g over x is k_fake - k_real: above 0 just where the samples are too far apart."""
    for mean, std in ((1.5, STD), (COND, 0.8), (COND, 0.3), (-0.4, 0.1)):
        x0, pull = pull_on(mean, std, family)
        kept, lost = slopes(STD, family)
        assert_mean(pull, lost.mean() * (mean - COND))
        own, _ = slopes(std, family)
        slope = (pull * (x0 - mean)) / std**2
        assert_mean(slope, (own - kept).mean())
        assert std == STD or (float(slope.mean()) > 0) == (std > STD)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_companion_that_is_the_teacher_pulls_nowhere(family):
    """To the bit: both see the same tensors."""
    teacher = teacher_of(family)
    examples = drawn(0.3, 0.9, sigma=table(family)[-1])
    for strength in Strength:
        made = method(family, strength=strength)
        target = made.target(lesson_of(family, fake=teacher, examples=examples))
        assert not target.pull.any()
        assert torch.equal(target.measures["gap"], torch.zeros(COUNT, dtype=torch.float64))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [1.0, 4.5])
def test_a_guided_student_rests_at_the_guided_mean(family, scale):
    """At mu_u + s (mu_c - mu_u) and the same deviation, nothing pulls on any sample."""
    mean = EMPTY + scale * (COND - EMPTY)
    _, pull = pull_on(mean, STD, family, made=method(family, guidance_scale=scale))
    assert float(pull.abs().max()) < 1e-6
    _, elsewhere = pull_on(COND + 0.1, STD, family, made=method(family, guidance_scale=scale))
    assert float(elsewhere.abs().max()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("step", [0, 3])
def test_decoupled_guidance_rests_where_the_paper_says(family, step):
    """mean = mu_c + (s - 1) (E_CA kappa / E_DM kappa) (mu_c - mu_u): levels cleaner than the student's guide less."""
    scale, levels = 4.5, table(family)
    made = method(family, guidance_scale=scale, guidance="decoupled", steps=4)
    sigma = made.stages()[0].sigmas[step]
    _, lost = slopes(STD, family)
    below = lost[: int((levels[20:980] < sigma).sum())]
    mean = COND + (scale - 1.0) * float(below.mean() / lost.mean()) * (COND - EMPTY)
    x0, pull = pull_on(mean, STD, family, made=made, sigma=sigma)
    assert_mean(pull, 0.0)
    assert_mean(pull * (x0 - mean) / STD**2, 0.0)
    _, off = pull_on(mean + 0.3, STD, family, made=made, sigma=sigma)
    assert_mean(off, float(lost.mean()) * 0.3)


def test_guidance_apart_looks_at_levels_cleaner_than_the_students():
    """The paper's time runs the other way: its levels above are ours below, down to the first, wherever a step lands."""
    for family, step, lands in itertools.product(FAMILIES, range(4), (False, True)):
        rollout = "landings" if lands else "fresh_noise"
        made, seen = method(family, guidance_scale=3.0, guidance="decoupled", steps=4, rollout=rollout), []

        def teacher(x, sigma, y, seen=seen):
            seen.append(sigma)
            return x

        sigma = made.stages()[0].sigmas[step]
        examples = drawn(0.0, 1.0, sigma=sigma)
        landing = float(made.stages()[0].sigmas[step + 1]) if lands else 0.0
        examples["sigma_s"] += landing
        examples["levels"][1] = landing
        made.target(lesson_of(family, teacher=teacher, examples=examples))
        matched, guiding, without = seen
        assert torch.equal(guiding, without)
        assert float(guiding.min()) < float(table(family)[22])
        assert float(guiding.max()) < float(sigma)
        assert float(guiding.max()) > 0.9 * float(min(sigma, table(family)[979]))
        assert float(matched.max()) > 0.99 * float(table(family)[979])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_in_one_of_two_modes_stays_there(family):
    """Reverse KL: levels whose noise does not reach from mode to mode never say that there is another."""
    modes = Mixture(weights=[0.5, 0.5], means=[-3.0, 3.0], stds=[0.4, 0.4]).denoiser(family)

    def pulled(mean, renoise_to):
        made = method(family, renoise_to=renoise_to)
        return float(pull_on(mean, 0.4, family, made=made, teacher=lambda x, sigma, y: modes(x, sigma))[1].mean())

    near = 0.4
    assert abs(pulled(3.0, near)) < 0.01
    assert pulled(2.7, near) < -0.01, "the step is against the pull: back up to the mode"
    assert pulled(3.3, near) > 0.01
    assert pulled(3.0, 0.98) > 0.1, "levels that reach over pull to the middle, which is no mode"


@pytest.mark.parametrize("family", FAMILIES)
def test_each_sample_is_normalised_by_itself_and_never_blown_up(family):
    examples = drawn(0.0, 1.0, sigma=table(family)[-1], count=4)
    x0 = examples["x0"].expand(4, 3, 2, 2).clone()
    away = torch.linspace(-2.0, 1.0, 12, dtype=torch.float64).reshape(3, 2, 2)  # of either sign, and no two alike
    away = away / away.abs().mean()
    real = x0 + torch.tensor([0.0, 0.01, 1.0, 5.0], dtype=torch.float64).reshape(4, 1, 1, 1) * away
    found = Strength.NORMALISED.of(x0, real, sigma=torch.ones(4), family=family).flatten()
    torch.testing.assert_close(found, 1 / torch.tensor([FLOOR, FLOOR, 1.0, 5.0], dtype=torch.float64))
    scaled = Strength.NORMALISED.of(x0 / 8, real / 8, sigma=torch.ones(4), family=family, unit=1 / 8).flatten()
    torch.testing.assert_close(scaled, found)  # so a pull is an eighth, as the samples are
    sigma = torch.tensor([0.5, 0.5, 0.5, 0.5])
    ratio = 1.0 if family is FLOW else 0.5
    found = Strength.SCORE.of(x0, real, sigma=sigma, family=family)
    torch.testing.assert_close(found.flatten(), torch.full((4,), ratio / (1 + ratio**2)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_companion_of_noised_samples_learns_their_denoiser(family):
    """The regression on what it is taught, of Gaussian data at a level, is the Gaussian denoiser at the level above."""
    levels = table(family).double()
    for low, high in ((None, 300), (100, 101), (400, 700), (700, 999)):
        sigma = levels[high].reshape(1)
        sigma_s = levels[low].reshape(1) if low is not None else torch.zeros(1, dtype=torch.float64)
        one, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        walk = {"sigma_s": sigma_s, "sigma": sigma, "family": family}
        (signal, added), (kept, back) = ((of(one, none, **walk), of(none, one, **walk)) for of in (noised, seen_in))
        alpha = 1.0 - sigma_s if family is FLOW else torch.ones_like(sigma_s)
        variance = alpha**2 * STD**2 + sigma_s**2
        gain = (kept * signal * variance + back * added) / (signal**2 * variance + added**2)
        exact = gaussian_denoiser(family, std=STD)
        x = torch.tensor([0.0, 1.0], dtype=torch.float64)
        low_value, high_value = exact(x, sigma.expand(2))
        torch.testing.assert_close(gain, (high_value - low_value).reshape(1))
        torch.testing.assert_close(signal**2 * variance + added**2, _variance(sigma, family))


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_in_what_a_companion_is_taught_is_weighted_to_at_most_one(family):
    """However little signal a landing has: beside it the errors of all other landings still count."""
    levels, one = table(family).double(), torch.ones(1, dtype=torch.float64)
    for low, high in itertools.combinations(range(0, 990, 37), 2):
        walk = {"sigma_s": levels[low].reshape(1), "sigma": levels[high].reshape(1), "family": family}
        weight, (signal, added) = (
            weight_of_seen(**walk),
            (noised(*of, **walk) for of in ((one, 0 * one), (0 * one, one))),
        )
        noise = float(weight.sqrt() * seen_in(0 * one, one, **walk).abs())
        assert 0.0 < noise <= float(signal * walk["sigma_s"] / walk["sigma"]) < 1.0
        clean = weight_of_seen(0 * one, walk["sigma"], family=family)
        torch.testing.assert_close(clean, (1 / walk["sigma"] ** 2).clamp(max=100.0))
        if family is VE:
            torch.testing.assert_close(weight, clean * (added / walk["sigma"]) ** 2)


def _variance(sigma, family):
    alpha = 1.0 - sigma if family is FLOW else torch.ones_like(sigma)
    return alpha**2 * STD**2 + sigma**2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_companions_target_is_the_students_sample(family):
    """Of a denoiser that is exact for the samples the squared error is no less than of any other: its gradient there is 0."""
    made = method(family)
    lesson = lesson_of(family, examples=drawn(0.1, 0.9, sigma=table(family)[-1]))
    target = made.companion_target("fake", lesson)
    assert torch.equal(target.x0, lesson.examples["x0"])
    exact = gaussian_denoiser(family, mean=0.1, std=0.9)(target.x_t, target.sigma)
    residual = (exact - target.x0).flatten()
    assert_mean(residual, 0.0)
    assert_mean(residual * target.x_t.flatten(), 0.0)
    assert float(target.weight.max()) <= 100.0
    assert float(target.sigma.min()) >= float(table(family)[20])
    assert float(target.sigma.max()) < float(table(family)[980])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rollout", ["deterministic", "segments", "landings"])
def test_the_students_input_is_where_its_sampler_gets(rollout, family):
    """Without fresh noise the walk is the sampler's own, step for step, from the noise that a sampler starts at."""
    made, found = method(family, steps=4, rollout=rollout), set()
    student = gaussian_denoiser(family, mean=COND, std=STD)
    sigmas = made.stages()[0].sigmas.double()
    for seed in range(12):
        examples = made.examples(lesson_of(family, count=3, student=student, seed=seed))
        walk = []
        sample_few_step(
            student, examples["start"], sigmas, callback=walk.append, disable=True, family=family, gamma=0.0
        )
        step = int((sigmas[:-1] - examples["sigma"][0]).abs().argmin())
        found.add(step)
        assert_close(examples["x_t"], walk[step]["x"])
        assert_close(examples["x0"], walk[step]["denoised"])
        after = walk[step + 1]["x"] if step < 3 else walk[3]["denoised"]
        lands = rollout != "deterministic"
        assert_close(examples["x_s"], after if lands else examples["x0"])
        assert float(examples["sigma_s"][0]) == (float(sigmas[step + 1]) if lands else 0.0)
    assert found == {0, 1, 2, 3}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_walk_begins_as_samplers_do(family):
    """Of a variance-exploding model with the picture's own variance beside the noise, which a small largest level shows."""
    few = table(family)[:300]
    made = options(steps=2).on(TeacherKind(family=family, table=few))
    start = made.examples(lesson_of(family))["start"].flatten()
    assert_mean(start, 0.0)
    assert_mean(start**2, few[-1] ** 2 + (0.0 if family is FLOW else 1.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_with_fresh_noise_each_step_begins_at_its_x0_and_new_noise(family):
    asked = []

    def student(x, sigma, y):
        asked.append((x, sigma))
        return gaussian_denoiser(family, mean=COND, std=STD)(x, sigma)

    made, counts = method(family, steps=3), set()
    sigmas = made.stages()[0].sigmas.double()
    for seed in range(9):
        asked.clear()
        examples = made.examples(lesson_of(family, student=student, seed=seed))
        counts.add(len(asked))
        assert [float(sigma[0]) for _, sigma in asked] == sigmas[: len(asked)].tolist()
        for (x, sigma), (after, below) in itertools.pairwise(asked):
            x0 = gaussian_denoiser(family, mean=COND, std=STD)(x, sigma)
            noise = family.noise_in(after, x0, sigma=below).flatten()
            assert_mean(noise, 0.0)
            assert_mean(noise**2, 1.0)
            assert_mean(noise * x.flatten() / x.std(), 0.0)
        assert torch.equal(examples["x_t"], asked[-1][0])
    assert counts == {1, 2, 3}


def test_fewest_steps_draws_in_any_number_from_there():
    made = method(VE, steps=4, fewest_steps=2)
    seen = {float(made.examples(lesson_of(VE, count=1, seed=seed))["sigma"][0]) for seed in range(60)}
    levels = {float(s) for steps in (2, 3, 4) for s in made._options.schedule(steps, table=table(VE))[:-1]}
    assert seen == levels


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rollout", ["segments", "landings"])
def test_a_step_is_matched_above_where_it_lands_and_a_segment_on_its_own_levels(rollout, family):
    """And what it lands on is at the teacher's own marginal there, nothing pulls."""
    made = method(family, steps=4, rollout=rollout)
    sigmas = made.stages()[0].sigmas.double()
    seen = []
    exact = gaussian_denoiser(family, mean=COND, std=STD)

    def fake(x, sigma, y):
        seen.append(sigma)
        return exact(x, sigma)

    for seed in range(8):
        lesson = lesson_of(family, fake=fake, seed=seed)
        examples = made.examples(lesson)
        target = made.target(lesson_of(family, fake=fake, seed=seed, examples=examples))
        low, high = float(examples["sigma_s"][0]), float(examples["sigma"][0])
        assert low < float(seen[-1].min())
        highest = high if rollout == "segments" else float(table(family)[980])
        assert float(seen[-1].max()) < highest
        assert rollout == "segments" or float(seen[-1].max()) > high or high > float(table(family)[900])
        assert not target.pull.any()
        assert high in sigmas


@pytest.mark.parametrize("family", FAMILIES)
def test_the_anchor_is_the_teacher_half_of_its_way_down(family):
    """With guidance: a jump of the student to that level lands on the teacher's own state, to rounding."""
    made = method(family, steps=4, anchor_steps=6, anchor_weight=0.07, guidance_scale=2.0, rollout="deterministic")
    lesson = lesson_of(family, count=50, seed=2)
    examples = made.examples(lesson)
    assert float(examples["sigma"][0]) < float(table(family)[-1]), "what is matched is a later step"
    target = made.target(lesson_of(family, count=50, seed=2, examples=examples)).beside
    levels = made._options.schedule(12, table=table(family)).double()
    batch = lesson.batch
    teacher = guided(lesson.teacher, guidance_scale=2.0, unconditional=batch.unconditional)
    way = sample_few_step(teacher, target.x_t, levels[:7], batch.condition, disable=True, family=family, gamma=0.0)
    landed = family.jump(target.x_t, target.x0, sigma=levels[0], sigma_next=levels[6])
    torch.testing.assert_close(landed, way)
    assert set(target.weight.tolist()) == {0.07}
    assert set(target.sigma.tolist()) == {float(levels[0])}


@pytest.mark.parametrize("grid", Grid)
def test_the_form_of_rcm_is_consistency_with_the_pull_beside(grid):
    kind = TeacherKind(family=VE, table=table(VE), empty_prompt=True)
    made = method(VE, steps=2, guidance_scale=2.0, consistency_levels=20, matching_weight=0.01, grid=grid)
    chosen = {"steps": 2, "iterations": 10, "learning_rate": 1e-3, "guidance_scale": 2.0, "levels": 20, "grid": grid}
    consistency = ConsistencyOptions(**chosen).on(kind)
    lesson = lesson_of(VE, count=6)
    examples = made.examples(lesson)
    lessons = [lesson_of(VE, count=6, seed=4, examples=examples) for _ in range(2)]
    target = made.target(lessons[0])
    pulled = made._matching(lessons[1])
    wanted = consistency.target(lessons[1])
    for name in ("x_t", "sigma", "x0", "weight"):
        assert torch.equal(getattr(target, name), getattr(wanted, name)), name
    assert torch.equal(target.beside.pull, pulled.pull)
    assert set(target.beside.weight.tolist()) == {0.01}
    assert set(target.measures) == set(pulled.measures)
    assert made.needs_pictures
    assert not method(VE).needs_pictures
    both = method(VE, steps=2, guidance_scale=2.0, consistency_levels=20, anchor_steps=3, anchor_weight=0.07)
    anchor = both.target(lesson_of(VE, count=6, examples=both.examples(lesson))).beside.beside
    assert anchor.pull is None
    assert set(anchor.weight.tolist()) == {0.07}, "and the anchor beside that"
