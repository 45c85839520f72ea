"""LATENT and CONDITIONING of today's kinds: constants, lists, frames, streams; each row's answer is the host's own."""

import types

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.clip_vision
from comfyui_fewstep.nodes import host
from comfyui_fewstep.trainers.data.batches import Buckets
from comfyui_fewstep.trainers.data.cache import read_data
from comfyui_fewstep.trainers.storage.files import tensors_sha256
from making_data import distil, run_folder
from todays_inputs import CHANNELS, WIDTH, Frames, Stills, hosts_x0, noise, stand_in, text

SIGMA = 0.6


def denoised(model, x, condition):
    with torch.no_grad():
        return host.training.as_denoiser(host.training.loaded(model))(x, torch.full((len(x),), SIGMA), **condition)


def encoded(model, prompt, x):
    return host.inputs.condition_for_training(model, prompt, latents=x, name="positive")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strength": 0.25},
        {"strength": 2, "attention_mask": torch.tensor([[1.0, 1.0, 0.0, 0.0]])},
        {"reference_latents": [noise(1, CHANNELS, 2, 2, seed=3), noise(1, CHANNELS, 2, 4, seed=4)]},
    ],
    ids=["tensors", "a number", "a count", "a list"],
)
def test_the_denoiser_sees_what_the_hosts_sampler_sees(options):
    model, x, prompt = stand_in(), noise(2, CHANNELS, 4, 6), text(4, **options)
    batch = {key: value.expand(2, *value.shape[1:]) for key, value in encoded(model, prompt, x).items()}
    torch.testing.assert_close(denoised(model, x, batch), hosts_x0(model, x, SIGMA, prompt))
    if options:
        plain = encoded(model, text(4), x)
        assert not torch.allclose(denoised(model, x, batch), denoised(model, x, plain)), "the option counts"


def test_a_list_may_be_longer_than_ten_and_keeps_its_order():
    latents = [noise(1, CHANNELS, 2, 2, seed=i) for i in range(12)]
    model, x = stand_in(), noise(1, CHANNELS, 4, 6)
    condition = encoded(model, text(4, reference_latents=latents), x)
    shuffled = dict(sorted(condition.items(), reverse=True))  # a file keeps no order
    found = host.conditions.host_inputs(shuffled)["ref_latents"]
    assert all(torch.equal(one, 0.5 * other) for one, other in zip(found, latents, strict=True))


def test_inputs_made_under_inference_mode_can_be_trained_on():
    """Those of the prompt, and those that an object in it holds, as a picture's features are."""
    with torch.inference_mode():
        prompt = text(4, reference_latents=[noise(1, CHANNELS, 2, 2)])
        prompt[0][1]["features"] = types.SimpleNamespace(states=noise(1, 3, WIDTH))
    condition = encoded(stand_in(), prompt, noise(1, CHANNELS, 4, 4))
    assert condition.keys() == {"c_crossattn", "ref_latents[0]", "features"}
    assert not any(value.is_inference() for value in condition.values())


def test_a_network_that_writes_into_its_inputs_leaves_the_prompt_as_it_was(monkeypatch):
    model, prompt = stand_in(), text(4, reference_latents=[noise(1, CHANNELS, 2, 2)])
    inner = model.model.extra_conds
    monkeypatch.setattr(
        model.model, "extra_conds", lambda **inputs: inputs["reference_latents"][0].zero_() is None or inner(**inputs)
    )
    assert not encoded(model, prompt, noise(1, CHANNELS, 4, 4))["ref_latents[0]"].any()
    assert torch.equal(prompt[0][1]["reference_latents"][0], noise(1, CHANNELS, 2, 2))


@pytest.mark.parametrize("odd", [{"a": torch.zeros(1)}, object()], ids=["dictionary of tensors", "object"])
def test_a_constant_that_is_neither_number_nor_text_is_refused_by_name(odd):
    with pytest.raises(ValueError, match="positive conditioning gives this model strength, which training does not"):
        encoded(stand_in(), text(4, strength=odd), noise(1, CHANNELS, 4, 4))


# --- batches ---------------------------------------------------------------------------------------------------------

LATENTS = {"samples": noise(4, CHANNELS, 4, 6)}


def test_prompts_of_one_entry_are_counted_one_by_one():
    """A count over a whole batch would be the sum of all."""
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    condition = encoded(stand_in(), text(3, batch=2, attention_mask=mask), noise(1, CHANNELS, 4, 6))
    assert host.conditions.host_inputs(condition)["num_tokens"] == 2
    assert torch.equal(condition["c_crossattn"], text(3, batch=2)[0][0])


def test_prompts_of_one_entry_have_their_own_rows_of_lists_too():
    latents = [noise(2, CHANNELS, 2, 2), noise(1, CHANNELS, 2, 4, seed=1)]
    prompt = text(3, batch=2, strength=0.5, reference_latents=latents)
    condition = encoded(stand_in(), prompt, noise(1, CHANNELS, 4, 6))
    assert torch.equal(condition["ref_latents[0]"], 0.5 * latents[0])
    assert torch.equal(condition["ref_latents[1]"], 0.5 * latents[1].expand(2, -1, -1, -1))
    assert [len(one[1]["reference_latents"][0]) for one in host.inputs.prompts_of(prompt)] == [1, 1]


def test_what_clip_vision_says_goes_with_its_prompt():
    """Each of two prompts in one entry had the pictures of both."""
    seen = comfy.clip_vision.Output()
    seen.penultimate_hidden_states = noise(2, 3, WIDTH, seed=7)
    rows = host.inputs.prompts_of([[noise(2, 4, WIDTH), {"clip_vision_output": seen}]])
    found = [own["clip_vision_output"]["penultimate_hidden_states"] for _, own in rows]
    assert [len(one) for one in found] == [1, 1]
    assert torch.equal(torch.cat(found), seen["penultimate_hidden_states"])


def test_what_a_prompt_does_not_bring_is_not_taken_from_the_samples():
    """Hunyuan's models of a picture's video take the latent that sampling begins with: empty, and no sample's own."""
    model, x = stand_in(), noise(2, CHANNELS, 4, 6)
    model.model.concat_keys = ("masked_image", "concat_image")
    prompt = text(3, concat_mask=torch.ones(1, 4, 6))
    condition = host.inputs.condition_for_training(model, prompt, latents=x, name="positive")
    assert condition["c_concat"].numel() and not condition["c_concat"].any()


def test_prompts_of_several_constants_and_lengths_are_buckets_and_run(output):
    """Two of strength 1 and length 3, one of strength 2, one longer; as they come back from the run's folder."""
    prompts = [text(3, seed=0, strength=1.0), text(5, seed=1, strength=1.0)]
    prompts += [text(3, seed=2, strength=1.0), text(3, seed=3, strength=2.0)]
    positive, negative = [entry for prompt in prompts for entry in prompt], text(2, seed=9, strength=0.5)
    model = stand_in()
    distil(model, name="run", latents=LATENTS, positive=positive, negative=negative, caption_dropout=0.5)
    data = read_data(run_folder(output, "run") / "data")
    assert isinstance(data, Buckets)
    found = {}
    for bucket in data.buckets:
        for i, x0 in enumerate(bucket.x0):
            inputs = host.conditions.host_inputs({k: v[i] if len(v) > 1 else v[0] for k, v in bucket.condition.items()})
            place = next(j for j in range(4) if torch.equal(x0, 0.5 * LATENTS["samples"][j]))
            found[place] = inputs["strength"]
            assert torch.equal(inputs["c_crossattn"], positive[place][0][0]), "each latent keeps its own prompt"
        assert host.conditions.host_inputs(bucket.unconditional)["strength"] == 0.5
    assert found == {0: 1.0, 1: 1.0, 2: 1.0, 3: 2.0}
    assert sorted(len(bucket.x0) for bucket in data.buckets) == [1, 1, 2]
    with pytest.raises(ValueError, match="4 prompts of several lengths but there are 3 latents"):
        distil(model, name="few", latents={"samples": LATENTS["samples"][:3]}, positive=positive, negative=negative)


def test_a_constant_is_part_of_the_datas_hash(output):
    hashes = set()
    for strength in (1.0, 2.0):
        name = f"run {strength}"
        distil(
            stand_in(), name=name, latents=LATENTS, positive=text(3, strength=strength), negative=text(3, strength=1.0)
        )
        data = read_data(run_folder(output, name) / "data")
        assert host.conditions.host_inputs(data.first(1).condition)["strength"] == strength
        hashes.add(tensors_sha256(data.tensors()))
    assert len(hashes) == 2


# --- latents ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, CHANNELS])
def test_still_pictures_of_a_model_of_frames_are_one_frame_each(count, output):
    model, pictures = stand_in(Frames), noise(count, CHANNELS, 4, 6)
    x0 = host.inputs.latents_for_training(model, {"samples": pictures})
    assert torch.equal(x0, 0.5 * pictures.unsqueeze(2))
    distil(model, name="run", latents={"samples": pictures}, positive=text(3), negative=text(3, seed=1))
    assert read_data(run_folder(output, "run") / "data").x0.shape == (count, CHANNELS, 1, 4, 6)


@pytest.mark.parametrize(
    ("latent_format", "shape", "said"),
    [
        (Frames, (CHANNELS, 8), r"\(4, 8\), of 2 dimensions, but this model's have 5 \(or 4: still pictures\)"),
        (Frames, (1, CHANNELS, 8), "of 3 dimensions"),
        (Stills, (1, CHANNELS, 2, 4, 4), "of 5 dimensions, but this model's have 4;"),
        (Frames, (1, 7, 4, 4), "7 channels but this model works on 4"),
    ],
)
def test_latents_of_another_rank_are_refused(latent_format, shape, said):
    with pytest.raises(ValueError, match=said):
        host.inputs.latents_for_training(stand_in(latent_format), {"samples": noise(*shape)})


class Nested:
    """The contract of the host's nested tensors: some streams, unbound in order."""

    is_nested = True

    def __init__(self, streams):
        self.streams = streams

    def unbind(self):
        return list(self.streams)


def test_the_streams_of_a_nested_latent_are_trained_packed(output):
    """Video (2, 4, 3, 2, 2) and sound (2, 8, 5): one row of 48 + 40 values for each, and the network told their shapes."""
    video, sound = noise(2, 4, 3, 2, 2), noise(2, 8, 5, seed=1)
    model = stand_in(Frames, channels=1)
    latent = {"samples": Nested([video, sound])}
    x0 = host.inputs.latents_for_training(model, latent)
    assert torch.equal(x0, 0.5 * torch.cat([video.reshape(2, 1, -1), sound.reshape(2, 1, -1)], dim=-1))
    distil(model, name="run", latents=latent, positive=text(3), negative=text(3, seed=1))
    data = read_data(run_folder(output, "run") / "data")
    assert torch.equal(data.x0, x0)
    for condition in (data.condition, data.unconditional):
        assert host.conditions.host_inputs(condition)["latent_shapes"] == [[1, 4, 3, 2, 2], [1, 8, 5]]
    heard = denoised(model, x0, data.first(2).condition)
    deaf = denoised(model, x0, {k: v for k, v in data.first(2).condition.items() if "=" not in k})
    assert torch.equal(heard[..., :48], deaf[..., :48]) and not torch.allclose(heard[..., 48:], deaf[..., 48:])


def test_what_was_packed_comes_back_nested():
    video, sound = noise(2, 4, 3, 2, 2), noise(2, 8, 5, seed=1)
    latent = {"samples": Nested([video, sound])}
    packed = host.inputs.latents_for_training(stand_in(Frames, channels=1), latent)
    back = host.inputs.as_given(2.0 * packed, latent)
    assert isinstance(back, Nested)
    assert all(torch.equal(one, other) for one, other in zip(back.unbind(), (video, sound), strict=True))
    assert host.inputs.as_given(video, {"samples": sound}) is video


def test_what_a_network_writes_into_its_inputs_stays_in_it():
    """HunyuanDiT writes padding into its text, and views a text that all samples share in another shape."""
    text_, latent = noise(1, 5, WIDTH), noise(1, CHANNELS, 2, 2, seed=1)
    condition = {"c_crossattn": text_.expand(2, 5, WIDTH), "ref_latents[0]": latent.expand(2, CHANNELS, 2, 2)}
    given = host.conditions.host_inputs(condition)
    for value in (given["c_crossattn"], given["ref_latents"][0]):
        value.view(-1, value.shape[-1]).zero_()
    assert torch.equal(condition["c_crossattn"][1:], text_)
    assert torch.equal(condition["ref_latents[0]"][1:], latent)
