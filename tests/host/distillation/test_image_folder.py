"""Training Images (Folder) on the host's own classes: encoded once, resumed, and the same as in the graph."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from unittest import mock

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.sd1_clip
from architectures import has, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation import running
from comfyui_fewstep.nodes.distillation.data import folder_data, folder_sources
from comfyui_fewstep.trainers.data.batches import Buckets
from comfyui_fewstep.trainers.data.cache import read_data
from comfyui_fewstep.trainers.data.listing import READ, REPEATED
from comfyui_fewstep.trainers.data.pictures import pixels
from encoders import Counting, MeanVAE, RandomCLIP, tiny_clip, tiny_vae
from making_data import (
    FOLDER,
    LONG,
    Cancelled,
    cancel_at,
    distil,
    images,
    picture,
    run_folder,
    same_tensors,
    student_of,
)
from PIL import Image


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
    host.encoding.encoded(vae, torch.rand(1, 16, 16, 3, generator=torch.Generator()), seed=1)
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


@pytest.mark.parametrize("call", [*(pytest.param(call, marks=pytest.mark.thorough) for call in (2, 7, 11, 21)), 17])
def test_a_cancel_while_encoding_costs_one_picture_at_most(call, output, folder, vae, clip, monkeypatch):
    """Five hashes, five looks at the files, then two for each picture, in shards of two at most: (0, 2), (4), (1, 3)."""
    monkeypatch.setattr(folder_sources, "SHARD_SAMPLES", 2)
    model = tiny("sd15")
    first, second = Counting(vae), Counting(vae)
    cancel_at(monkeypatch, call)
    with pytest.raises(Cancelled):
        distil(model, name="part", data=images(first, clip))
    monkeypatch.setattr(host.signals, "check_cancelled", lambda: None)
    assert len(first.seen) == max(0, (call - 11) // 2)
    shards = len(list((run_folder(output, "part") / "data").glob("*.safetensors")))
    assert shards == {2: 0, 7: 0, 11: 0, 17: 1, 21: 2}[call]
    distil(model, name="part", data=images(second, clip))
    assert len(second.seen) == 5 - len(first.seen), "what was encoded is not encoded again"
    shutil.rmtree(output / "fewstep" / "encoded")
    distil(model, name="whole", data=images(vae, clip))
    one, other = (read_data(run_folder(output, name) / "data").tensors() for name in ("whole", "part"))
    assert same_tensors(one, other)
    assert same_tensors(student_of(output, "whole"), student_of(output, "part"))


def encoded(output, vae, clip, name, *, model=None, **changed):
    """How many pictures and texts a new run has the encoders encode, and its data."""
    counted, full = (Counting(vae), Counting(clip)), ValueError("no more than the data was wanted")
    with mock.patch.object(running, "execute", side_effect=full), pytest.raises(ValueError, match="no more than"):
        distil(model or tiny("sd15"), name=name, data=images(*counted, **changed))
    return *(len(each.seen) for each in counted), read_data(run_folder(output, name) / "data")


def test_only_what_is_new_is_encoded_whatever_the_run(output, folder, vae, clip):
    """A picture and its caption, a size, a VAE; another run's name and equal captions cost nothing."""
    assert encoded(output, vae, clip, "first")[:2] == (5, 4), "two texts, the caption of the others, the empty prompt"
    *nothing, first = encoded(output, vae, clip, "second")
    assert nothing == [0, 0]
    picture(folder / "5.png", 64, 64, seed=9)
    (folder / "5.txt").write_text("a green hat")
    assert encoded(output, vae, clip, "third")[:2] == (1, 1)
    assert encoded(output, vae, clip, "flipped", flip=True)[:2] == (6, 0)
    assert encoded(output, vae, clip, "larger", resolution=128)[:2] == (6, 0)
    assert encoded(output, tiny_vae(seed=1), clip, "another VAE")[:2] == (6, 0)
    assert encoded(output, vae, tiny_clip(seed=1), "another CLIP")[:2] == (0, 5)
    (folder / "5.png").unlink()
    *nothing, again = encoded(output, vae, clip, "fourth")
    assert nothing == [0, 0]
    shutil.rmtree(output / "fewstep" / "encoded")
    *everything, anew = encoded(output, vae, clip, "fifth")
    assert everything == [5, 4]
    assert again.sha256() == anew.sha256() == first.sha256(), "bit for bit what encoding gives"


def test_of_an_encoder_without_weights_nothing_is_kept(output, folder, clip):
    """Its class alone would say too little."""
    for name in ("first", "second"):
        assert encoded(output, MeanVAE(), RandomCLIP(768, 768), name)[:2] == (5, 4)
    assert not (output / "fewstep" / "encoded").exists()


def test_equal_captions_are_held_once(output, folder, vae, clip):
    *_, data = encoded(output, vae, clip, "run")
    square, wide = data.buckets
    assert [len(bucket.condition["c_crossattn"]) for bucket in (square, wide)] == [2, 2]
    assert square.prompts.tolist() == [0, 1, 1]
    assert wide.prompts is None


def test_captions_are_literal_unless_prompt_syntax_is_wanted(output, folder, vae):
    """With the host's own tokenizer: (fate) is no emphasis, and every letter of the caption stays."""
    tokenizer = comfy.sd1_clip.SD1Tokenizer()

    class Asked:
        """The texts that it is asked to encode, as the tokenizer's words and weights."""

        def __init__(self):
            self.asked = []

        def tokenize(self, text):
            return tokenizer.tokenize_with_weights(text)

        def encode_from_tokens(self, tokens, return_pooled=False):
            real = [(token, weight) for token, weight in tokens["l"][0] if token < 49406]
            words = tokenizer.clip_l.inv_vocab
            self.asked.append(("".join(words[token] for token, _ in real).replace("</w>", " "), {w for _, w in real}))
            return torch.zeros(1, 77, 768), torch.zeros(1, 768)

    for file in folder.iterdir():
        if file.name != "0.png":
            file.unlink()
    (folder / "0.txt").write_text(r"saber (fate), (hat:1.3) \(x\)")
    plain, prompt = Asked(), Asked()
    encoded(output, vae, plain, "literal")
    encoded(output, vae, prompt, "prompt", caption_syntax="prompt syntax")
    assert ("".join(plain.asked[-1][0].split()), plain.asked[-1][1]) == (r"saber(fate),(hat:1.3)\(x\)", {1.0})
    assert ("".join(prompt.asked[-1][0].split()), prompt.asked[-1][1]) == ("saberfate,hat(x)", {1.0, 1.1, 1.3})


def test_guidance_is_for_models_that_take_one(output, folder, vae, clip):
    """FLUX.1-dev is told it with every prompt, the empty one too; the value is part of what the data are."""
    with pytest.raises(ValueError, match=r"guidance is 2.5, but this model \(.*\) takes none"):
        distil(tiny("sd15"), name="refused", data=images(vae, clip, guidance=2.5))
    if not has("flux"):
        pytest.skip("this host is older than Flux")

    class Wide(MeanVAE):
        def encode(self, pixels):
            return super().encode(pixels).repeat(1, 4, 1, 1)

    model, made = tiny("flux"), (Wide(), RandomCLIP(4096, 768))
    found = [encoded(output, *made, str(scale), model=model, guidance=scale)[2].buckets[0] for scale in (0.0, 2.5)]
    own, told = found
    assert own.condition["guidance"].unique().tolist() == [3.5]
    assert told.condition["guidance"].unique().tolist() == told.unconditional["guidance"].unique().tolist() == [2.5]
    assert torch.equal(own.condition["c_crossattn"], told.condition["c_crossattn"])


def test_a_run_of_before_goes_on_with_the_captions_that_it_has(output, folder, vae, clip):
    """Its folder does not say how they were read; another reading is then no reason to refuse it."""
    distil(tiny("sd15"), name="run", data=images(vae, clip))
    source = run_folder(output, "run") / "data" / "source.json"
    said = json.loads(source.read_text())
    assert said.pop("caption_syntax") == "literal"
    with pytest.raises(ValueError, match=r"caption_syntax: there .literal., here .prompt syntax."):
        distil(tiny("sd15"), name="run", data=images(vae, clip, caption_syntax="prompt syntax"))
    source.write_text(json.dumps(said))
    distil(tiny("sd15"), name="run", data=images(vae, clip), checkpoint_every=7)


def test_flip_adds_every_picture_mirrored(output, folder, clip):
    distil(tiny("sd15"), name="run", data=images(MeanVAE(), clip, flip=True))
    data = read_data(run_folder(output, "run") / "data")
    assert [len(bucket.x0) for bucket in data.buckets] == [6, 4]
    for bucket in data.buckets:
        torch.testing.assert_close(bucket.x0[1::2], bucket.x0[::2].flip(-1), atol=1e-6, rtol=0)
        assert (bucket.x0[1] - bucket.x0[0]).abs().max() > 1e-3
        text = bucket.tensors()["condition.c_crossattn"]
        assert torch.equal(text[1::2], text[::2])


def test_broken_files_are_named_before_any_is_encoded_or_left_out_by_choice(output, folder, vae, clip, caplog):
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:200])
    (folder / "4.png").write_text("no picture")
    counted = Counting(vae)
    said = r"2 of 5 pictures in .* cannot be used: 1\.png \(.*; 4\.png \(.*or set broken to skip on Training Images \(Folder\)"
    with pytest.raises(ValueError, match=said):
        distil(tiny("sd15"), name="run", data=images(counted, clip))
    assert counted.seen == []
    with caplog.at_level(logging.WARNING):
        distil(tiny("sd15"), name="run", data=images(counted, clip, broken="skip"))
    (said,) = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert "2 of 5 pictures" in said
    assert "1.png (" in said
    assert "4.png (" in said
    assert len(counted.seen) == 3


def test_one_odd_entry_stops_nothing_where_broken_files_are_skipped(output, folder, vae, clip, caplog):
    """Two frames of a camera are a picture; a link to nothing, a folder, and names and captions that are no text are none."""
    frames = [Image.open(folder / f"{i}.png").convert("RGB") for i in (0, 2)]
    frames[0].save(folder / "camera.jpg", format="MPO", save_all=True, append_images=frames[1:])
    (folder / "dangling.png").symlink_to(folder / "nowhere")
    (folder / "folder.png").mkdir()
    (folder / "4.txt").write_bytes(b"\xff\xfe")
    odd = {"dangling.png": "cannot be read", "folder.png": "not a file", "4.png": "no UTF-8 text"}
    with contextlib.suppress(OSError):  # some file systems have no such names
        shutil.copy(folder / "0.png", folder / os.fsdecode(b"\xff.png"))
        odd["\\xff.png"] = "rename it"
    with pytest.raises(ValueError, match=f"{len(odd)} of {6 + len(odd) - 1} pictures in .* cannot be used"):
        distil(tiny("sd15"), name="run", data=images(vae, clip))
    counted = Counting(vae)
    with caplog.at_level(logging.INFO):
        distil(tiny("sd15"), name="run", data=images(counted, clip, broken="skip"))
    assert len(counted.seen) == 5
    said = [record.getMessage() for record in caplog.records]
    (skipped,) = [text for text in said if "skipped" in text]
    assert all(f"{name} (" in skipped and why in skipped for name, why in odd.items())
    skipped.encode()
    (found,) = [text for text in said if "with a caption file" in text]
    assert found.startswith(f"{5 + len(odd)} pictures in {folder}, 3 with a caption file.")
    assert said.index(found) < said.index(skipped)
    distil(tiny("sd15"), name="run", data=images(None, None, broken="skip"))
    assert len(counted.seen) == 5


def test_what_is_found_is_said_on_the_node_before_anything_is_encoded(output, folder):
    (folder / "notes.md").write_text("x")
    given = {"folder": "pictures", **FOLDER}
    said = folder_data.ImageFolder().describe(**given)["ui"]["text"]
    assert said == [f"5 pictures in {folder}, 2 with a caption file. Passed over: 1 .md files."]


def test_kohyas_repeats_are_drawn_as_often(output, folder, vae, clip):
    """Three of a kind three times and once: in a batch from the square bucket, 3 of 4 samples are of the repeated folder."""
    for name in ("1.png", "3.png", "3.txt", "4.png"):
        (folder / name).unlink()
    (folder / "3_a fox").mkdir()
    (folder / "2.png").rename(folder / "3_a fox" / "2.png")
    distil(tiny("sd15"), name="run", data=images(vae, clip, subfolders=REPEATED))
    data = read_data(run_folder(output, "run") / "data")
    assert data.repeats.tolist() == [1, 3]
    drawn = data.batch(4000, generator=torch.Generator().manual_seed(0))
    share = float((drawn.x0 == data.x0[1]).flatten(1).all(dim=1).float().mean())
    assert abs(share - 3 / 4) < 4 * (3 / 16 / 4000) ** 0.5
    with pytest.raises(ValueError, match="begun on other training data"):
        distil(tiny("sd15"), name="run", data=images(vae, clip, subfolders=READ))


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


CHANGES = {
    r"captions\.0\.png: there .a red fox., here .another": lambda folder: (folder / "0.txt").write_text("another fox"),
    r"pictures\.2\.png: there": lambda folder: picture(folder / "2.png", 80, 80, seed=9),
    r"captions\.4\.png: there .a picture., here null": lambda folder: (folder / "4.png").unlink(),
}


def test_a_begun_run_refuses_another_folder_and_one_that_has_not_takes_it(output, folder, vae, clip):
    distil(tiny("sd15"), name="begun", data=images(vae, clip))
    kept = shutil.copytree(folder, folder.with_name("kept"))
    for named, change in CHANGES.items():
        before = encoded(output, vae, clip, "stopped")[2].tensors()
        change(folder)
        with pytest.raises(ValueError, match=f"begun on other training data.*{named}"):
            distil(tiny("sd15"), name="begun", data=images(vae, clip))
        assert not same_tensors(encoded(output, vae, clip, "stopped")[2].tensors(), before)
        shutil.copytree(kept, folder, dirs_exist_ok=True)
    distil(tiny("sd15"), name="stopped", data=images(vae, clip))
    assert same_tensors(student_of(output, "stopped"), student_of(output, "begun"))


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
        denoise = host.training.as_denoiser(host.training.loaded(model))
        x, sigma = long.x0, torch.tensor([0.7])
        once = denoise(x, sigma, c_crossattn=square.unconditional["c_crossattn"])
        torch.testing.assert_close(denoise(x, sigma, c_crossattn=empty), once, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"folder": "missing"}, "which is no folder"),
        ({"folder": " "}, "is empty; give the path"),
        ({"folder": '""'}, "is empty; give the path"),
        ({"folder": "."}, "holds no pictures"),
        ({"resolution": 8}, "resolution is 8 and bucket_step is 16"),
        ({"bucket_step": 12}, "bucket_step is 12; allowed are multiples of 8"),
    ],
)
def test_a_folder_of_no_use_is_named_on_its_node(inputs, said, output, folder):
    with pytest.raises(ValueError, match=said):
        images(None, None, **inputs)
    if "folder" in inputs:
        assert said[:12] in folder_data.ImageFolder.VALIDATE_INPUTS(**inputs)
    assert folder_data.ImageFolder.VALIDATE_INPUTS("pictures") is True
    assert folder_data.ImageFolder.VALIDATE_INPUTS(None) is True, "a linked value is not known yet"


def test_quotes_around_a_copied_path_are_none_of_it(output, folder):
    for given in ('"pictures"', "'pictures'", f' "{folder}" '):
        assert folder_data.ImageFolder.VALIDATE_INPUTS(given) is True
    folder.rename(folder.parent / 'a "good" one')
    assert folder_data.ImageFolder.VALIDATE_INPUTS('a "good" one') is True


def test_captions_may_be_wanted_for_every_picture(output, folder, vae, clip):
    with pytest.raises(ValueError, match=r"3 of the files have no caption file beside them: 1\.png, 2\.png, 4\.png"):
        distil(tiny("sd15"), name="run", data=images(vae, clip, without_caption="stop"))


def test_a_changed_folder_makes_the_host_run_the_node_again(output, folder):
    fingerprint = folder_data.ImageFolder.IS_CHANGED
    before = fingerprint(folder="pictures", resolution=64)
    assert fingerprint(folder="pictures", resolution=64) == before
    (folder / "1.txt").write_text("new")
    assert fingerprint(folder="pictures", resolution=64) != before
