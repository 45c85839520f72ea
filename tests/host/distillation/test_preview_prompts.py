"""Prompts of a user's own, drawn at every checkpoint: what the pictures are, where they are kept, and what is refused."""

import numpy as np
import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import conditioning, noise_for, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation import observing
from comfyui_fewstep.nodes.distillation.data import preview_pictures, preview_prompts
from comfyui_fewstep.nodes.distillation.learning import methods, students
from comfyui_fewstep.trainers.runs import keeping
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from encoders import RandomCLIP
from making_data import LONG, distil, run_folder
from PIL import Image
from test_frames import Loud, Sound, stand_in, text

PROMPTS = f"a red fox\n{LONG}\n\na blue house"


class Colours:
    """Decodes each 8 x 8 pixels to the first three of its latents, and counts how many pictures come at once."""

    def __init__(self):
        self.at_once = []

    def decode(self, latents):
        self.at_once.append(len(latents))
        return torch.sigmoid(latents[:, :3]).movedim(1, -1).repeat_interleave(8, 1).repeat_interleave(8, 2)


def previews_of(prompts=PROMPTS, clip=None):
    return preview_prompts.PreviewPrompts().describe(clip or RandomCLIP(768, 768), prompts)[0]


def train(model, *, name="run", vae=None, **inputs):
    data = {"latents": {"samples": noise_for(model, seed=1, batch=4)}, "positive": conditioning("sd15", seed=2)}
    data |= {"negative": conditioning("sd15", seed=3)}
    return distil(model, name=name, vae=vae or Colours(), **data, **inputs)


def newest(output, name="run"):
    return sorted((run_folder(output, name) / "previews").glob("*.png"))[-1]


def test_each_column_is_what_a_sampler_draws_of_its_prompt_from_seed_0(output):
    model, vae, clip = tiny("sd15"), Colours(), RandomCLIP(768, 768)
    train(model, vae=vae, previews=previews_of(clip=clip))
    assert set(vae.at_once) == {1}, "one after the other: they are of full size"
    file = newest(output)
    texts = ["a red fox", LONG, "a blue house"]
    assert preview_pictures.about(file) == {"columns": 3, "prompts": texts}
    picture = np.asarray(Image.open(file)).astype(int)
    below = np.split(picture[picture.shape[0] // 2 :], 3, axis=1)
    drawer, sampler, sigmas = students.LoadStudent().load(model, "run (run)")
    shape = noise_for(model, seed=1, batch=1).shape
    for column, prompt in zip(below, texts, strict=True):
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        positive = [[*clip.encode_from_tokens(prompt, return_pooled=True)]]
        positive = [[positive[0][0], {"pooled_output": positive[0][1]}]]
        latents = host.models.sample(
            drawer, sampler, sigmas, noise=noise, positive=positive, negative=positive, cfg=1.0, seed=0
        )
        wanted = Colours().decode(latents)[0].mul(255)
        assert np.abs(column - wanted.numpy()).max() < 1.5
    assert np.abs(below[0] - below[2]).max() > 3, "and not all the same"


def test_the_teachers_row_is_drawn_once_in_a_stage(output, monkeypatch):
    (method,) = methods.ProgressiveDistillation().make(
        start_steps=8, target_steps=2, iterations=4, weighting="constant", learning_rate=1e-2, guidance_scale=1.5
    )
    drawn, drawing = [], observing.Preview._draw
    monkeypatch.setattr(observing.Preview, "_draw", lambda *args, **kwargs: drawn.append(1) or drawing(*args, **kwargs))
    train(tiny("sd15"), method=method, previews=previews_of("a red fox"), checkpoint_every=2)
    files = sorted((run_folder(output, "run") / "previews").glob("*.png"))
    (first, own), (second, later), (third, _), _ = (np.split(np.asarray(Image.open(file)), 2) for file in files)
    assert len(drawn) == 2 + 1 + 2 + 1, "at both checkpoints of both stages"
    assert np.array_equal(first, second)
    assert not np.array_equal(own, later)
    assert not np.array_equal(second, third), "of the next stage's teacher"


def test_they_are_kept_for_another_process_and_a_clone_until_a_start_without_them(output, monkeypatch):
    model = tiny("sd15")
    with monkeypatch.context() as patched:
        patched.setattr(observing.Preview, "__call__", lambda self, metrics: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(model, previews=previews_of(), checkpoint_every=2, iterations=4)
    run = RunFolder(run_folder(output, "run").parent, "run")
    data = type(
        "Data", (), {"device": torch.device("cpu"), "first": lambda self, count: observing.Batch(torch.ones(1), {})}
    )
    for kept in (run, keeping.cloned(run, "another")):
        assert [prompt for prompt, _ in preview_prompts.kept(kept, data())] == ["a red fox", LONG, "a blue house"]
    train(model, checkpoint_every=2, iterations=4)
    assert preview_pictures.about(newest(output))["prompts"] is None
    assert preview_prompts.kept(run, data()) == []


def test_pictures_of_training_samples_say_how_many_they_are(output):
    train(tiny("sd15"))
    assert preview_pictures.about(newest(output)) == {"columns": 4, "prompts": None}


def test_what_no_file_says_is_unknown_and_what_is_no_picture_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "old.png")
    assert preview_pictures.about(tmp_path / "old.png") == preview_pictures.NOTHING
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.png is damaged"):
        preview_pictures.about(tmp_path / "bad.png")
    said = preview_pictures.PngImagePlugin.PngInfo()
    said.add_itxt("fewstep.preview", '{"columns": "many", "prompts": null}')
    Image.new("RGB", (4, 4)).save(tmp_path / "odd.png", pnginfo=said)
    with pytest.raises(ValueError, match="columns is 'many'"):
        preview_pictures.about(tmp_path / "odd.png")


def test_what_cannot_be_drawn_is_refused_before_anything_begins(output):
    model = tiny("sd15")
    prompt = conditioning("sd15", seed=2)
    latents = {"samples": noise_for(model, seed=1, batch=2)}
    with pytest.raises(ValueError, match="previews is connected but vae is not"):
        distil(model, name="run", latents=latents, positive=prompt, negative=prompt, previews=previews_of())
    sound = {"samples": torch.randn(2, 4, 16)}
    with pytest.raises(ValueError, match="draws no pictures"):
        distil(
            stand_in(Sound),
            name="run",
            latents=sound,
            positive=text(3),
            negative=text(3),
            vae=Loud(),
            previews=previews_of(),
        )
    for bad in ("", "\n", "a\n" * 17):
        assert "allowed are 1 to 16" in preview_prompts.PreviewPrompts.VALIDATE_INPUTS(prompts=bad)
    assert not run_folder(output, "run").exists()
