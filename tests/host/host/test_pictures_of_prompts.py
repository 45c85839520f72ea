"""Prompts of a user's own with the first sample's pictures: what the host gives a network that is told both together."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import ALL
from comfyui_fewstep.nodes import host
from current_architectures import kinds

TOLD = {
    *("reference_latents", "reference_latents_method", "concat_latent_image", "concat_mask", "clip_vision_output"),
    *("camera_conditions", "pose_video_latent", "audio_embed", "control_video", "reference_motion"),
    *("vace_frames", "vace_mask", "vace_strength", "stable_cascade_prior"),
    *("minimax_keyframes", "minimax_refs", "minimax_visual_cond_noise_aug"),
}
"""Beside a text."""
CASES = (
    {kind: {} for kind in ALL if TOLD.intersection(ALL[kind].conditioning()[0][1])} if ALL["qwen_image"].known() else {}
)


def drawn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def keyframe(seed):
    return {"resolved_frame_index": 0, "latent": drawn(1, 24, 1, 4, 4, seed=seed)}


MORE = {
    "qwen_image_edit": {"reference_latents_method": "offset"},
    "flux_kontext": {"reference_latents_method": "index"},
    "wan_vace": {"vace_strength": [0.5]},
    "minimax_h3": {"minimax_keyframes": [keyframe(5)], "minimax_visual_cond_noise_aug": 0.9},
}


def condition(model, kind, embedding, options):
    one = ALL[kind]
    noise = {"samples": one.noise(batch=1)}
    x, shapes = one.samples(model, noise["samples"]), host.inputs.stream_shapes(noise)
    prompt = [[embedding, options]]
    return host.inputs.condition_for_training(model, prompt, latents=x, name="positive", shapes=shapes)


@pytest.mark.parametrize("kind", kinds(*CASES, "minimax_h3"))
def test_another_prompt_with_a_samples_pictures_is_told_as_the_host_tells_both(kind):
    one, more = ALL[kind], MORE.get(kind, {})
    model = one.model()
    ((first, options),) = one.conditioning(seed=0, batch=1)
    ((second, _),) = one.conditioning(seed=1, batch=1)
    whole = options | more
    text = {name: value for name, value in options.items() if name not in TOLD}
    if kind == "minimax_h3":  # of its words some are of another kind, those of either prompt
        tags = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 2], [0, 1, 2, 1, 1, 0, 1, 1]])
        text, whole = text | {"minimax_token_tags": tags[1]}, whole | {"minimax_token_tags": tags[0]}
    sample, own = (condition(model, kind, *prompt) for prompt in ((first, whole), (second, text)))
    wanted = condition(model, kind, second, whole | text)
    if kind == "hidream_o1_edit":
        with pytest.raises(ValueError, match="reads its references within the prompt that they came with"):
            host.conditions.with_pictures(own, sample)
        return
    found = host.conditions.with_pictures(own, sample)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    assert not all(torch.equal(found[key], value) for key, value in sample.items()), "it is another prompt"
