"""A picture drawn alone out of a batch is its batch's, in every node that samples; and whose fresh noise a latent gets."""

import types

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host, node_classes

import_host()

import comfy.sample
from comfyui_fewstep.nodes import NODE_CLASS_MAPPINGS, host
from comfyui_fewstep.nodes.demo import digits_model
from comfyui_fewstep.nodes.host.editor.graph import Execution
from comfyui_fewstep.nodes.host.sampling import continuing
from comfyui_fewstep.samplers.few_step import in_order, sample_few_step
from test_cut_up import RULES, STEPS, custom, wrapping
from test_sampling import model_of, noise_of, schedule

SEED = 9


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


@pytest.fixture(scope="module")
def hosts():
    return node_classes()


@pytest.fixture
def run(hosts):
    """(rule, kind, {name: node}) -> the latent of node "out". "begin": a model of that kind, prompt, sampler, levels, latent."""

    def run(rule, kind, graph, *, count=3, samples=None):
        class Begin:
            RETURN_TYPES, FUNCTION = ("MODEL", "CONDITIONING", "SAMPLER", "SIGMAS", "LATENT"), "make"

            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {}}

            def make(self):
                model = model_of(kind)
                latent = torch.zeros(count, 4, 4, 4) if samples is None else samples
                return (
                    *(model, digits_model.prompt("5"), RULES[rule](), schedule(model, steps=STEPS)),
                    {"samples": latent},
                )

        classes = {**hosts, **NODE_CLASS_MAPPINGS, "Begin": Begin}
        with torch.inference_mode():
            return Execution({"begin": node("Begin"), **graph}, classes=classes).output(("out", 0))["samples"]

    return run


BEGIN = {"model": ["begin", 0], "positive": ["begin", 1], "negative": ["begin", 1]}
CUSTOM = {**BEGIN, "noise_seed": SEED, "cfg": 1.0, "sampler": ["begin", 2]}


def advanced(rule, latent, *, noise=True, start=0, end=STEPS):
    return node(
        "KSamplerAdvanced",
        **BEGIN,
        **{"add_noise": "enable" if noise else "disable", "noise_seed": SEED, "steps": STEPS, "cfg": 1.0},
        **{"sampler_name": f"fewstep_{rule}", "scheduler": "simple", "latent_image": latent, "start_at_step": start},
        **{"end_at_step": end, "return_with_leftover_noise": "enable"},
    )


def through_a_guider(latent, *, noise=True, sigmas=("begin", 3)):
    return {
        "noise": node("RandomNoise", noise_seed=SEED) if noise else node("DisableNoise"),
        "guider": node("BasicGuider", model=["begin", 0], conditioning=["begin", 1]),
        "out": node(
            "SamplerCustomAdvanced",
            **{"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["begin", 2], "sigmas": list(sigmas)},
            latent_image=latent,
        ),
    }


def by_ksampler(rule, latent):
    wanted = {"seed": SEED, "steps": STEPS, "cfg": 1.0, "sampler_name": f"fewstep_{rule}", "scheduler": "simple"}
    return {"out": node("KSampler", **BEGIN, **wanted, latent_image=latent, denoise=1.0)}


NODES = {
    "KSampler": by_ksampler,
    "KSamplerAdvanced": lambda rule, latent: {"out": advanced(rule, latent)},
    "SamplerCustom": lambda rule, latent: {
        "out": node("SamplerCustom", **CUSTOM, add_noise=True, sigmas=["begin", 3], latent_image=latent)
    },
    "SamplerCustomAdvanced": lambda rule, latent: through_a_guider(latent),
}
SECOND = {"alone": node("LatentFromBatch", samples=["begin", 4], batch_index=1, length=1)}


def close(one, other):
    """To the rounding of kernels that depend on the batch's size; other noise differs by about 1."""
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["EPS", pytest.param("FLOW", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sampling", NODES)
def test_a_picture_out_of_a_batch_is_its_batchs(sampling, rule, kind, run):
    graph = NODES[sampling]
    whole = run(rule, kind, graph(rule, ["begin", 4]))
    close(run(rule, kind, {**SECOND, **graph(rule, ["alone", 0])}), whole[1:2])
    assert (whole[1] - whole[0]).abs().max() > 0.1


def test_repeated_out_of_a_batch_it_is_what_the_host_numbers_on(run):
    """Repeat Latent Batch makes of the sample at 1 those at 1, 2 and 3."""
    repeated = {**SECOND, "three": node("RepeatLatentBatch", samples=["alone", 0], amount=3)}
    close(
        run("lcm", "EPS", {**repeated, **by_ksampler("lcm", ["three", 0])}),
        run("lcm", "EPS", by_ksampler("lcm", ["begin", 4]), count=4)[1:],
    )


def test_pictures_to_start_from_are_those_of_the_batch(run):
    pictures = noise_of(3, seed=4)
    whole = run("tcd", "FLOW", by_ksampler("tcd", ["begin", 4]), samples=pictures)
    close(run("tcd", "FLOW", {**SECOND, **by_ksampler("tcd", ["alone", 0])}, samples=pictures), whole[1:2])


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
@pytest.mark.parametrize("rule", RULES)
def test_out_of_a_half_drawn_batch_too(rule, kind, run):
    """And a picture that is alone from the start and cut up: the second sampling has no noise to know it by."""
    whole = run(rule, kind, {"out": advanced(rule, ["begin", 4])})[1:2]
    second = advanced(rule, ["alone", 0], noise=False, start=2)
    half = advanced(rule, ["begin", 4], end=2)
    out_of_half = {"half": half, "alone": node("LatentFromBatch", samples=["half", 0], batch_index=1, length=1)}
    close(run(rule, kind, {**out_of_half, "out": second}), whole)
    first = {**SECOND, "half": advanced(rule, ["alone", 0], end=2)}
    close(run(rule, kind, {**first, "out": advanced(rule, ["half", 0], noise=False, start=2)}), whole)


def test_out_of_a_half_behind_disabled_noise_too(run):
    """SplitSigmas: neither seed nor place is told."""
    cut = {"cut": node("SplitSigmas", sigmas=["begin", 3], step=2)}
    first = {f"first {name}": one for name, one in through_a_guider(["begin", 4], sigmas=("cut", 0)).items()}
    first["first out"]["inputs"] |= {"noise": ["first noise", 0], "guider": ["first guider", 0]}
    alone = {"alone": node("LatentFromBatch", samples=["first out", 0], batch_index=2, length=1)}
    graph = {**cut, **first, **alone, **through_a_guider(["alone", 0], noise=False, sigmas=("cut", 1))}
    close(run("lcm", "EPS", graph), run("lcm", "EPS", through_a_guider(["begin", 4]))[2:3])


def test_a_half_that_is_repeated_draws_variants(run):
    """One of them is the whole run's picture; the noise of the others is no sample's of that run."""
    graph = {
        "half": advanced("lcm", ["begin", 4], end=2),
        "more": node("RepeatLatentBatch", samples=["half", 0], amount=2),
        "out": advanced("lcm", ["more", 0], noise=False, start=2),
    }
    drawn = run("lcm", "EPS", graph)
    close(drawn[:3], run("lcm", "EPS", {"out": advanced("lcm", ["begin", 4])}))
    assert min(float((one - other).abs().max()) for i, one in enumerate(drawn) for other in drawn[:i]) > 0.1


@pytest.mark.parametrize("pictures", [None, noise_of(3, seed=4)], ids=["alike", "each its own"])
def test_samples_that_share_their_noise_share_it_to_the_end(pictures, run):
    """Latent Batch Seed Behavior, fixed: all are one sample of the seed, whether the run is cut or not."""
    fixed = {"fixed": node("LatentBatchSeedBehavior", samples=["begin", 4], seed_behavior="fixed")}
    whole = run("lcm", "EPS", {**fixed, "out": advanced("lcm", ["fixed", 0])}, samples=pictures)
    half = {**fixed, "half": advanced("lcm", ["fixed", 0], end=2)}
    close(
        run("lcm", "EPS", {**half, "out": advanced("lcm", ["half", 0], noise=False, start=2)}, samples=pictures), whole
    )
    assert ((whole[1] - whole[0]).abs().max() < 1e-3) == (pictures is None)


# --- whose noise -----------------------------------------------------------------------------------------------------


def samples_of(x, noise, *, seed=SEED, level=2.0, drawn_as=None):
    return continuing.samples_of(x, level=level, seed=seed, noise=noise, drawn_as=drawn_as or x.shape)


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16])
def test_initial_noise_tells_the_place(precision):
    """In the precision of the latent, in any order, and with one place twice (as StableZero123 has it)."""
    latent = torch.zeros(8, 4, 8, 8)
    for places in ([0, 1, 2, 3, 4, 5, 6, 7], [5], [7, 2], [3, 3, 0], [61]):
        noise = comfy.sample.prepare_noise(latent[: len(places)], SEED, places).to(precision)
        assert samples_of(noise, noise) == [(SEED, place) for place in places]


def test_noise_of_no_seed_leaves_the_place_in_the_batch():
    noise = noise_of(3, seed=1)
    assert samples_of(noise, noise) == [(SEED, 0), (SEED, 1), (SEED, 2)]
    assert samples_of(noise, noise, seed=None) is None


def test_video_with_sound_is_known_by_the_video():
    """The host draws the video's noise of all samples, then the sound's, and packs each sample's in one."""
    generator = torch.Generator().manual_seed(SEED)
    video, sound = (torch.randn(3, *shape, generator=generator) for shape in ((8, 2, 4, 4), (4, 2, 8)))
    packed = torch.cat([video.flatten(1), sound.flatten(1)], dim=1)[1:2, None]
    network = types.SimpleNamespace(latent_shapes=[(1, 8, 2, 4, 4), (1, 4, 2, 8)])
    drawn_as = host.models._drawn_as(network, packed)
    assert samples_of(packed, packed, drawn_as=drawn_as) == [(SEED, 1)]
    assert host.models._drawn_as(network, torch.zeros(1, 4, 8, 8)) == (1, 4, 8, 8), "of another sampling"
    assert host.models._drawn_as(types.SimpleNamespace(), packed) == packed.shape


def test_a_latent_is_the_nearest_of_those_that_were_left():
    """At low levels the pictures of one latent are alike to a thousandth."""
    x = noise_of(1, seed=2) + 1e-4 * noise_of(3, seed=3)
    continuing.leave(x, level=0.01, samples=[(4, 0), (4, 1), (4, 2)])
    none = torch.zeros_like(x)
    for order in ([0, 1, 2], [2], [1, 0], [2, 2, 1]):
        found = samples_of(x[order], none[order], seed=0, level=0.01)
        assert [found[i] for i in range(len(order)) if order[i] not in order[:i]] == [
            (4, i) for i in dict.fromkeys(order)
        ]
        assert len(set(found)) == len(order)
    assert samples_of(x[1:2], none[1:2], seed=6, level=0.01) == [(6, 1)], "the seed that is told goes first"


def test_a_latent_that_no_run_has_left_is_known_by_itself():
    x, none = noise_of(3, seed=77), torch.zeros(3, 4, 4, 4)
    x[2] = x[0]
    batch = samples_of(x, none, seed=0)
    assert batch[1:2] == samples_of(x[1:2], none[1:2], seed=0)
    assert batch[2] == (batch[0][0], 1), "the same once more is the next of its own seed"
    assert samples_of(x, none, seed=5) == in_order(3, seed=5)


def test_inside_a_wrapper_a_cut_run_is_the_whole_and_varies_with_the_seed():
    """Detail Daemon's kind hides the noise: behind SplitSigmas and DisableNoise the seed would be 0 for all."""
    model, empty = model_of("EPS"), torch.zeros(2, 4, 4, 4)
    sampler, sigmas = wrapping(host.models.sampler(sample_few_step, gamma=1.0)), schedule(model, steps=STEPS)
    drawn = []
    for seed in (5, 6):
        half = custom(model, sampler, sigmas[:3], empty, seed=seed)
        drawn.append(custom(model, sampler, sigmas[2:], half))
        close(drawn[-1], custom(model, sampler, sigmas, empty, seed=seed))
    assert not torch.allclose(*drawn, atol=1e-2)


@pytest.mark.parametrize("shape", [(4, 8, 8), (16, 64, 64), (16, 3, 16, 16)])
def test_a_latent_of_no_run_draws_the_same_whatever_rounds_it(shape):
    """At seed 0, as DisableNoise tells, one of another batch size or card differs in its last digits. Others are others."""
    latents = 3.0 * torch.randn(200, *shape, generator=torch.Generator().manual_seed(5))
    seeds = [seed for seed, _ in samples_of(latents, torch.zeros_like(latents), seed=0)]
    assert len(set(seeds)) == 200
    rounded = latents * (1.0 + 1e-6 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(6)))
    assert not torch.equal(rounded, latents)
    assert [seed for seed, _ in samples_of(rounded, torch.zeros_like(rounded), seed=0)] == seeds
