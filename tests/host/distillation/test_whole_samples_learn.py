"""MiniMax H3, which takes one sample at a time, learns by every method: of prompts of two lengths, one with a first picture."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import current_architectures
from architectures import ALL
from comfyui_fewstep.nodes.distillation.learning import matching_method, methods
from making_data import distil, student_of

LEARN = {"iterations": 3, "learning_rate": 1e-3, "guidance_scale": 1.5}
METHODS = {
    "progressive": lambda: methods.ProgressiveDistillation().make(
        start_steps=4, target_steps=2, weighting="truncated_snr", **LEARN
    ),
    "consistency": lambda: methods.ConsistencyDistillation().make(steps=4, **LEARN),
    "guidance": lambda: methods.GuidanceDistillation().make(**LEARN),
    "matching with a critic": lambda: matching_method.DistributionMatching().make(
        steps=2, adversarial_weight=0.5, companion_first=1, **LEARN
    ),
}


def prompt(seed, tokens, **options):
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.ones(tokens, dtype=torch.long)
    return [[torch.randn(1, tokens, 32, generator=generator), {"minimax_token_tags": kinds, **options}]]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", current_architectures.kinds("minimax_h3"))
def test_it_learns(kind, name, output):
    model = ALL[kind].model()
    picture = {"resolved_frame_index": 0, "latent": torch.randn(1, 24, 1, 4, 4)}
    (method,) = METHODS[name]()
    distil(
        model,
        name="run",
        method=method,
        latents={"samples": ALL[kind].noise(batch=2)},
        positive=prompt(1, 8) + prompt(2, 5, minimax_keyframes=[picture]),
        negative=prompt(3, 3),
        caption_dropout=0.5,
        gradient_checkpointing=True,
    )
    learnt = student_of(output, "run")
    assert all(value.isfinite().all() for value in learnt.values())
    assert any(value.any() for key, value in learnt.items() if key.endswith("lora_up.weight"))
