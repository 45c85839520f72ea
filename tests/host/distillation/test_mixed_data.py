"""Data of several kinds in one run: prompts of several lengths from a folder and from the graph, pictures of models of frames."""

import logging

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import tiny
from comfyui_fewstep.benchmarks.architectures.command import ARCHITECTURES
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.data import preview_pictures
from comfyui_fewstep.samplers.schedules import trailing_sigmas
from comfyui_fewstep.trainers.data.cache import read_data
from comfyui_fewstep.trainers.data.conditions import chosen, is_mixed
from encoders import RandomCLIP, wan_vae
from making_data import LONG, distil, images, picture, prompts, run_folder, student_of

QWEN = pytest.mark.skipif(not ARCHITECTURES["qwen_image"].known(), reason="this host has no Qwen-Image")


def data_of(output, name):
    return read_data(run_folder(output, name) / "data")


def test_prompts_of_77_and_154_tokens_mix_in_the_graph_as_from_a_folder(output, folder, vae, clip):
    """The same four pictures and texts, two of 102 words: the same data and student, but for rounding of the latents."""
    for name in ("1.png", "3.png", "3.txt"):
        (folder / name).unlink()
    picture(folder / "5.png", 64, 64, seed=9)
    texts = {"0": "a red fox", "2": LONG, "4": "a blue house", "5": f"{LONG} again"}
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    model = tiny("sd15")
    distil(model, name="folder", data=images(vae, clip), caption_dropout=0.3)
    encoder = host.encoding.TextEncoder(clip, host.folders.encodings())
    entries = [encoder.conditioning(text)[0] for text in texts.values()]
    assert [entry[0].shape[1] for entry in entries] == [77, 154, 77, 154]
    short, long = data_of(output, "folder").buckets
    latents = model.model.process_latent_out(torch.cat([short.x0, long.x0])[[0, 2, 1, 3]])
    negative = encoder.conditioning("")
    given = {"latents": {"samples": latents}, "positive": entries, "negative": negative, "caption_dropout": 0.3}
    distil(model, name="graph", **given)
    one, other = (data_of(output, name).tensors() for name in ("folder", "graph"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one if not name.endswith("x0"))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    learnt, again = (student_of(output, name) for name in ("folder", "graph"))
    assert all(torch.allclose(learnt[name], again[name], atol=1e-5) for name in learnt)


@pytest.mark.parametrize("what", ["lengths", "sizes"])
def test_a_batch_that_repeats_a_few_samples_is_said(what, output, folder, vae, clip, caplog):
    """Of four pictures in four sizes, of which a batch is of one; captions of four lengths stand in one batch."""
    (folder / "4.png").unlink()
    for i, (width, height) in enumerate([(64, 64), (96, 48), (48, 96), (128, 32)]):
        picture(folder / f"{i}.png", *((width, height) if what == "sizes" else (64, 64)), seed=i)
        (folder / f"{i}.txt").write_text(" ".join(["fox"] * (100 * i + 1 if what == "lengths" else 1)))
    with caplog.at_level(logging.WARNING):
        distil(tiny("sd15"), name="run", data=images(vae, clip))
    assert len(data_of(output, "run").buckets) == 4
    said = "of 4 shapes, and a batch is of one by size: of batch_size 4 only 1.0 samples are different ones on average"
    assert (said in caplog.text) == (what == "sizes")


def in_lengths(kind):
    """(MODEL, data node) of prompts whose inputs are of several lengths."""
    text = f"a red fox\n{LONG}" if kind == "sd15" else "a red fox\n\na blue house by the sea\n\none cat"
    model = tiny(kind) if kind == "sd15" else ARCHITECTURES[kind].model(seed=0)
    widths = {"sd15": (768, 768), "z_image": (32, 24), "qwen_image": (32, 24)}[kind]
    return model, prompts(RandomCLIP(*widths, padded=kind == "sd15"), text=text)


@pytest.mark.parametrize("kind", ["sd15", "z_image", "qwen_image"])
def test_a_batch_of_several_lengths_is_seen_as_each_of_its_samples_is_alone(kind, output):
    """Through the host's network: what is put behind a short prompt is seen by nobody."""
    if not ARCHITECTURES[kind].known():
        pytest.skip(f"this host has no {kind}")
    model, data = in_lengths(kind)
    distil(model, name="run", data=data)
    kept = data_of(output, "run")
    batch = kept.batch(6, generator=torch.Generator().manual_seed(1), caption_dropout=0.3, mixed=True)
    assert is_mixed(batch.condition)
    network = host.training.trainable_copy(model)
    denoiser = host.training.as_denoiser(network, model=model)
    sigma = torch.linspace(0.3, 0.9, 6)
    with torch.no_grad():
        said = denoiser(batch.x0, sigma, **batch.condition)
        for i in range(6):
            row = slice(i, i + 1)
            own = denoiser(batch.x0[row], sigma[row], **chosen(batch.condition, row))
            torch.testing.assert_close(said[row], own, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("divided", "asked"), [(False, [3, 3]), (True, [1] * 6)])
def test_of_divided_weights_each_sample_passes_alone(divided, asked, output, monkeypatch):
    """Processes that hold a part each must ask for a layer equally often, whatever the lengths of their samples."""
    model, data = in_lengths("sd15")
    distil(model, name="run", data=data)
    batch = data_of(output, "run").varied(6)
    network, seen = host.training.trainable_copy(model), []
    own = network.apply_model
    monkeypatch.setattr(network, "apply_model", lambda x, *a, **k: seen.append(len(x)) or own(x, *a, **k))
    monkeypatch.setattr(host.training, "is_divided", lambda weight: divided)
    with torch.no_grad():
        host.training.as_denoiser(network, model=model)(batch.x0, torch.full((6,), 0.5), **batch.condition)
    assert seen == asked


@QWEN
def test_previews_show_prompts_of_every_length(output):
    """Three prompts of a length each, of which a preview showed the first alone; three pictures of each."""
    model, data = in_lengths("qwen_image")
    distil(model, name="run", data=data, vae=wan_vae())
    newest = sorted((run_folder(output, "run") / "previews").glob("*.png"))[-1]
    assert preview_pictures.about(newest)["columns"] == 9


@QWEN
def test_the_teacher_draws_pictures_of_one_frame(output):
    """Qwen-Image is a model of pictures whose latents are those of video: a pair drawn again is the stored picture."""
    model, clip = ARCHITECTURES["qwen_image"].model(seed=0), RandomCLIP(32, 24)
    distil(model, name="run", data=prompts(clip))
    data = data_of(output, "run")
    assert data.x0.shape == data.noise.shape == (6, 16, 1, 4, 6)
    encoder = host.encoding.TextEncoder(clip, host.folders.encodings())
    with torch.inference_mode():
        latents = host.data.draw(
            model,
            "euler",
            trailing_sigmas(4, table=host.models.noise_levels(host.models.model_sampling_of(model))),
            noise=data.noise[:2],
            positive=host.data.batched([encoder.conditioning("a red fox")] * 2),
            negative=encoder.conditioning(""),
            cfg=2.0,
        )
    assert torch.equal(model.model.process_latent_in(latents), data.x0[:2])
    assert data.x0.std() > 0.1
    assert student_of(output, "run")


@QWEN
def test_pictures_become_one_frame_through_the_vae_of_video(output, folder):
    model, vae = ARCHITECTURES["qwen_image"].model(seed=0), wan_vae()
    distil(model, name="run", data=images(vae, RandomCLIP(32, 24)))
    square, wide = data_of(output, "run").buckets
    assert [tuple(bucket.x0.shape) for bucket in (square, wide)] == [(3, 16, 1, 8, 8), (2, 16, 1, 6, 10)]
