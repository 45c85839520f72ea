"""Edits of several pictures before them, how a model is told where they lie, and texts by each model's own node."""

import collections
import importlib
import sys
import types

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import ALL
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.data import folder_data, preview_prompts
from comfyui_fewstep.nodes.distillation.fast import choosing, make_it_fast
from comfyui_fewstep.trainers.data import pictures
from comfyui_fewstep.trainers.data.pictures import pixels
from comfyui_fewstep.trainers.storage.files import read_tensors
from current_architectures import kinds
from encoders import Counting, MeanVAE
from making_data import FOLDER, distil, picture, run_folder, same_tensors, student_of
from test_clips_from_prompts import make, quick  # noqa: F401 (a fixture)
from test_edits import CLIP, GIVEN, THEIRS, Channels, Draws, Flux, Pictures, QwenImage, Words, data_of, edited, of
from test_edits import edits as pairs  # noqa: F401 (a fixture)
from test_make_it_fast import timed_once  # noqa: F401 (a fixture)
from todays_inputs import CHANNELS


class Omnigen2(Flux):
    """Whose references lie where they do."""


class Looking:
    """A stand-in of the host's node, of a text for each number of pictures."""

    def __init__(self):
        self.seen = []

    def execute(self, clip, prompt, vae=None, **images):
        self.seen.append((prompt, images))
        means = torch.stack([image.mean() for image in images.values()])
        return types.SimpleNamespace(args=([[means[None, :, None].repeat(1, 1, 6), {}]],))


@pytest.fixture
def edits(pairs):  # noqa: F811
    """Of a there are four before it, by its name and by numbers; of b the one that there was. All differ."""
    for seed, (name, size) in enumerate({"a_10": (64, 64), "a_2": (128, 64), "a_1": (64, 64)}.items()):
        picture(pairs / "before" / f"{name}.png", *size, seed=seed + 40)
    return pairs


def reference(edits, file, size):
    return 0.5 * MeanVAE().encode(pixels(edits / "before" / file, size)[None])


def square_and_other(output, name="run"):
    """By how many references they have."""
    one, many = sorted(
        data_of(output, name).buckets, key=lambda bucket: sum("ref_latents[" in k for k in bucket.condition)
    )
    return many, one


def test_each_is_told_all_that_are_called_by_its_name_in_their_order(output, edits):
    distil(of(Flux), name="run", data=edited(MeanVAE()))
    many, one = square_and_other(output)
    assert [key for key in one.condition if "ref" in key] == ["ref_latents[0]"]
    sides = many.condition["ref_latents[2]"].shape[-1] * 8, many.condition["ref_latents[2]"].shape[-2] * 8
    assert sides[0] > sides[1], "each of its own shape"
    wanted = [("a.webp", (64, 64)), ("a_1.png", (64, 64)), ("a_2.png", sides), ("a_10.png", (64, 64))]
    for told in (many.condition, many.unconditional):
        assert sum("ref_latents[" in key for key in told) == 4
        for number, (file, size) in enumerate(wanted):
            torch.testing.assert_close(told[f"ref_latents[{number}]"], reference(edits, file, size))


def test_what_is_called_like_another_picture_is_before_that_one(output, edits):
    """A folder of fox and fox_1, both edited, has a pair of each."""
    picture(edits / "after" / "a_1.png", 64, 64, seed=60)
    (edits / "after" / "a_1.txt").write_text("and green")
    for file in ("a_2.png", "a_10.png"):
        (edits / "before" / file).unlink()
    distil(of(Flux), name="run", data=edited(MeanVAE()))
    told = torch.cat(
        [
            bucket.condition["ref_latents[0]"]
            for bucket in data_of(output).buckets
            if bucket.x0.shape[-1] == 8 and bucket.condition["ref_latents[0]"].shape[-2] == 8
        ]
    )
    wanted = {file: reference(edits, file, (64, 64)) for file in ("a.webp", "a_1.png")}
    assert all(any(torch.allclose(row, each[0], atol=1e-6) for row in told) for each in wanted.values())
    assert not any("ref_latents[1]" in bucket.condition for bucket in data_of(output).buckets)


def test_with_numbers_alone_none_has_to_have_the_name_itself(output, edits):
    (edits / "before" / "a.webp").unlink()
    distil(of(Flux), name="run", data=edited(MeanVAE()))
    many, _ = square_and_other(output)
    assert sum("ref_latents[" in key for key in many.condition) == 3
    torch.testing.assert_close(many.condition["ref_latents[0]"], reference(edits, "a_1.png", (64, 64)))


def test_the_text_encoder_looks_at_all_of_them(output, edits, monkeypatch):
    (edits / "before" / "a_10.png").unlink()
    node = Looking()
    monkeypatch.setitem(sys.modules, "comfy_extras.nodes_qwen", types.SimpleNamespace(TextEncodeQwenImageEditPlus=node))
    (previews,) = preview_prompts.PreviewPrompts().describe(CLIP, "make it red")
    vae = Draws()
    distil(of(QwenImage), name="run", data=edited(MeanVAE(), negative="ugly"), vae=vae, previews=previews)
    looked = {text: images for text, images in node.seen if len(images) == 3}
    assert looked.keys() >= {"make it blue", "ugly"}
    for images in (looked["make it blue"], looked["ugly"]):
        assert list(images) == ["image1", "image2", "image3"]
        assert torch.equal(images["image1"][0], pixels(edits / "before" / "a.webp", (64, 64)))
        assert torch.equal(images["image2"][0], pixels(edits / "before" / "a_1.png", (64, 64)))
    ((_, shown),) = [seen for seen in node.seen if seen[0] == "make it red"]
    first = data_of(output).first(1).condition
    references = [first[f"ref_latents[{i}]"] for i in range(sum("ref_latents[" in key for key in first))]
    assert len(shown) == len(references)
    for image, latents in zip(shown.values(), references, strict=True):
        assert torch.equal(image, vae.decode(2.0 * latents))


def test_each_is_decoded_twice_and_no_more(output, edits, monkeypatch):
    """To see whether all of them can be, and to encode it, which the text encoder shares. They may be thousands."""
    (edits / "before" / "a_10.png").unlink()
    monkeypatch.setitem(
        sys.modules, "comfy_extras.nodes_qwen", types.SimpleNamespace(TextEncodeQwenImageEditPlus=Looking())
    )
    decoded, upright = collections.Counter(), pictures._upright

    def counted(path, **given):
        decoded[path.name] += 1
        return upright(path, **given)

    monkeypatch.setattr(pictures, "_upright", counted)
    distil(of(QwenImage), name="run", data=edited(MeanVAE()))
    assert {name: decoded[name] for name in ("a.webp", "a_1.png", "a_2.png", "b.webp")} == dict.fromkeys(
        ("a.webp", "a_1.png", "a_2.png", "b.webp"), 2
    )


def test_more_than_a_text_is_encoded_with_are_named_before_anything_is(output, edits):
    said = r"references holds 4 pictures for a.png; this model's texts are encoded with 3 at most \(TextEncodeQwenImageEditPlus\)"
    vae = Counting(MeanVAE())
    with pytest.raises(ValueError, match=said):
        distil(of(QwenImage), name="run", data=edited(vae))
    assert vae.seen == []
    with pytest.raises(ValueError, match=said):
        choosing.Wishes(model=of(QwenImage), steps=2, goal=choosing.CLOSEST, **GIVEN)


def test_another_one_makes_other_data_and_two_of_one_number_are_refused(output, edits):
    distil(of(Flux), name="run", data=edited(MeanVAE()))
    picture(edits / "before" / "a_2.png", 128, 64, seed=5)
    with pytest.raises(ValueError, match=r"begun on other training data.*references.a.png"):
        distil(of(Flux), name="run", data=edited(MeanVAE()))
    picture(edits / "before" / "a_02.webp", 64, 64)
    with pytest.raises(
        ValueError, match=r"a_0?2.(webp|png) and a_0?2.(webp|png), each by its name the picture before a.png"
    ):
        edited(MeanVAE())


def test_one_that_cannot_be_read_is_broken_by_its_own_name(output, edits):
    (edits / "before" / "a_2.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"1 of 2 pictures in .*: a.png \(its reference a_2.png"):
        distil(of(Flux), name="run", data=edited(MeanVAE()))


def test_the_node_and_the_plan_say_how_many(output, edits):
    given = {**FOLDER, "folder": "after", "references": "before", "vae": MeanVAE(), "clip": CLIP}
    (said,) = folder_data.ImageFolder().describe(**given)["ui"]["text"]
    assert said.endswith(f"2 with a reference in {edits / 'before'}, up to 4 each.")
    wished = choosing.Wishes(model=of(Flux), steps=2, goal=choosing.CLOSEST, **GIVEN)
    assert any(f"each made of up to 4 pictures of its name in {edits / 'before'}" in line for line in wished.told())
    condition = wished._sample().condition
    assert [key for key in condition if "ref" in key] == [f"ref_latents[{i}]" for i in range(4)], "what costs most"
    assert condition["ref_latents[3]"].shape == (1, CHANNELS, 8, 8)


# --- where they lie --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "told"), [("usual", None), ("offset", "offset"), ("uxo/uno", "uxo"), ("index_timestep_zero",) * 2]
)
def test_a_method_is_told_with_every_prompt_by_the_hosts_name(chosen, told, output, edits):
    (previews,) = preview_prompts.PreviewPrompts().describe(CLIP, "make it red")
    distil(of(Flux), name="run", data=edited(Draws(), reference_method=chosen), vae=Draws(), previews=previews)
    kept = read_tensors(run_folder(output, "run") / "previews.safetensors")[0]
    wanted = set() if told is None else {f'ref_latents_method="{told}"'}
    for bucket in data_of(output).buckets:
        for condition in (bucket.condition, bucket.unconditional):
            assert {key for key in condition if "method" in key} == wanted
    assert {key for key in kept if "method" in key} == {f"00.{key}" for key in wanted}


def test_another_method_makes_other_data(output, edits):
    distil(of(Flux), name="run", data=edited(MeanVAE()))
    distil(of(Flux), name="run", data=edited(MeanVAE(), reference_method="usual"))
    with pytest.raises(ValueError, match=r"begun on other training data.*reference_method"):
        distil(of(Flux), name="run", data=edited(MeanVAE(), reference_method="index"))


@pytest.mark.parametrize(
    ("kind", "method", "said"),
    [
        (
            Flux,
            "upside down",
            "reference_method is 'upside down'; allowed are usual, offset, index, uxo/uno, index_timestep_zero",
        ),
        (QwenImage, "uxo/uno", r"of this model \(QwenImage\) allowed are usual, offset, index, index_timestep_zero\."),
        (Omnigen2, "index", r"reference_method is 'index'; of this model \(Omnigen2\) allowed are usual\."),
    ],
)
def test_a_method_that_a_model_does_not_know_is_named_before_anything_is_encoded(kind, method, said, output, edits):
    (edits / "before" / "a_10.png").unlink()
    vae = Counting(MeanVAE())
    with pytest.raises(ValueError, match=said):
        distil(of(kind), name="run", data=edited(vae, reference_method=method))
    assert vae.seen == []
    with pytest.raises(ValueError, match=said):
        choosing.Wishes(model=of(kind), steps=2, goal=choosing.CLOSEST, **GIVEN, reference_method=method)


def test_a_method_without_references_is_refused(output, edits):
    said = "reference_method is 'index', but references is empty; give the folder, or set reference_method to usual"
    with pytest.raises(ValueError, match=said):
        edited(MeanVAE(), references=" ", reference_method="index")
    for given in ({**GIVEN, "references": ""}, {**GIVEN, "references": "", "folder": "", "prompts": "a fox"}):
        with pytest.raises(ValueError, match=said):
            choosing.Wishes(model=of(Flux), steps=2, goal=choosing.CLOSEST, **given, reference_method="index")


def test_make_it_fast_trains_on_the_same_as_the_node(output, edits, quick):  # noqa: F811
    told = make(of(Flux), make_it_fast.PLAN, **GIVEN, reference_method="index")["ui"]["text"][0]
    assert f"of its name in {edits / 'before'}, told by index" in told
    make(of(Flux), make_it_fast.TRAIN, **GIVEN, reference_method="index")
    given = {"resolution": 64, "bucket_step": 64, "without_caption": "use caption", "reference_method": "index"}
    distil(of(Flux), name="by node", data=edited(Draws(), **given))
    ours, theirs = data_of(output).tensors(), data_of(output, "by node").tensors()
    assert any("ref_latents[3]" in name for name in ours)
    assert same_tensors(ours, theirs)


# --- in a host that has such models ----------------------------------------------------------------------------------


NODES = {
    "qwen_image_edit": ("nodes_qwen", "TextEncodeQwenImageEditPlus", Pictures()),
    "longcat_image": ("nodes_qwen", "TextEncodeQwenImageEdit", Channels(16, 8)),
    "joy_image": ("nodes_joyimage", "TextEncodeJoyImageEdit", Pictures()),
    "boogu": ("nodes_boogu", "TextEncodeBooguEdit", Channels(16, 8)),
    "mage_flow": ("nodes_mage", "TextEncodeMageFlowEdit", Channels(128, 16)),
}


def by_their_node(kind, clip, text, negative, looked):
    """(positive, negative) as the graph of the host's own template has them, without what the VAE encodes."""
    module, name, _ = NODES[kind]
    node = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    if kind in ("boogu", "mage_flow"):
        images = {f"image_{i}": each for i, each in enumerate(looked, 1)}
        positive, led_away, *_ = node.execute(clip, text, negative, images=images).args
        return positive, led_away
    images = {
        "qwen_image_edit": {f"image{i}": each for i, each in enumerate(looked, 1)},
        "longcat_image": {"image": looked[0]},
        "joy_image": {"images": {f"image{i}": each for i, each in enumerate(looked)}},
    }[kind]
    return tuple(node.execute(clip, words, **images)[0] for words in (text, negative))


@pytest.mark.parametrize("negative", ["", "ugly"])
@pytest.mark.parametrize("kind", kinds(*NODES))
def test_texts_are_told_as_the_models_own_node_tells_them(kind, negative, output, edits):
    one, vae = ALL[kind], NODES[kind][2]
    files = ["a.webp"] if kind == "longcat_image" else ["a.webp", "a_1.png", "a_2.png"]
    for file in (edits / "before").glob("a_*.png"):
        if file.name not in files:
            file.unlink()
    model, clip = one.model(), Words(one.width, one.pooled or 24, padded=False)
    distil(model, name="run", data=edited(vae, clip, negative=negative))
    wide = "ref_latents[2]" if len(files) > 1 else "ref_latents[0]"
    bucket = max(data_of(output).buckets, key=lambda each: each.condition.get(wide, torch.empty(0)).shape[-1])
    sides = tuple(8 * side for side in reversed(bucket.condition[wide].shape[-2:]))
    if kind == "mage_flow":  # 16 pixels to one of its latents; of the edited picture's size
        sides = (64, 64)
        assert bucket.condition[wide].shape == bucket.x0.shape
    looked = [pixels(edits / "before" / file, sides if file == "a_2.png" else (64, 64))[None] for file in files]
    usual = {"reference_latents_method": "index"} if kind == "longcat_image" else {}
    told = {"reference_latents": [vae.encode(each) for each in looked], **usual}
    for prompt, mine in zip(
        by_their_node(kind, clip, "make it blue", negative, looked),
        (bucket.condition, bucket.unconditional),
        strict=True,
    ):
        prompt[0][1].update(told)
        wanted = host.inputs.condition_for_training(model, prompt, latents=bucket.x0, name="positive")
        assert mine.keys() == wanted.keys()
        assert all(torch.equal(mine[key], value) for key, value in wanted.items())


@pytest.mark.parametrize("kind", kinds(*NODES, "flux_kontext", "omnigen2", "flux2_edit"))
def test_the_hosts_own_models_learn_from_one_and_from_several_in_one_run(kind, output, edits):
    one, vae = ALL[kind], {**THEIRS, **{name: vae for name, (_, _, vae) in NODES.items()}}[kind]
    (edits / "before" / "a_10.png").unlink()
    if kind == "longcat_image":
        for file in (edits / "before").glob("a_*.png"):
            file.unlink()
    clip = Words(one.width, one.pooled or 8, padded="flux" in kind or kind == "longcat_image")
    students = []
    for colour in (1, 2):
        picture(edits / "before" / ("a.webp" if kind == "longcat_image" else "a_1.png"), 64, 64, seed=80 + colour)
        distil(one.model(), name=f"run {colour}", data=edited(vae, clip))
        students.append(student_of(output, f"run {colour}"))
    assert any(not torch.equal(students[0][key], students[1][key]) for key in students[0]), "each counts"
