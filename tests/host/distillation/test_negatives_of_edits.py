"""Negative prompts of editing models: each with the picture of its positive, or refused before anything is learnt."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from comfyui_fewstep.nodes.distillation.data.data_in_graph import data_in_graph
from todays_inputs import CHANNELS, current, known, noise, prompt_of, stand_in, text

COUNT = 3
LATENTS = {"samples": noise(COUNT, CHANNELS, 4, 6)}


def prompts(seed, *, count=COUNT, picture=True):
    """Of one text, each with a picture of its own."""
    pictures = [{"reference_latents": [noise(1, CHANNELS, 2, 2, seed=i)]} if picture else {} for i in range(count)]
    return [text(4, seed=seed, **own) for own in pictures]


def made(negative, *, latents=LATENTS, positive=None):
    return data_in_graph(stand_in(), latents, positive or prompts(1), negative, dropout=0.0).data


@pytest.mark.parametrize("latents", [LATENTS, [{"samples": one} for one in LATENTS["samples"].split(1)]])
@pytest.mark.parametrize("listed", [True, False])
def test_each_has_the_picture_of_its_positive(listed, latents):
    """As a list, or as one conditioning of as many entries."""
    negative = prompts(2)
    data = made(negative if listed else [entry for one in negative for entry in one], latents=latents)
    batch = data.take(torch.tensor([2, 0]))
    assert torch.equal(batch.empty_prompt()["ref_latents[0]"], batch.condition["ref_latents[0]"])
    assert not torch.equal(batch.empty_prompt()["c_crossattn"], batch.condition["c_crossattn"])


def test_one_without_a_picture_is_for_all():
    assert made(prompts(2, count=1, picture=False)).unconditional.keys() == {"c_crossattn"}


def test_one_picture_for_several_is_refused():
    with pytest.raises(ValueError, match=r"negative is one prompt with one picture for all \(ref_latents\[0\]\)"):
        made(prompts(2, count=1))


WAN = {"wan_vace": ("vace_frames", 32, "vace_context"), "wan_i2v": ("concat_latent_image", 16, "c_concat")}


@pytest.mark.parametrize("kind", WAN)
def test_what_a_video_is_to_follow_is_a_picture_and_what_hosts_give_for_none_is_not(kind):
    if not known(kind):
        pytest.skip(f"this host has no {kind}")
    option, channels, key = WAN[kind]
    model, latents = current(kind), {"samples": noise(COUNT, 16, 3, 4, 6)}

    def prompt(seed, picture=True):
        video = noise(1, channels, 3, 4, 6, seed=seed)
        return prompt_of(kind, seed=seed, **({option: [video] if kind == "wan_vace" else video} if picture else {}))

    positive = [entry for seed in range(COUNT) for entry in prompt(seed)]
    data_in_graph(model, latents, [positive], [prompt(4, picture=False)], dropout=0.0)
    with pytest.raises(ValueError, match=rf"negative is one prompt with one picture for all \({key}\)"):
        data_in_graph(model, latents, [positive], [prompt(4)], dropout=0.0)


def test_negatives_that_do_not_pair_up_are_refused():
    with pytest.raises(ValueError, match="negative is a list of 2 with 2 prompts, and latents are 3 pictures"):
        made(prompts(2, count=2))


def of_several_lengths():
    return [entry for tokens in (4, 4, 8) for entry in text(tokens, seed=tokens)]


def test_beside_prompts_of_several_lengths_they_pair_up_too():
    negative = [entry for seed in range(COUNT) for entry in text(4, seed=seed)]
    data = made(negative, positive=of_several_lengths())
    given = [
        row for bucket in data.buckets for row in bucket.take(torch.arange(bucket.size)).empty_prompt()["c_crossattn"]
    ]
    assert [torch.equal(row, entry[0][0]) for row, entry in zip(given, negative, strict=True)] == [True] * COUNT
    with pytest.raises(ValueError, match="the conditioning holds 2 negative prompts but there are 3 latents"):
        made(negative[:2], positive=of_several_lengths())
