"""Runs on models of frames and of sound: what previews show, and what the teacher draws."""

import numpy as np
import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from comfyui_fewstep.nodes import host
from comfyui_fewstep.trainers.data.cache import read_data
from making_data import distil, prompts, run_folder
from PIL import Image
from todays_inputs import CHANNELS, Frames, Stills, hosts_x0, noise, stand_in, text


class Film:
    """Decodes to (B, T, H, W, 3), every frame of a grey of its own."""

    def decode(self, latents):
        count, _, frames, height, width = latents.shape
        grey = torch.arange(frames).reshape(1, frames, 1, 1, 1) / 10.0
        return grey.expand(count, frames, 8 * height, 8 * width, 3)


class Loud:
    """A VAE of sound."""

    def decode(self, latents):
        raise AssertionError("nothing of a sound can be shown")


class Sound(Stills):
    latent_dimensions = 1


Sound.__name__ = "StableAudio1"  # hosts tell sound by the name


class Counts:
    """A text encoder without padding, whose mask says how many tokens count: as many as the text has words."""

    def tokenize(self, prompt):
        return prompt

    def encode_from_tokens_scheduled(self, prompt):
        words = max(len(prompt.split()), 1)
        mask = (torch.arange(3) < words).float()[None]
        return [[text(3, seed=len(prompt))[0][0], {"attention_mask": mask}]]


def previews(output, name):
    return sorted((run_folder(output, name) / "previews").glob("*.png"))


def test_a_preview_of_video_shows_the_frame_in_the_middle(output):
    film = {"samples": noise(2, CHANNELS, 5, 4, 6)}
    distil(stand_in(Frames), name="run", latents=film, positive=text(3), negative=text(3, seed=1), vae=Film())
    pictures = [np.asarray(Image.open(file)) for file in previews(output, "run")]
    assert pictures
    assert all((picture == int(255 * 0.2)).mean() > 0.9 for picture in pictures), "the third of five, but for the gaps"


def test_a_run_on_sound_shows_nothing_and_ends(output):
    sound = {"samples": noise(2, CHANNELS, 16)}
    distil(stand_in(Sound), name="run", latents=sound, positive=text(3), negative=text(3, seed=1), vae=Loud())
    assert previews(output, "run") == []
    assert (run_folder(output, "run") / "student.safetensors").exists()


def test_the_teacher_draws_no_sound(output):
    with pytest.raises(ValueError, match=r"latents \(StableAudio1\) are no pictures; data from prompts .* Sounds"):
        distil(stand_in(Sound), name="run", data=prompts(Counts()))


def test_the_teacher_draws_one_frame_of_video(output):
    distil(stand_in(Frames), name="run", data=prompts(Counts(), text="one two three"))
    data = read_data(run_folder(output, "run") / "data")
    assert data.x0.shape == data.noise.shape == (3, CHANNELS, 1, 4, 6)


def test_prompts_with_counts_of_their_own_are_drawn_as_each_alone(output):
    """In one batch the host would count the tokens of all of them."""
    model, clip = stand_in(), Counts()
    distil(model, name="run", data=prompts(clip, text="one\ntwo and three", pictures_per_prompt=2, cfg=1.0, steps=1))
    drawn = read_data(run_folder(output, "run") / "data")
    by_count = {}
    for bucket in drawn.buckets:
        for x0, eps in zip(bucket.x0, bucket.noise, strict=True):
            by_count.setdefault(host.conditions.host_inputs(bucket.condition)["num_tokens"], []).append((x0, eps))
    assert {count: len(rows) for count, rows in by_count.items()} == {1: 2, 3: 2}
    for count, prompt in ((1, "one"), (3, "two and three")):
        encoded = clip.encode_from_tokens_scheduled(prompt)
        for x0, eps in by_count[count]:
            torch.testing.assert_close(x0[None], hosts_x0(model, eps[None], 1.0, encoded), atol=1e-5, rtol=1e-4)


def test_prompts_are_encoded_together_beside_as_many_samples(output, monkeypatch):
    """As HiDream-O1's, whose words the host joins with the places of the picture, row by row."""
    model, rows = stand_in(), []
    own = type(model.model).extra_conds

    def extra_conds(network, **kwargs):
        words, x = kwargs["cross_attn"], kwargs["noise"]
        words = words.expand(len(x), -1, -1) if len(words) == 1 else words
        rows.append(len(torch.cat([words.flatten(1), x.flatten(1)], dim=1)))
        return own(network, **kwargs)

    monkeypatch.setattr(type(model.model), "extra_conds", extra_conds)
    distil(model, name="run", data=prompts(Counts(), text="one two three", pictures_per_prompt=3, batch_size=2))
    assert len(read_data(run_folder(output, "run") / "data").x0) == 3
    assert 2 in rows, "two of one prompt are drawn at once"
