"""Training data nodes on the host's own classes: pictures from a folder, and prompts whose pictures the teacher draws."""

import hashlib
import logging

import numpy as np
import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import folder_paths  # noqa: E402
from architectures import conditioning, tiny  # noqa: E402
from comfyui_fewstep.nodes import (  # noqa: E402
    data_sources,
    distillation,
    host,
    host_data,
    host_training,
    methods,
    students,
    training_data,
)
from comfyui_fewstep.samplers.schedules import trailing_sigmas  # noqa: E402
from comfyui_fewstep.trainers.data import Buckets  # noqa: E402
from comfyui_fewstep.trainers.data_cache import read_data  # noqa: E402
from comfyui_fewstep.trainers.export import read_student  # noqa: E402
from comfyui_fewstep.trainers.pictures import pixels  # noqa: E402
from encoders import Counting, MeanVAE, RandomCLIP, tiny_clip, tiny_vae  # noqa: E402
from PIL import Image  # noqa: E402

TRAINING = {
    "seed": 3,
    "batch_size": 4,
    "optimiser": "adam",
    "weight_decay": 0.0,
    "gradient_clip": 1.0,
    "checkpoint_every": 20,
}
FOLDER = {"resolution": 64, "bucket_step": 16, "caption": "a picture", "without_caption": "use caption"}
FOLDER |= {"negative": "", "flip": False, "broken": "stop"}
PROMPTS = {"negative": "", "width": 48, "height": 32, "pictures_per_prompt": 3, "steps": 4, "cfg": 2.0}
PROMPTS |= {"sampler": "euler", "seed": 7, "batch_size": 2, "pairs": True}
LONG = " ".join(f"word{i}" for i in range(100))


@pytest.fixture(scope="module")
def vae():
    return tiny_vae()


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


@pytest.fixture
def output(tmp_path, monkeypatch):
    """The host's input and output folders, for this test alone."""
    for kind in ("input", "output"):
        monkeypatch.setattr(folder_paths, f"get_{kind}_directory", lambda kind=kind: str(tmp_path / kind))
    (tmp_path / "input").mkdir()
    return tmp_path / "output"


def picture(path, width, height, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR).save(path)


@pytest.fixture
def folder(tmp_path):
    """Five pictures of two aspect ratios, two of them with a text, named so that the sizes take turns."""
    made = tmp_path / "input" / "pictures"
    made.mkdir(parents=True, exist_ok=True)
    for i, (width, height) in enumerate([(64, 64), (96, 48), (80, 80), (120, 60), (70, 70)]):
        picture(made / f"{i}.png", width, height, seed=i)
    (made / "0.txt").write_text("a red fox")
    (made / "3.txt").write_text("a blue house")
    return made


@torch.inference_mode()
def distil(model, *, name, layers="linear", **inputs):
    """As the graph runs it, with guidance baked in."""
    (method,) = methods.ProgressiveDistillation().make(
        start_steps=4,
        target_steps=2,
        iterations=inputs.pop("iterations", 4),
        weighting="constant",
        learning_rate=1e-3,
        guidance_scale=1.5,
    )
    (lora,) = students.LoRAStudentNode().make(rank=4, alpha=4.0, layers=layers)
    return distillation.Distill().distil(model, method=method, run_name=name, student=lora, **{**TRAINING, **inputs})


def images(vae, clip, **changed):
    return training_data.ImageFolder().describe(
        **{"folder": "pictures", **FOLDER, "vae": vae, "clip": clip, **changed}
    )[0]


def prompts(clip, text="a red fox\n\n a blue house \n", **changed):
    return training_data.TeacherPictures().describe(**{"prompts": text, **PROMPTS, "clip": clip, **changed})[0]


def run_folder(output, name):
    return output / "fewstep" / "runs" / name


def student_of(output, name):
    return read_student(run_folder(output, name) / "student.safetensors")[0]


def same_tensors(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# --- a folder of pictures --------------------------------------------------------------------------------------------


def test_a_folder_is_trained_on_as_the_same_pictures_in_the_graph(output, folder, vae, clip):
    """Bit for bit, with the host's own VAE and CLIP: the square pictures, encoded here by hand."""
    for name in ("1.png", "3.png", "3.txt"):
        (folder / name).unlink()
    files = [folder / f"{i}.png" for i in (0, 2, 4)]
    with torch.inference_mode():
        encoded = []
        for file in files:  # some hosts draw from the VAE's posterior
            torch.manual_seed(int(hashlib.sha256(file.read_bytes()).hexdigest()[:15], 16))
            encoded.append(vae.encode(pixels(file, (64, 64))[None]))
        texts = [clip.encode_from_tokens(clip.tokenize(t), return_pooled=True) for t in ("a red fox", "a picture", "")]
    assert encoded[0].std() > 0.1
    entries = [[[cond, {"pooled_output": pooled}]] for cond, pooled in texts]
    positive, negative = entries[0] + entries[1] + entries[1], entries[2]
    distil(tiny("sd15"), name="graph", latents={"samples": torch.cat(encoded)}, positive=positive, negative=negative)
    distil(tiny("sd15"), name="folder", data=images(vae, clip))
    one, other = (read_data(run_folder(output, name) / "data") for name in ("graph", "folder"))
    assert same_tensors(one.tensors(), other.tensors())
    assert same_tensors(student_of(output, "graph"), student_of(output, "folder"))


def test_encoding_leaves_the_hosts_random_numbers_alone(vae):
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    host_data.encode_picture(vae, torch.rand(16, 16, 3, generator=torch.Generator()), seed=1)
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_second_start_needs_neither_vae_nor_clip(kind, output, folder, vae, clip):
    """Two buckets, captions dropped, previews through the VAE; then the same run again, and a longer one goes on."""
    if kind == "sdxl":
        clip = RandomCLIP(2048, 1280)
    model, options = tiny(kind), {"caption_dropout": 0.3, "vae": vae}
    counted = Counting(vae), Counting(clip)
    distil(model, name="run", data=images(*counted), **options)
    assert len(counted[0].seen) == 5
    data = read_data(run_folder(output, "run") / "data")
    assert isinstance(data, Buckets)
    assert [tuple(bucket.x0.shape) for bucket in data.buckets] == [(3, 4, 8, 8), (2, 4, 6, 10)]
    if kind == "sdxl":
        sizes = [bucket.condition["y"][:, 1280:].unique(dim=0) for bucket in data.buckets]
        assert [len(size) for size in sizes] == [1, 1]
        assert not torch.equal(sizes[0], sizes[1]), "height and width are inputs of SDXL"
        expected = model.model.encode_adm(pooled_output=torch.zeros(1, 1280), width=80, height=48)[:, 1280:]
        assert torch.equal(sizes[1], expected)
        assert torch.equal(data.buckets[1].unconditional["y"][:, 1280:], expected)
    finished = student_of(output, "run")
    _, losses, _, lora = distil(model, name="run", data=images(None, None), **options)
    assert losses["loss"]
    assert same_tensors(lora, finished)
    assert len(counted[0].seen) == 5
    with pytest.raises(ValueError, match=r"must be made: connect vae and clip to Training Images \(Folder\)"):
        distil(model, name="other", data=images(None, None), **options)


class Cancelled(Exception):
    pass


def cancel_at(monkeypatch, call):
    calls = []

    def check():
        calls.append(1)
        if len(calls) == call:
            raise Cancelled

    monkeypatch.setattr(host, "check_cancelled", check)


@pytest.mark.parametrize("call", [2, 7, 8, 9, 10])
def test_a_cancel_while_encoding_goes_on_where_it_was(call, output, folder, vae, clip, monkeypatch):
    """Five looks at the files, then five pictures, in shards of two at most: (0, 2), (4), (1, 3)."""
    monkeypatch.setattr(data_sources, "SHARD_PICTURES", 2)
    model = tiny("sd15")
    distil(model, name="whole", data=images(vae, clip))
    first, second = Counting(vae), Counting(vae)
    cancel_at(monkeypatch, call)
    with pytest.raises(Cancelled):
        distil(model, name="part", data=images(first, clip))
    monkeypatch.setattr(host, "check_cancelled", lambda: None)
    shards = len(list((run_folder(output, "part") / "data").glob("*.safetensors")))
    kept = {2: 0, 7: 0, 8: 2, 9: 3, 10: 3}[call]
    assert shards == {0: 0, 2: 1, 3: 2}[kept]
    distil(model, name="part", data=images(second, clip))
    assert len(second.seen) == 5 - kept, "what lies in a shard is not encoded again"
    one, other = (read_data(run_folder(output, name) / "data").tensors() for name in ("whole", "part"))
    assert same_tensors(one, other)
    assert same_tensors(student_of(output, "whole"), student_of(output, "part"))


def test_flip_adds_every_picture_mirrored(output, folder, clip):
    distil(tiny("sd15"), name="run", data=images(MeanVAE(), clip, flip=True))
    data = read_data(run_folder(output, "run") / "data")
    assert [len(bucket.x0) for bucket in data.buckets] == [6, 4]
    for bucket in data.buckets:
        torch.testing.assert_close(bucket.x0[1::2], bucket.x0[::2].flip(-1), atol=1e-6, rtol=0)
        assert (bucket.x0[1] - bucket.x0[0]).abs().max() > 1e-3
        assert torch.equal(bucket.condition["c_crossattn"][1::2], bucket.condition["c_crossattn"][::2])


def test_broken_files_are_named_before_any_is_encoded_or_left_out_by_choice(output, folder, vae, clip, caplog):
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:200])
    (folder / "4.png").write_text("no picture")
    counted = Counting(vae)
    with pytest.raises(
        ValueError, match=r"2 of 5 pictures in .* cannot be used: 1\.png \(.*; 4\.png \(.*or set broken to"
    ):
        distil(tiny("sd15"), name="run", data=images(counted, clip))
    assert counted.seen == []
    with caplog.at_level(logging.WARNING):
        distil(tiny("sd15"), name="run", data=images(counted, clip, broken="skip"))
    (said,) = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert "2 of 5 pictures" in said
    assert "1.png (" in said
    assert "4.png (" in said
    assert len(counted.seen) == 3


def test_nothing_but_broken_files_is_an_error_also_where_they_are_skipped(output, folder, vae, clip):
    for file in folder.glob("*.png"):
        file.write_text("no picture")
    with pytest.raises(ValueError, match=r"5 of 5 pictures .* cannot be used"):
        distil(tiny("sd15"), name="run", data=images(vae, clip, broken="skip"))


def test_a_vae_that_makes_nan_is_named_with_the_picture(output, folder, clip):
    class Broken(MeanVAE):
        def encode(self, pixels):
            return super().encode(pixels) * float("nan")

    with pytest.raises(ValueError, match=r"the VAE makes NaN or infinite values of 0\.png"):
        distil(tiny("sd15"), name="run", data=images(Broken(), clip))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda folder: (folder / "0.txt").write_text("another fox"),
            r"captions\.0\.png: there .a red fox., here .another",
        ),
        (lambda folder: picture(folder / "2.png", 80, 80, seed=9), r"pictures\.2\.png: there"),
        (lambda folder: (folder / "4.png").unlink(), r"captions\.4\.png: there .a picture., here null"),
    ],
)
def test_a_begun_run_refuses_another_folder_and_one_that_has_not_takes_it(change, named, output, folder, vae, clip):
    distil(tiny("sd15"), name="begun", data=images(vae, clip))
    encoded = run_folder(output, "stopped") / "data"
    with pytest.raises(ValueError, match="warmup is 99"):
        distil(tiny("sd15"), name="stopped", data=images(vae, clip), warmup=99)
    before = read_data(encoded).tensors()
    change(folder)
    with pytest.raises(ValueError, match=f"begun on other training data.*{named}"):
        distil(tiny("sd15"), name="begun", data=images(vae, clip))
    distil(tiny("sd15"), name="stopped", data=images(vae, clip))
    assert not same_tensors(read_data(encoded).tensors(), before)


def test_another_vae_is_another_source(output, folder, vae, clip):
    distil(tiny("sd15"), name="run", data=images(vae, clip))
    with pytest.raises(ValueError, match=r"begun on other training data.*vae: there"):
        distil(tiny("sd15"), name="run", data=images(tiny_vae(seed=1), clip))


def test_long_captions_are_buckets_of_their_own_and_can_be_dropped(output, folder, vae, clip):
    """102 words are two chunks of 77 tokens; the empty prompt is repeated, as the host's sampler does."""
    (folder / "2.txt").write_text(LONG)
    model = tiny("sd15")
    distil(model, name="run", data=images(vae, clip), caption_dropout=0.5)
    square, _, long = sorted(
        read_data(run_folder(output, "run") / "data").buckets,
        key=lambda bucket: (bucket.condition["c_crossattn"].shape[1], -bucket.x0.shape[-2]),
    )
    assert (len(square.x0), len(long.x0)) == (2, 1)
    text, empty = long.condition["c_crossattn"], long.unconditional["c_crossattn"]
    assert text.shape[1:] == empty.shape[1:] == (154, 768)
    assert torch.equal(empty, square.unconditional["c_crossattn"].repeat(1, 2, 1))
    with torch.no_grad():
        denoise = host_training.as_denoiser(host_training.loaded(model))
        x, sigma = long.x0, torch.tensor([0.7])
        once = denoise(x, sigma, c_crossattn=square.unconditional["c_crossattn"])
        torch.testing.assert_close(denoise(x, sigma, c_crossattn=empty), once, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"folder": "missing"}, "which is no folder"),
        ({"folder": " "}, "is empty; give the path"),
        ({"folder": "."}, "holds no pictures"),
        ({"resolution": 8}, "resolution is 8 and bucket_step is 16"),
        ({"bucket_step": 12}, "bucket_step is 12; allowed are multiples of 8"),
    ],
)
def test_a_folder_of_no_use_is_named_on_its_node(inputs, said, output, folder):
    with pytest.raises(ValueError, match=said):
        images(None, None, **inputs)
    given = {"folder": "pictures", "resolution": 64, "bucket_step": 16} | inputs
    assert said[:12] in training_data.ImageFolder.VALIDATE_INPUTS(**given)
    assert training_data.ImageFolder.VALIDATE_INPUTS("pictures", 64, 16) is True
    assert training_data.ImageFolder.VALIDATE_INPUTS(None, 64, 16) is True, "a linked value is not known yet"


def test_captions_may_be_wanted_for_every_picture(output, folder, vae, clip):
    with pytest.raises(ValueError, match=r"3 pictures have no caption file beside them: 1\.png, 2\.png, 4\.png"):
        distil(tiny("sd15"), name="run", data=images(vae, clip, without_caption="stop"))


def test_a_changed_folder_makes_the_host_run_the_node_again(output, folder):
    fingerprint = training_data.ImageFolder.IS_CHANGED
    before = fingerprint(folder="pictures", resolution=64)
    assert fingerprint(folder="pictures", resolution=64) == before
    (folder / "1.txt").write_text("new")
    assert fingerprint(folder="pictures", resolution=64) != before


# --- prompts alone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_pair_drawn_again_from_its_noise_is_the_stored_picture(kind, output, clip):
    """With the teacher, the schedule and the guidance of the node; prompts in order, each three times."""
    if kind == "sdxl":
        clip = RandomCLIP(2048, 1280)
    model = tiny(kind)
    distil(model, name="run", data=prompts(clip))
    data = read_data(run_folder(output, "run") / "data")
    assert data.x0.shape == data.noise.shape == (6, 4, 4, 6)
    texts = [host_data.encode_text(clip, text) for text in ("a red fox", "a blue house", "")]
    sigmas = trailing_sigmas(4, table=host.noise_levels(host.model_sampling_of(model)))
    for i in range(0, 6, 2):
        with torch.inference_mode():
            latents = host.sample(
                model,
                host_data.comfy.samplers.sampler_object("euler"),
                sigmas,
                noise=data.noise[i : i + 2],
                positive=host_data.batched([texts[i // 3], texts[(i + 1) // 3]]),
                negative=texts[2],
                cfg=2.0,
            )
            x0 = model.model.process_latent_in(latents)
        assert torch.equal(x0, data.x0[i : i + 2])
    assert data.noise.std() == pytest.approx(1.0, abs=0.1)
    assert len({float(noise.sum()) for noise in data.noise}) == 6


def test_the_noise_of_a_picture_is_its_own_whatever_the_batch(output, clip):
    model = tiny("sd15")
    for size in (2, 5):
        distil(model, name=f"by {size}", data=prompts(clip, batch_size=size))
    distil(model, name="seed", data=prompts(clip, seed=8))
    two, five, other = (read_data(run_folder(output, name) / "data") for name in ("by 2", "by 5", "seed"))
    assert torch.equal(two.noise, five.noise)
    torch.testing.assert_close(two.x0, five.x0, atol=1e-4, rtol=1e-4)
    assert not any(torch.equal(one, two) for one in two.noise for two in other.noise)


@pytest.mark.parametrize("call", [1, 3, 4, 5])
def test_a_cancel_while_drawing_goes_on_where_it_was(call, output, clip, monkeypatch):
    model = tiny("sd15")
    distil(model, name="whole", data=prompts(clip))
    drawn, draw = [], host_data.draw
    monkeypatch.setattr(host_data, "draw", lambda *args, **kw: drawn.append(len(kw["noise"])) or draw(*args, **kw))
    cancel_at(monkeypatch, call)
    with pytest.raises(Cancelled):
        distil(model, name="part", data=prompts(clip))
    monkeypatch.setattr(host, "check_cancelled", lambda: None)
    distil(model, name="part", data=prompts(clip))
    assert drawn == [2, 2, 2], "each batch once"
    distil(model, name="part", data=prompts(None), checkpoint_every=7)
    assert drawn == [2, 2, 2]
    one, other = (read_data(run_folder(output, name) / "data").tensors() for name in ("whole", "part"))
    assert same_tensors(one, other)


def test_prompts_of_different_length_are_drawn_apart(output, clip):
    model = tiny("sd15")
    distil(model, name="run", data=prompts(clip, text=f"short\n{LONG}", pictures_per_prompt=1, pairs=False))
    data = read_data(run_folder(output, "run") / "data")
    assert [bucket.condition["c_crossattn"].shape[1] for bucket in data.buckets] == [77, 154]
    assert all(bucket.noise is None for bucket in data.buckets)


def test_another_teacher_or_setting_is_another_source(output, clip):
    distil(tiny("sd15"), name="run", data=prompts(clip))
    with pytest.raises(ValueError, match=r"begun on other training data.*cfg: there 2.0, here 3.0"):
        distil(tiny("sd15"), name="run", data=prompts(clip, cfg=3.0))
    with pytest.raises(ValueError, match=r"begun on other training data.*teacher_sha256: there"):
        distil(tiny("sd15", seed=1), name="run", data=prompts(clip))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"text": " \n\n"}, "prompts is empty; give one prompt on each line"),
        ({"width": 44}, "width is 44; allowed are multiples of 8"),
        ({"height": 0}, "height is 0"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"pictures_per_prompt": 0}, "pictures_per_prompt is 0"),
        ({"cfg": 0.5}, "cfg is 0.5; allowed is 1"),
        ({"sampler": "euler_ancestral"}, "sampler is 'euler_ancestral'; allowed are euler, ddim"),
    ],
)
def test_prompts_of_no_use_are_named_on_their_node(inputs, said, clip):
    with pytest.raises(ValueError, match=said):
        prompts(clip, **inputs)


def test_prompts_are_checked_before_anything_runs():
    validate = training_data.TeacherPictures.VALIDATE_INPUTS
    assert validate("a fox", 512, 512) is True
    assert validate(None, 512, 512) is True
    assert "prompts is empty" in validate(" ", 512, 512)
    assert "width is 100" in validate("a fox", 100, 512)


# --- Distill Model's inputs ------------------------------------------------------------------------------------------

LATENTS = {"samples": torch.randn(4, 4, 4, 6, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize(
    ("connected", "said"),
    [
        ((), "nothing is connected; connect latents and positive, or data"),
        (("latents",), "latents is connected; connect latents and positive, or data"),
        (("positive",), "positive is connected"),
        (("data", "latents", "positive"), "connect data alone"),
        (("data", "negative"), "connect data alone"),
    ],
)
def test_exactly_one_kind_of_data_is_connected(connected, said, output, clip):
    given = {
        "latents": LATENTS,
        "positive": conditioning("sd15"),
        "negative": conditioning("sd15"),
        "data": prompts(clip),
    }
    with pytest.raises(ValueError, match=said):
        distil(tiny("sd15"), name="run", **{name: given[name] for name in connected})
    assert not run_folder(output, "run").exists()
    linked = {name: None for name in connected if name != "negative"}  # as the host says what is linked
    if "negative" not in connected:
        assert (
            said[:20] in distillation.Distill.VALIDATE_INPUTS(run_name="run", **linked) or "connect data alone" in said
        )


def test_the_host_is_asked_before_anything_runs():
    validate = distillation.Distill.VALIDATE_INPUTS
    assert validate(run_name="run", latents=None, positive=None) is True
    assert validate(run_name="run", data=None) is True
    assert "connect data alone" in validate(run_name="run", data=None, latents=None, positive=None)


def test_data_in_the_graph_are_kept_for_another_process(output):
    distil(
        tiny("sd15"), name="run", latents=LATENTS, positive=conditioning("sd15"), negative=conditioning("sd15", seed=5)
    )
    data = read_data(run_folder(output, "run") / "data")
    torch.testing.assert_close(data.x0, 0.18215 * LATENTS["samples"])
    assert torch.equal(data.unconditional["c_crossattn"], conditioning("sd15", seed=5)[0][0])
    run_json = (run_folder(output, "run") / "run.json").read_text()
    assert data_sha256(data) in run_json


def data_sha256(data):
    return distillation.tensors_sha256(data.tensors())


def test_captions_are_dropped_in_the_graph_too(output):
    """Prompts of 8 and 16 tokens get one length; without a negative prompt there is nothing to drop to."""
    positive, negative = conditioning("sd15"), conditioning("sd15", seed=5)
    positive[0][0] = torch.cat([positive[0][0], positive[0][0] + 1.0], dim=1)
    given = {"latents": LATENTS, "positive": positive, "caption_dropout": 0.5}
    distil(tiny("sd15"), name="run", **given, negative=negative)
    data = read_data(run_folder(output, "run") / "data")
    assert torch.equal(data.unconditional["c_crossattn"], negative[0][0].repeat(1, 2, 1))
    sd3 = {"positive": conditioning("sd3"), "negative": conditioning("sd3", seed=5), "caption_dropout": 0.5}
    sd3["positive"][0][0] = sd3["positive"][0][0].repeat(1, 2, 1)
    latents = {"samples": torch.randn(4, 16, 4, 6)}
    with pytest.raises(ValueError, match=r"differ in shape \(c_crossattn: \(16, 4096\) and \(8, 4096\)\)"):
        distil(tiny("sd3"), name="sd3", latents=latents, **sd3)
    assert not run_folder(output, "sd3").exists(), "SD3 attends to its text itself, where a copy would count twice"
