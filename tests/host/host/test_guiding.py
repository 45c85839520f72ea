"""A MODEL with guidance of its own (RescaleCFG and its kind): training is taught by what the host's samplers draw with."""

import importlib

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.conds
import comfy.samplers
from architectures import conditioning, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.samplers.noise import guided
from comfyui_fewstep.trainers.data.batches import Batch
from test_wired import with_noise_scale
from todays_inputs import CHANNELS, hosts_x0, noise, perturbed, text

LEVELS, SCALES = (3.0, 0.4), (2.0, 5.0)
HAS_PRE_CFG = hasattr(tiny("sd15"), "set_model_sampler_pre_cfg_function")
HAS_CALC = hasattr(tiny("sd15"), "set_model_sampler_calc_cond_batch_function")
HAS_PATCHER = hasattr(tiny("sd15").model, "current_patcher")


# --- functions as packs have them ------------------------------------------------------------------------------------


def rescaled(args):
    """As RescaleCFG, in x0: of the whole sample, and of the scale."""
    plain = args["uncond_denoised"] + args["cond_scale"] * (args["cond_denoised"] - args["uncond_denoised"])
    return args["input"] - plain * args["cond_denoised"].std() / plain.std()


def towards_the_prompt(args):
    """As TCFG: before guidance, of those that there are."""
    with_prompt, without = args["conds_out"]
    return [with_prompt, without] if None in args["conds"] else [with_prompt, 0.5 * (with_prompt + without)]


def at_high_noise(args):
    """After guidance, in a part of the sampling, by the first sample's level as packs ask for it."""
    return 0.9 * args["denoised"] if args["sigma"][0] > 1.0 else args["denoised"]


def less_noise(args):
    """As Epsilon Scaling: at every scale."""
    return args["input"] - (args["input"] - args["denoised"]) / 1.1


def of_the_batch(args):
    """As Mahiro: a mean over all samples that are drawn at once."""
    return args["denoised"] * (1.0 + args["cond_denoised"].mean())


def by_the_sampling_object(args):
    """As TSR."""
    table = args["model"].current_patcher.get_model_object("model_sampling")
    return args["denoised"] * (1.0 - args["sigma"] / table.sigma_max)


def from_the_negative(args):
    """As SAG: of what the network sees without the prompt in another sample."""
    less = args["input"] * 0.5
    (other,) = comfy.samplers.calc_cond_batch(
        args["model"], [args["uncond"]], less, args["sigma"], args["model_options"]
    )
    return args["denoised"] + args["uncond_denoised"] - other


def less_without_the_prompt(args):
    """As SkipLayerGuidanceDiTSimple: what is asked without the prompt is asked of less, in a part of the sampling."""
    with_prompt, without = args["conds"]
    rest = args["model"], args["input"], args["sigma"], args["model_options"]
    if without is None or args["sigma"][0] < 1.0:
        return comfy.samplers.calc_cond_batch(rest[0], [with_prompt, without], *rest[1:])
    asked = comfy.samplers.calc_cond_batch(rest[0], [with_prompt, None], *rest[1:])
    return [asked[0], comfy.samplers.calc_cond_batch(rest[0], [None, without], 0.5 * rest[1], *rest[2:])[1]]


FUNCTIONS = {
    "sampler_cfg_function": rescaled,
    **({"sampler_pre_cfg_function": [towards_the_prompt]} if HAS_PRE_CFG else {}),
    "sampler_post_cfg_function": [at_high_noise],
}


def carrying(of="sd15", **functions):
    model = tiny(of)
    model.model_options |= functions
    return model


def by_training(model, x, prompts, scales, *, of="sd15"):
    """The guided teacher's x0 (2, ...), its samples at the LEVELS."""
    positive, negative = (
        host.inputs.condition_for_training(model, prompt, latents=x[:1], name="positive") for prompt in prompts
    )
    with torch.no_grad():
        denoise = host.training.as_denoiser(host.training.loaded(model), model=model)
        taught = guided(denoise, guidance_scale=scales, unconditional=negative, rule=host.guiding.rule_of(model))
        sigma = torch.tensor(LEVELS[: len(x)]) if of == "sd15" else torch.tensor([0.3, 0.8])[: len(x)]
        both = {name: value.expand(len(x), *value.shape[1:]) for name, value in positive.items()}
        return taught(x, sigma, **both), sigma


def by_the_host(model, x, prompts, scales, sigma):
    """Each sample drawn alone, as a sampler does: one level, one scale."""
    return torch.cat(
        [hosts_x0(model, x[i : i + 1], float(sigma[i]), *prompts, cfg=float(scale)) for i, scale in enumerate(scales)]
    )


def assert_taught_as_by_the_host(model, *, of="sd15", scales=SCALES):
    x = 2.0 * noise(len(scales), *((4, 8, 8) if of == "sd15" else (16, 8, 8)))
    prompts = conditioning(of, seed=0), conditioning(of, seed=1)
    scale = torch.tensor(scales) if len(scales) > 1 else scales[0]
    found, sigma = by_training(model, x, prompts, scale, of=of)
    torch.testing.assert_close(found, by_the_host(model, x, prompts, scales, sigma), atol=1e-4, rtol=1e-4)
    bare = by_training(host.guiding.without(model), x, prompts, scale, of=of)[0]
    assert not torch.allclose(found, bare, atol=1e-2), "they change something"


ALONE = [
    *({name: held} for name, held in FUNCTIONS.items()),
    {"sampler_post_cfg_function": [less_noise, at_high_noise]},
    {"sampler_post_cfg_function": [of_the_batch]},
    *([{"sampler_post_cfg_function": [by_the_sampling_object]}] if HAS_PATCHER else []),
    {"sampler_post_cfg_function": [perturbed]},
    {"sampler_post_cfg_function": [from_the_negative], "disable_cfg1_optimization": True},
    {"sampler_cfg_function": rescaled, "disable_cfg1_optimization": True},
    *([{"sampler_calc_cond_batch_function": less_without_the_prompt}] if HAS_CALC else []),
    FUNCTIONS,
]


@pytest.mark.parametrize("scales", [SCALES, (2.0,)], ids=["a scale each", "one scale"])
@pytest.mark.parametrize("functions", ALONE, ids=" ".join)
def test_the_teacher_is_guided_as_by_the_hosts_samplers(functions, scales):
    """At a level and a scale for each sample, as if each were drawn alone."""
    assert_taught_as_by_the_host(carrying(**functions), scales=scales)


@pytest.mark.parametrize("functions", [f for f in ALONE if "sampler_post_cfg_function" in f], ids=" ".join)
def test_what_acts_without_guidance_too_is_taught_without_it(functions):
    """Epsilon Scaling, TSR."""
    assert_taught_as_by_the_host(carrying(**functions), scales=(1.0,))


def of_host(module, name, *given):
    """A stock node's MODEL; skipped where this host has none."""
    node = None
    for place in (f"comfy_extras.{module}", f"comfy_extras.nodes.{module}"):
        try:
            node = node or getattr(importlib.import_module(place), name)
        except (ImportError, AttributeError):
            continue
    if node is None:
        pytest.skip(f"this host has no {name}")

    def patched(model):
        if hasattr(node, "execute"):
            return node.execute(model, *given)[0]
        return getattr(node(), node.FUNCTION)(model, *given)[0]

    return patched


@pytest.mark.parametrize("of", ["sd15", "sd3"])
@pytest.mark.parametrize(
    ("module", "name", "given"),
    [
        ("nodes_model_advanced", "RescaleCFG", (0.7,)),
        ("nodes_cfg", "CFGZeroStar", ()),
        ("nodes_cfg", "CFGNorm", (0.9,)),
        ("nodes_cfg", "CFGNorm", (0.9, True)),
        ("nodes_lumina2", "RenormCFG", (100.0, 0.5)),
        ("nodes_apg", "APG", (0.5, 5.0, 0.0)),
        ("nodes_tcfg", "TCFG", ()),
        ("nodes_fresca", "FreSca", (1.0, 1.5, 2)),
        ("nodes_pag", "PerturbedAttentionGuidance", (3.0,)),
        ("nodes_slg", "SkipLayerGuidanceDiTSimple", (0.0, 1.0, "0", "")),
        ("nodes_mahiro", "Mahiro", ()),
        ("nodes_eps", "EpsilonScaling", (1.1,)),
        ("nodes_eps", "TemporalScoreRescaling", (0.8, 1.0)),
    ],
)
def test_the_hosts_own_nodes_guide_the_teacher_as_they_guide_its_samplers(module, name, given, of):
    if (name, of) in (("PerturbedAttentionGuidance", "sd3"), ("SkipLayerGuidanceDiTSimple", "sd15")):
        pytest.skip("the node acts on the other kind of network alone")
    made = of_host(module, name, *given)(tiny(of))
    host.following.require_followed(made, batch_of(made, of=of))
    assert_taught_as_by_the_host(made, of=of)


def test_guidance_sees_samples_in_the_models_own_scale():
    """HiDream O1's noise has another deviation than 1, in whose units training has all its samples."""
    model, x, unit = with_noise_scale(4.0), noise(1, CHANNELS, 1, 4, 4), 4.0
    model.model_options["sampler_post_cfg_function"] = [of_a_size, asked_again]
    prompts = text(4), text(4, seed=1)
    positive, negative = (
        host.inputs.condition_for_training(model, prompt, latents=x, name="positive") for prompt in prompts
    )
    with torch.no_grad():
        denoise = host.training.as_denoiser(host.training.loaded(model), model=model)
        taught = guided(denoise, guidance_scale=3.0, unconditional=negative, rule=host.guiding.rule_of(model))
        found = taught(x, torch.full((1,), 0.6), **positive)
    torch.testing.assert_close(unit * found, hosts_x0(model, unit * x, 0.6, *prompts, cfg=3.0))


def of_a_size(args):
    """As what is large is cut off: of latents of some hundreds here."""
    return args["denoised"].clamp(-200.0, 200.0)


def asked_again(args):
    (other,) = comfy.samplers.calc_cond_batch(
        args["model"], [args["cond"]], 0.5 * args["input"], args["sigma"], args["model_options"]
    )
    return args["denoised"] + other.square()


def test_a_student_is_asked_once_a_step_whatever_its_teachers_functions_wanted():
    """SAG's have the host ask without the prompt at a cfg of 1, too; they are gone."""
    model = carrying(sampler_post_cfg_function=[from_the_negative], disable_cfg1_optimization=True)
    counting, rows = host.data.counting(host.guiding.without(model))
    hosts_x0(counting, noise(1, 4, 8, 8), 3.0, conditioning("sd15", seed=0), conditioning("sd15", seed=1))
    assert rows == [1]


# --- before the run --------------------------------------------------------------------------------------------------


def batch_of(model, *, of="sd15", unconditional=True):
    x = noise(1, *((4, 8, 8) if of == "sd15" else (16, 8, 8)))
    positive, negative = (
        host.inputs.condition_for_training(model, conditioning(of, seed=seed), latents=x, name="positive")
        for seed in (0, 1)
    )
    return Batch(x0=x, condition=positive, unconditional=negative if unconditional else None)


class Momentum:
    """As APG's: a running mean of guidance, begun anew as a sampling begins."""

    def __init__(self):
        self.mean, self.before = 0.0, None

    def __call__(self, args):
        with_prompt, without = args["conds_out"]
        if self.before is not None and args["sigma"][0] > self.before:
            self.mean = 0.0
        self.before, self.mean = args["sigma"][0], 0.5 * self.mean + with_prompt - without
        return [without + self.mean, without]


def told_another_prompt(args):
    """As identity guidance: without a part of it."""
    (entry,) = args["cond"]
    less = {
        **entry,
        "model_conds": {**entry["model_conds"], "c_crossattn": comfy.conds.CONDRegular(torch.zeros(1, 7, 8))},
    }
    (other,) = comfy.samplers.calc_cond_batch(
        args["model"], [[less]], args["input"], args["sigma"], args["model_options"]
    )
    return args["denoised"] - other


def of_a_sampling(args):
    steps = args["model_options"]["transformer_options"]["sample_sigmas"]
    return args["denoised"] * len(steps)


@pytest.mark.parametrize(
    ("functions", "why"),
    [
        pytest.param(
            {"sampler_pre_cfg_function": [Momentum()]},
            r"sampler_pre_cfg_function \(Momentum of .*remembers the step before",
            marks=pytest.mark.skipif(not HAS_PRE_CFG, reason="this host does not call them"),
        ),
        (
            {"sampler_post_cfg_function": [told_another_prompt]},
            r"told_another_prompt of .*cannot be called there \(it has the network answer to other prompts",
        ),
        (
            {"sampler_post_cfg_function": [of_a_sampling]},
            r"of_a_sampling of .*cannot be called there \('sample_sigmas'\)",
        ),
    ],
)
def test_guidance_that_a_training_step_cannot_follow_is_refused_by_name(functions, why):
    model = carrying(**functions)
    with pytest.raises(ValueError, match=rf"the MODEL carries {why if why.startswith('sampler') else '.*' + why}"):
        host.following.require_followed(model, batch_of(model))
