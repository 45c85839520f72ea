"""Score Distillation (latent) on the host's own networks: it moves towards the prompt, stops when told, and changes no MODEL."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import ALL, conditioning, noise_for, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.learning import latent_method
from current_architectures import kinds as current
from making_data import Cancelled, cancel_at
from test_lora import assert_whole, snapshot

CHOSEN = {"kind": "sds", "guidance_scale": 3.0, "iterations": 4, "learning_rate": 0.1}
CHOSEN |= {"level_from": 0.02, "level_to": 0.98, "last_level_to": 0.5, "seed": 3}


@torch.inference_mode()
def moved(model, architecture="sd15", *, latent=None, **given):
    """As the graph runs it."""
    one = ALL[architecture]
    start = latent or {"samples": one.noise(seed=1, batch=2)}
    prompts = {"positive": one.conditioning(seed=2, batch=1), "negative": one.conditioning(seed=5, batch=1)}
    return latent_method.ScoreDistillation().distil(model, latent=start, **{**prompts, **CHOSEN, **given})[0]


@pytest.mark.parametrize("method", ["sds", "nfsd", "vsd"])
@pytest.mark.parametrize("kind", [*current("sd15"), *current("sd3")])
def test_the_latent_moves_and_the_model_stays(kind, method):
    model = ALL[kind].model(seed=0)
    before = snapshot(model)
    start = ALL[kind].noise(seed=1, batch=2)
    empty = ALL[kind].conditioning(seed=7, batch=1)
    found, again = (moved(model, kind, empty=empty, kind=method) for _ in range(2))
    assert_whole(model, before)
    assert found["samples"].shape == start.shape
    assert (found["samples"] - start).abs().amax(dim=(1, 2, 3)).min() > 0.1
    assert torch.equal(found["samples"], again["samples"]), "the seed decides"
    assert not torch.equal(found["samples"], moved(model, kind, empty=empty, kind=method, seed=4)["samples"])


@pytest.mark.parametrize("kind", current("wan", "svd"))
def test_a_video_moves_too(kind):
    model = ALL[kind].model(seed=0)
    start = ALL[kind].noise(seed=1, batch=1)
    found = moved(model, kind, latent={"samples": start}, iterations=2)["samples"]
    assert found.shape == start.shape
    assert (found - start).abs().max() > 0.05


def test_the_start_without_steps_to_take_comes_back_in_the_hosts_scale():
    """What the host's scale and the model's lie apart is gone through and back."""
    model, start = tiny("sd15"), noise_for(tiny("sd15"), batch=2)
    found = moved(model, latent={"samples": start}, mask=torch.zeros(1, 32, 48))["samples"]
    torch.testing.assert_close(found, start, atol=1e-6, rtol=1e-6)


def test_masks_of_both_kinds_hold():
    """The node's and the latent's own: only where both are white anything moves."""
    model, start = tiny("sd15"), noise_for(tiny("sd15"), batch=2)
    left, upper = torch.zeros(1, 32, 48), torch.zeros(2, 1, 32, 48)
    left[..., :24], upper[..., :16, :] = 1.0, 1.0
    found = moved(model, latent={"samples": start, "noise_mask": upper}, mask=left)
    changed = ((found["samples"] - start).abs() > 1e-3).all(dim=1)
    assert changed[:, :2, :3].all()
    kept = (found["samples"] - start).abs()
    assert kept[..., 2:, :].max() < 1e-6
    assert kept[..., 3:].max() < 1e-6
    assert "noise_mask" in found


def test_fewer_masks_than_latents_are_taken_again_as_the_hosts_samplers_do():
    model, start = tiny("sd15"), noise_for(tiny("sd15"), batch=4)
    masks = torch.stack([torch.zeros(32, 48), torch.ones(32, 48)])
    found = (moved(model, latent={"samples": start}, mask=masks)["samples"] - start).abs().amax(dim=(1, 2, 3))
    assert (found > 1e-3).tolist() == [False, True, False, True]


@pytest.mark.parametrize("kind", current("wan"))
def test_a_mask_of_frames_holds(kind):
    model = ALL[kind].model(seed=0)
    start = ALL[kind].noise(seed=1, batch=1)
    mask = torch.zeros(1, 1, start.shape[2], *start.shape[3:])
    mask[:, :, 1:] = 1.0
    found = moved(model, kind, latent={"samples": start, "noise_mask": mask}, iterations=2)["samples"]
    assert (found - start)[:, :, 0].abs().max() < 1e-6
    assert (found - start)[:, :, 1:].abs().amax(dim=(0, 1, 3, 4)).min() > 0.02


def test_the_prompt_of_the_start_is_subtracted():
    model = tiny("sd15")
    same = conditioning("sd15", seed=2)
    start = noise_for(model, seed=1, batch=2)
    kept = moved(model, latent={"samples": start}, positive=same, source=same)["samples"]
    torch.testing.assert_close(kept, start, atol=1e-6, rtol=1e-6)
    other = moved(model, latent={"samples": start}, positive=same, source=conditioning("sd15", seed=9))["samples"]
    assert (other - start).abs().max() > 1e-2


def test_cancel_stops_it_and_leaves_the_model_whole(monkeypatch):
    model = tiny("sd15")
    before = snapshot(model)
    cancel_at(monkeypatch, 2)
    with pytest.raises(Cancelled):
        moved(model, kind="vsd")
    assert_whole(model, before)


def test_progress_is_told_step_by_step(monkeypatch):
    told = []
    monkeypatch.setattr(
        host.latent_previews, "watching", lambda model, steps: lambda done, x: told.append((done, steps))
    )
    moved(tiny("sd15"))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_step_is_as_long_as_said_in_the_latents_own_units(scale, monkeypatch):
    """Also of a model whose noise has another deviation, in units of which it is trained. Adam's first is the learning rate."""
    model, start, told = tiny("sd3"), ALL["sd3"].noise(seed=1, batch=2), []
    sampling = host.models.model_sampling_of(model)
    with torch.inference_mode():
        sampling.noise_scale = scale
    sampling.noise_scaling = lambda sigma, noise, latent, *_: sigma * scale * noise + (1.0 - sigma) * latent
    monkeypatch.setattr(host.latent_previews, "watching", lambda *_: lambda done, x: told.append(x.clone()))
    found = moved(model, "sd3", latent={"samples": start}, iterations=1, learning_rate=0.1)["samples"]
    before, after = (model.model.process_latent_in(x) for x in (start, found))
    torch.testing.assert_close((after - before).abs(), torch.full_like(before, 0.1), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(told[-1].cpu(), after, atol=1e-4, rtol=0.0)


def test_patches_that_it_could_not_follow_are_named_before_work(monkeypatch):
    """As NAG: it acts where prompt and negative prompt stand in one batch, and here they never do."""
    model = tiny("sd15")
    model.set_model_attn1_output_patch(lambda out, options: out * len(set(options["cond_or_uncond"])))
    monkeypatch.setattr(latent_method, "distil_latent", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(ValueError, match=r"attn1_output_patch \(.* it acts on prompt and negative prompt together"):
        moved(model)


def test_what_is_missing_is_named_before_work():
    for given, said in (
        (
            {"negative": None},
            r"guidance_scale is 3.0 and kind is sds, which need the negative prompt: connect negative",
        ),
        ({"kind": "nfsd"}, "kind is nfsd, which needs the empty prompt beside the negative one: connect empty"),
    ):
        with pytest.raises(ValueError, match=said):
            moved(tiny("sd15"), **given)
    assert "level_from is 0.9" in latent_method.ScoreDistillation.VALIDATE_INPUTS(0.9, 0.5, 0.5)
