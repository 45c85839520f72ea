"""The official templates' own node chains and our recipes draw the same latents, on tiny models of the families' own classes.

In a current ComfyUI: the embedded one has neither the classes nor the nodes. The node chains are those of the templates of
October 2026. The host's fresh noise is ours, since its own draws are others, at levels without the bit in which a list may
differ.
"""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host, node_classes

import_host("--use-pytorch-cross-attention")

import comfy.k_diffusion.sampling
import comfy.supported_models
from architectures import ALL
from comfyui_fewstep.nodes import NODE_CLASS_MAPPINGS
from comfyui_fewstep.nodes.host.editor.graph import Execution
from comfyui_fewstep.samplers import few_step

pytestmark = pytest.mark.skipif(not hasattr(comfy.supported_models, "MiniMaxH3"), reason="not of this host")

LTX_1 = "1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0"
SIZE = {"width": 96, "height": 64}


def tiny(family, seed):
    """A node class that gives MODEL, prompt, another prompt and a latent, in the place of a template's loaders."""

    class Tiny:
        RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "LATENT")
        FUNCTION = "make"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}}

        def make(self):
            one, batch = ALL[family], 1
            prompts = (one.conditioning(seed=kind) for kind in (1, 2))
            empty = one.noise(batch=batch)
            streams = [torch.zeros_like(stream) for stream in (empty.unbind() if one.streams else [empty])]
            latent = type(empty)(streams) if one.streams else streams[0]
            return (one.model(seed=seed), *prompts, {"samples": latent})

    return Tiny


@pytest.fixture(scope="module")
def hosts():
    return node_classes()


@pytest.fixture
def drawn(hosts, monkeypatch):
    """The latent that node "out" of a graph in API format gives; "tiny" and "tiny_low" are a family's two models."""
    fresh = few_step.fresh_noise
    rounded = lambda x, *, level, **named: fresh(x, level=round(level, 4), **named)  # noqa: E731

    def same(x, seed=None):
        samples = few_step.in_order(len(x), seed=seed)
        return lambda sigma, sigma_next: few_step.fresh_noise(x, samples=samples, level=float(sigma_next))

    monkeypatch.setattr(few_step, "fresh_noise", rounded)
    monkeypatch.setattr(comfy.k_diffusion.sampling, "default_noise_sampler", same)

    @torch.inference_mode()
    def run(family, graph):
        nodes = {
            "tiny": {"class_type": "Tiny", "inputs": {}},
            "tiny_low": {"class_type": "TinyLow", "inputs": {}},
            **graph,
        }
        classes = {**hosts, **NODE_CLASS_MAPPINGS, "Tiny": tiny(family, 0), "TinyLow": tiny(family, 1)}
        samples = Execution(nodes, classes=classes).output(("out", 0))["samples"]
        return torch.cat([one.flatten() for one in (samples.unbind() if samples.is_nested else [samples])])

    return run


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


TINY = {"model": ["tiny", 0], "positive": ["tiny", 1], "negative": ["tiny", 2], "latent_image": ["tiny", 3]}


def ksampler(steps, sampler="euler", *, scheduler="simple", shift=None):
    """KSampler behind a node that sets the shift: (the node's name, the shift)."""
    patch = {"shift": node(shift[0], model=["tiny", 0], shift=shift[1])} if shift else {}
    given = {**TINY, "model": ["shift", 0]} if shift else TINY
    asked = {"seed": 7, "steps": steps, "cfg": 1.0, "sampler_name": sampler, "scheduler": scheduler, "denoise": 1.0}
    return {**patch, "out": node("KSampler", **given, **asked)}


def advanced(sampler, sigmas, *, guider=None, **more):
    """SamplerCustomAdvanced. sigmas: the node of its list."""
    guider = guider or node("CFGGuider", model=["tiny", 0], positive=["tiny", 1], negative=["tiny", 2], cfg=1.0)
    nodes = {"noise": node("RandomNoise", noise_seed=7), "sampler": node(**sampler), "sigmas": sigmas, "guider": guider}
    links = {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["sampler", 0], "sigmas": ["sigmas", 0]}
    return {**nodes, **more, "out": node("SamplerCustomAdvanced", latent_image=["tiny", 3], **links)}


def by_name(name):
    return {"kind": "KSamplerSelect", "sampler_name": name}


def manual(sampler, sigmas):
    return advanced(by_name(sampler), node("ManualSigmas", sigmas=sigmas))


def h3(sampler, steps, *, shifts=None):
    """BasicGuider and BasicScheduler, behind MiniMaxH3SigmaShift where the template has one."""
    model = ["shift", 0] if shifts else ["tiny", 0]
    patch = node("MiniMaxH3SigmaShift", model=["tiny", 0], shift_video=(shifts or (12.0, 3.0))[0], shift_audio=3.0)
    return advanced(
        by_name(sampler),
        node("BasicScheduler", model=model, scheduler="simple", steps=steps, denoise=1.0),
        guider=node("BasicGuider", model=model, conditioning=["tiny", 1]),
        **({"shift": patch} if shifts else {}),
    )


def flux2(steps, *, guidance=None):
    prompt = {"prompt": node("FluxGuidance", conditioning=["tiny", 1], guidance=guidance)} if guidance else {}
    basic = node("BasicGuider", model=["tiny", 0], conditioning=["prompt", 0]) if guidance else None
    return advanced(by_name("euler"), node("Flux2Scheduler", steps=steps, **SIZE), guider=basic, **prompt)


def two_ksamplers():
    """Wan 2.2: KSampler Advanced for steps 0 to 2 and 2 to 4, each expert behind ModelSamplingSD3 5."""
    halves = {"high": ("tiny", "enable", 0, 2, "enable"), "out": ("tiny_low", "disable", 2, 4, "disable")}
    asked = {"noise_seed": 7, "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    graph = {}
    for name, (expert, noise, start, end, leftover) in halves.items():
        graph[f"{name} shift"] = node("ModelSamplingSD3", model=[expert, 0], shift=5.0)
        graph[name] = node(
            "KSamplerAdvanced",
            **{**TINY, **asked, "model": [f"{name} shift", 0], "latent_image": ["high", 0] if start else ["tiny", 3]},
            **{"add_noise": noise, "start_at_step": start, "end_at_step": end, "return_with_leftover_noise": leftover},
        )
    return graph


def recipe(name, *, experts=False):
    """Ours: Apply Recipe into SamplerCustomAdvanced; of two experts through Two Experts."""
    graph = {
        "noise": node("RandomNoise", noise_seed=7),
        "recipe": node(
            "FewStepApplyRecipe", model=["tiny", 0], recipe=name, positive=["tiny", 1], negative=["tiny", 2], **SIZE
        ),
        "guider": node(
            "FewStepTwoExperts",
            **{
                "high": ["recipe", 0],
                "low": ["tiny_low", 0],
                "positive": ["tiny", 1],
                "cfg": 1.0,
                "boundary": ["recipe", 5],
            },
        ),
    }
    links = {"noise": ["noise", 0], "sampler": ["recipe", 1], "sigmas": ["recipe", 2], "latent_image": ["tiny", 3]}
    return {**graph, "out": node("SamplerCustomAdvanced", guider=["guider", 0] if experts else ["recipe", 4], **links)}


AURA_3, AURA_31 = ("ModelSamplingAuraFlow", 3.0), ("ModelSamplingAuraFlow", 3.1)
ANCESTRAL = {"kind": "SamplerEulerAncestral", "eta": 1.0, "s_noise": 1.0}
CHAINS = {
    "MiniMax H3 Turbo LoRA, 4 steps (res_multistep at shift 12, ComfyUI's templates)": (
        "minimax_h3",
        h3("res_multistep", 4),
    ),
    "MiniMax H3 Turbo LoRA, 8 steps (res_multistep at shift 12, ComfyUI's templates)": (
        "minimax_h3",
        h3("res_multistep", 8),
    ),
    "MiniMax H3 Turbo LoRA, 4 steps": ("minimax_h3", h3("euler", 4, shifts=(6.0, 3.0))),
    "MiniMax H3 Turbo LoRA, 8 steps": ("minimax_h3", h3("euler", 8, shifts=(6.0, 3.0))),
    "MiniMax H3 Turbo LoRA of 544p, 4 steps": ("minimax_h3", h3("euler", 4)),
    "MiniMax H3 Turbo LoRA of 544p, 8 steps": ("minimax_h3", h3("euler", 8)),
    "FastH3, 8 steps (res_multistep, ComfyUI's templates)": ("minimax_h3", h3("res_multistep", 8, shifts=(10.0, 3.0))),
    "FastH3 OmniRef, 8 steps (ComfyUI's templates)": ("minimax_h3", h3("euler", 8, shifts=(12.0, 3.0))),
    "LTX-2 or 2.3 distilled, stage 1, 8 steps": ("ltxav", manual("euler", LTX_1)),
    "LTX-2.3 distilled, stage 2, 3 steps (from 0.85, ComfyUI's templates)": (
        "ltxav",
        manual("euler", "0.85, 0.7250, 0.4219, 0.0"),
    ),
    "LTX-2 distilled, stage 2, 3 steps (gradient_estimation, ComfyUI's templates)": (
        "ltxav",
        manual("gradient_estimation", "0.909375, 0.725, 0.421875, 0.0"),
    ),
    "LTX-2.5 distilled, stage 1, 8 steps": ("ltxav", advanced(ANCESTRAL, node("ManualSigmas", sigmas=LTX_1))),
    "LTX-2.5 distilled, stage 2, 3 steps (ancestral from 0.85, ComfyUI's templates)": (
        "ltxav",
        advanced(ANCESTRAL, node("ManualSigmas", sigmas="0.85, 0.7250, 0.4219, 0.0")),
    ),
    "Z-Image-Turbo, 8 steps (res_multistep, ComfyUI's templates)": (
        "z_image",
        ksampler(8, "res_multistep", shift=AURA_3),
    ),
    "Z-Image-Turbo, 8 steps": ("z_image", ksampler(8, shift=AURA_3)),
    "Krea 2 Turbo, 8 steps": ("krea2", ksampler(8)),
    "Qwen-Image-Lightning, 4 steps": ("qwen_image_edit", ksampler(4, shift=AURA_3)),
    "Qwen-Image-Lightning, 4 steps (shift 3.1, ComfyUI's templates)": ("qwen_image", ksampler(4, shift=AURA_31)),
    "Qwen-Image-Lightning, 8 steps (shift 3.1, ComfyUI's templates)": ("qwen_image", ksampler(8, shift=AURA_31)),
    "Qwen-Image 2512 Turbo LoRA, 2 steps": ("qwen_image", ksampler(2, shift=AURA_3)),
    "Qwen-Image 2.1 Turbo, 8 steps": (
        "qwen_image",
        manual("euler", "1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568, 0"),
    ),
    "FLUX.2 dev Turbo LoRA, 8 steps (even, guidance 4, ComfyUI's templates)": ("flux2", flux2(8, guidance=4.0)),
    "FLUX.2 klein, 4 steps": ("flux2_klein", flux2(4)),
    "FLUX.1 schnell, 4 steps": ("flux_schnell", ksampler(4)),
    "Anima turbo LoRA, 8 steps": ("anima", ksampler(8)),
    "ERNIE-Image turbo, 8 steps (shift 3, ComfyUI's templates)": ("ernie", ksampler(8)),
    "HiDream-I1 fast, 16 steps": (
        "hidream",
        ksampler(16, "lcm", scheduler="normal", shift=("ModelSamplingSD3", 3.0)),
    ),
    "CausVid LoRA, 4 steps (uni_pc at shift 8, ComfyUI's templates)": (
        "wan",
        ksampler(4, "uni_pc", shift=("ModelSamplingSD3", 8.0)),
    ),
    "ACE-Step 1.5 turbo, 8 steps": ("ace_step15", ksampler(8, shift=AURA_3)),
    "Stable Audio 3, 8 steps (even at shift 2, ComfyUI's templates)": ("stable_audio3", ksampler(8, "lcm")),
}


LAST_BIT = {
    "Krea 2 Turbo, 8 steps": node("BasicScheduler", model=["tiny", 0], scheduler="simple", steps=8, denoise=1.0),
    "FLUX.2 dev Turbo LoRA, 8 steps (even, guidance 4, ComfyUI's templates)": node("Flux2Scheduler", steps=8, **SIZE),
    "HiDream-I1 fast, 16 steps": node("BasicScheduler", model=["shift", 0], scheduler="normal", steps=16, denoise=1.0),
}
"""Chains whose levels differ from the recipe's in the last bit, which the network makes larger; and the levels' nodes."""


def away(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("name", CHAINS)
def test_a_template_and_its_recipe_draw_the_same(name, drawn):
    """Where the levels differ in the last bit, on the template's own levels, and nearly so on the recipe's."""
    family, chain = CHAINS[name]
    ours, theirs = recipe(name), drawn(family, chain)
    if name in LAST_BIT:
        assert away(drawn(family, ours), theirs) <= 2e-5
        ours |= {"sigmas": LAST_BIT[name]} | {part: chain[part] for part in ("shift",) if part in chain}
        ours["out"]["inputs"]["sigmas"] = ["sigmas", 0]
    assert away(drawn(family, ours), theirs) <= 1e-6


def test_two_experts_draw_what_the_templates_two_samplers_draw(drawn):
    theirs, ours = drawn("wan", two_ksamplers()), drawn("wan", recipe("Wan 2.1 or 2.2 lightx2v, 4 steps", experts=True))
    assert away(ours, theirs) <= 1e-6
