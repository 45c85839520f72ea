"""Networks that take one sample at a time, with all that they know of it in one constant: stand-ins of MiniMax H3's contract."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.conds
from comfyui_fewstep.nodes import host
from comfyui_fewstep.trainers.data.conditions import one_batch
from test_inputs import Nested
from todays_inputs import CHANNELS, Frames, Model, Network, noise, stand_in, text

TAGS = torch.tensor([1, 0, 2])


class Layout:
    """What no file could hold."""


class OfOne(Network):
    """Adds what the constant holds: kinds of words, a picture's mean, and the scale of the sound."""

    def forward(self, x, t, context=None, minimax_payload=None, **rest):
        assert len(x) == 1, "one sample at a time"
        assert isinstance(minimax_payload.get("layout", Layout()), Layout)
        moved = minimax_payload["tags"].float().mean() * minimax_payload["scale"]
        for keyframe in minimax_payload.get("keyframes", []):
            moved = moved + keyframe["index"] * keyframe["latent"].mean()
        return super().forward(x, t, context, strength=moved, **rest)


class Tells(Model):
    """latent_shapes: as the host's object has it while it samples. The second stream is carried four times as large."""

    latent_shapes = None

    def _scale(self):
        return 4.0 if self.latent_shapes and len(self.latent_shapes) > 1 else 1.0

    def _carried(self, latent, by):
        if self._scale() == 1.0:
            return latent
        first = torch.Size(self.latent_shapes[0][1:]).numel()
        return torch.cat([latent[..., :first], by * latent[..., first:]], dim=-1)

    def process_latent_in(self, latent):
        return self._carried(super().process_latent_in(latent), self._scale())

    def process_latent_out(self, latent):
        return super().process_latent_out(self._carried(latent, 1.0 / self._scale()))

    def extra_conds(self, **kwargs):
        out = super().extra_conds(**kwargs)
        payload = {"tags": kwargs["tags"], "scale": self._scale(), "layout": Layout()}
        if "keyframes" in kwargs:
            payload["keyframes"] = kwargs["keyframes"]
        out["minimax_payload"] = comfy.conds.CONDConstant(payload)
        return out


@torch.inference_mode()
def whole(latent_format=Frames, channels=CHANNELS):
    model = stand_in(latent_format, channels=channels)
    model.model.__class__ = Tells
    model.model.diffusion_model.__class__ = OfOne
    return model


def keyframe(seed, index=2):
    return {"index": index, "latent": noise(1, CHANNELS, 1, 2, 2, seed=seed)}


def conditions(model, prompts, x, shapes=None):
    return host.inputs.conditions_for_training(model, prompts, latents=x, name="positive", shapes=shapes)


def test_tensors_of_a_constant_stand_apart_and_come_back_in_their_places():
    prompt = text(3, tags=TAGS, keyframes=[keyframe(1), keyframe(2, index=5)])
    (found,) = conditions(whole(), prompt, noise(1, CHANNELS, 2, 4, 6))
    pictures = '[{"index": 2, "latent": null}, {"index": 5, "latent": null}]'
    assert found.keys() == {
        "c_crossattn",
        f'minimax_payload={{"tags": null, "scale": 1.0, "keyframes": {pictures}}}',
        "minimax_payload.tags",
        "minimax_payload.keyframes[0].latent",
        "minimax_payload.keyframes[1].latent",
    }
    assert all(len(value) == 1 for value in found.values())
    payload = host.conditions.host_inputs(found)["minimax_payload"]
    assert payload.keys() == {"tags", "scale", "keyframes"}
    assert torch.equal(payload["tags"], TAGS) and payload["tags"].dtype == TAGS.dtype
    for seed, there in enumerate(payload["keyframes"], start=1):
        assert torch.equal(there["latent"], keyframe(seed)["latent"])
    assert [there["index"] for there in payload["keyframes"]] == [2, 5]
    assert [key for key in sorted(found) if host.conditions.is_picture(key)] == [
        "minimax_payload.keyframes[0].latent",
        "minimax_payload.keyframes[1].latent",
    ]


@pytest.mark.parametrize(
    "constant",
    [
        {"tags": TAGS, "of": Layout()},
        {"two words": TAGS},
        {1: 2},
        [TAGS],
        TAGS,
    ],
    ids=["an object", "a name of two words", "a name that is a number", "a list", "a tensor"],
)
def test_what_no_name_could_hold_is_refused(constant):
    with pytest.raises(ValueError, match="gives this model minimax_payload, which training does not support"):
        host.conditions.as_tensors({"minimax_payload": comfy.conds.CONDConstant(constant)}, name="positive")


def test_samples_pass_one_by_one_each_with_its_own():
    """Words of one length and of another, with a picture and without."""
    model, x = whole(), noise(3, CHANNELS, 2, 4, 6)
    prompts = [
        *text(3, tags=TAGS),
        *text(3, seed=1, tags=TAGS + 1),
        *text(5, seed=2, tags=torch.ones(5), keyframes=[keyframe(1)]),
    ]
    found = conditions(model, prompts, x)
    sigma = torch.tensor([0.9, 0.5, 0.2])
    with torch.no_grad():
        denoise = host.training.as_denoiser(host.training.loaded(model), model=model)
        alone = [denoise(x[i : i + 1], sigma[i : i + 1], **found[i]) for i in range(3)]
        for some in (slice(0, 2), slice(0, 3)):
            together = denoise(x[some], sigma[some], **one_batch(found[some]))
            torch.testing.assert_close(together, torch.cat(alone[some]))
    assert not torch.allclose(alone[0], alone[1])


def test_a_stream_that_samplers_carry_in_another_unit_is_trained_so():
    model = whole(channels=1)
    latent = {"samples": Nested([noise(2, 4, 3, 2, 2), noise(2, 8, 5, seed=1)])}
    video, sound = latent["samples"].unbind()
    x0, shapes = host.inputs.latents_for_training(model, latent), host.inputs.stream_shapes(latent)
    torch.testing.assert_close(x0[..., :48], 0.5 * video.reshape(2, 1, -1))
    torch.testing.assert_close(x0[..., 48:], 2.0 * sound.reshape(2, 1, -1))
    back = host.inputs.as_given(host.inputs.latents_for_host(model, x0, shapes=shapes), latent)
    for mine, given in zip(back.unbind(), (video, sound), strict=True):
        torch.testing.assert_close(mine, given)
    (told,) = conditions(model, text(3, tags=TAGS), x0, shapes)
    assert host.conditions.host_inputs(told)["minimax_payload"]["scale"] == 4.0
    assert model.model.latent_shapes is None, "the host's object is as it was"


def test_a_bank_of_heads_that_wants_the_next_noise_level_is_refused():
    """As current hosts load a PDD LoRA: the layer is one of 96 values still, its weight of 32 times as many."""
    model = whole()
    network = model.model.diffusion_model
    network.final_layer = torch.nn.Module()
    network.final_layer.video_out = torch.nn.Linear(4, 96)
    conditions(model, text(3, tags=TAGS), noise(1, CHANNELS, 2, 4, 6))
    network.final_layer.video_out.weight = torch.nn.Parameter(torch.zeros(32 * 96, 4))
    with pytest.raises(ValueError, match=r"this model has 32 output heads for parts of the way \(a PDD LoRA\)"):
        conditions(model, text(3, tags=TAGS), noise(1, CHANNELS, 2, 4, 6))
