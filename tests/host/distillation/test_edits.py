"""Training Images (Folder) with references: pictures after an edit, each beside the one before it."""

import importlib
import sys
import types

import current_architectures
import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import ALL
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.data import folder_data, preview_prompts
from comfyui_fewstep.nodes.distillation.fast import choosing, make_it_fast
from comfyui_fewstep.trainers.data.cache import read_data
from comfyui_fewstep.trainers.data.listing import captioned
from comfyui_fewstep.trainers.data.pictures import pixels
from comfyui_fewstep.trainers.storage.files import read_tensors
from encoders import Counting, MeanVAE, RandomCLIP
from making_data import FOLDER, Cancelled, distil, images, picture, run_folder, same_tensors, student_of
from test_clips_from_prompts import make, quick  # noqa: F401 (a fixture)
from test_make_it_fast import timed_once  # noqa: F401 (a fixture)
from todays_inputs import CHANNELS, WIDTH, Model, stand_in

CLIP = RandomCLIP(WIDTH, 24)


class Flux(Model):
    """A stand-in of the host's contract, by the name of its class: told the latents of what it is to change."""


class QwenImage(Model):
    """Whose text encoder looks at that, too."""


class Looking:
    """A stand-in of the host's node: what it was asked for, and a text of one token more than there are words, of its picture."""

    def __init__(self):
        self.seen = []

    def execute(self, clip, prompt, vae=None, image1=None):
        assert vae is None, "the reference is told apart, by the size that is trained at"
        self.seen.append((prompt, image1))
        colour = image1.mean(dim=(1, 2)).repeat(1, 2)[:, None]
        return types.SimpleNamespace(args=([[colour.repeat(1, 1 + len(prompt.split()), 1), {}]],))


@pytest.fixture
def edits(tmp_path):
    """Two edited pictures; of the second the one before it is upright."""
    before, after = tmp_path / "input" / "before", tmp_path / "input" / "after"
    for made in (before, after):
        made.mkdir(parents=True)
    for seed, (name, size) in enumerate({"a": (64, 64), "b": (64, 128)}.items()):
        picture(before / f"{name}.webp", *size, seed=seed)
        picture(after / f"{name}.png", 64, 64, seed=seed + 10)
    (after / "a.txt").write_text("make it blue")
    (after / "b.txt").write_text("take the hat off")
    return tmp_path / "input"


def of(kind):
    model = stand_in()
    model.model.__class__ = kind
    return model


def edited(vae, clip=CLIP, **changed):
    given = {"folder": "after", "references": "before", "without_caption": "stop", "caption": "", "flip": False}
    return images(vae, clip, **{**given, **changed})


def data_of(output, name="run"):
    return read_data(run_folder(output, name) / "data")


def before(edits, name, size):
    """A reference as it is told: in the model's own scale, by hand."""
    return 0.5 * MeanVAE().encode(pixels(edits / "before" / f"{name}.webp", size)[None])


@pytest.mark.parametrize("kind", [Flux, QwenImage])
def test_each_picture_is_trained_on_with_the_one_before_it(kind, output, edits, monkeypatch):
    """With the prompt and with the negative one, both mirrored too; of its own shape, at the size that is trained at."""
    monkeypatch.setitem(
        sys.modules, "comfy_extras.nodes_qwen", types.SimpleNamespace(TextEncodeQwenImageEditPlus=Looking())
    )
    distil(of(kind), name="run", data=edited(MeanVAE(), flip=True))
    square, upright = sorted(data_of(output).buckets, key=lambda bucket: bucket.condition["ref_latents[0]"].shape[-2])
    for bucket, name, size in ((square, "a", (64, 64)), (upright, "b", (64, 64))):
        after = 0.5 * MeanVAE().encode(pixels(edits / "after" / f"{name}.png", size)[None])
        torch.testing.assert_close(bucket.x0, torch.cat([after, after.flip(-1)]))
    for told in (square.condition, square.unconditional):
        reference = before(edits, "a", (64, 64))
        torch.testing.assert_close(told["ref_latents[0]"], torch.cat([reference, reference.flip(-1)]))
    width, height = (8 * side for side in reversed(upright.condition["ref_latents[0]"].shape[-2:]))
    assert height > width
    torch.testing.assert_close(upright.condition["ref_latents[0]"][:1], before(edits, "b", (width, height)))
    assert "student.safetensors" in {file.name for file in run_folder(output, "run").iterdir()}


def test_the_text_encoder_of_qwen_looks_at_it_too(output, edits, monkeypatch):
    """With the prompt and with the negative one, by the host's own node; a later start needs neither."""
    node = Looking()
    monkeypatch.setitem(sys.modules, "comfy_extras.nodes_qwen", types.SimpleNamespace(TextEncodeQwenImageEditPlus=node))
    distil(of(QwenImage), name="run", data=edited(MeanVAE(), negative="ugly"))
    assert {text for text, _ in node.seen} == {"make it blue", "take the hat off", "ugly"}
    seen = [looked for text, looked in node.seen if text in ("make it blue", "ugly")]
    assert any(torch.equal(looked[0], pixels(edits / "before" / "a.webp", (64, 64))) for looked in seen)
    asked, finished = len(node.seen), student_of(output, "run")
    *_, lora = distil(of(QwenImage), name="run", data=edited(None, None, negative="ugly"))
    assert all(torch.equal(lora[key], finished[key]) for key in finished)
    assert len(node.seen) == asked


def test_a_host_without_that_node_is_named(output, edits, monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy_extras.nodes_qwen", types.SimpleNamespace())
    with pytest.raises(ValueError, match="this ComfyUI has no TextEncodeQwenImageEditPlus, by which"):
        distil(of(QwenImage), name="run", data=edited(MeanVAE()))


def test_previews_of_prompts_edit_the_first_picture(output, edits):
    (previews,) = preview_prompts.PreviewPrompts().describe(CLIP, "make it red")
    distil(of(Flux), name="run", data=edited(MeanVAE()), vae=Draws(), previews=previews)
    kept = read_tensors(run_folder(output, "run") / "previews.safetensors")[0]
    assert torch.equal(kept["00.ref_latents[0]"], data_of(output).first(1).condition["ref_latents[0]"])


def test_previews_of_prompts_look_at_the_first_picture_where_the_text_encoder_does(output, edits, monkeypatch):
    """As the training did with its own prompts: a student is judged by what it was taught. The VAE gives the picture back."""
    node = Looking()
    monkeypatch.setitem(sys.modules, "comfy_extras.nodes_qwen", types.SimpleNamespace(TextEncodeQwenImageEditPlus=node))
    (previews,) = preview_prompts.PreviewPrompts().describe(CLIP, "make it red\nand blue")
    vae = Draws()
    distil(of(QwenImage), name="run", data=edited(MeanVAE()), vae=vae, previews=previews)
    kept = read_tensors(run_folder(output, "run") / "previews.safetensors")[0]
    reference = data_of(output).first(1).condition["ref_latents[0]"]
    assert torch.equal(kept["00.ref_latents[0]"], reference)
    seen = {text: looked for text, looked in node.seen if text in ("make it red", "and blue")}
    assert len(seen) == 2
    assert all(torch.equal(looked, vae.decode(2.0 * reference)) for looked in seen.values())
    assert [kept[f"{i:02d}.c_crossattn"].shape[1] for i in range(2)] == [4, 3], "as the host's node made them"


class Draws(MeanVAE):
    def decode(self, latents):
        return latents[:, :3].movedim(1, -1).clamp(0.0, 1.0)


# --- what cannot be --------------------------------------------------------------------------------------------------


def test_what_has_no_picture_before_it_is_broken_by_name(output, edits):
    (edits / "before" / "a.webp").unlink()
    (edits / "before" / "b.webp").write_text("no picture")
    with pytest.raises(
        ValueError, match=r"a.png \(there is no picture of its name in .*before\); b.png \(its reference b.webp"
    ):
        distil(of(Flux), name="run", data=edited(MeanVAE()))
    picture(edits / "before" / "b.webp", 64, 64)
    distil(of(Flux), name="run", data=edited(MeanVAE(), broken="skip"))
    assert len(data_of(output).x0) == 1


def test_references_are_read_one_by_one_and_a_cancel_is_heard(output, edits, monkeypatch):
    """Thousands of them: to time how long one takes reads one, and not all in one go."""
    source = edited(MeanVAE())
    first, second = captioned(source.listing().files, caption="")
    source.look_at(first)
    assert list(source._hashed) == ["a"]

    def cancel(done, total):
        raise Cancelled

    monkeypatch.setattr(host.signals, "progressed", cancel)
    with pytest.raises(Cancelled):
        source._source([first, second])
    assert list(source._hashed) == ["a"]


def test_another_picture_before_it_makes_other_data(output, edits):
    distil(of(Flux), name="run", data=edited(MeanVAE()))
    picture(edits / "before" / "a.webp", 64, 64, seed=5)
    with pytest.raises(ValueError, match=r"begun on other training data.*references.a.png"):
        distil(of(Flux), name="run", data=edited(MeanVAE()))
    with pytest.raises(ValueError, match=r"begun on other training data.*kind: there \"?edits\"?, here \"?folder"):
        distil(of(Flux), name="run", data=edited(MeanVAE(), references=""))


def test_models_that_are_not_known_to_edit_are_refused_before_any_is_encoded(output, edits):
    vae = Counting(MeanVAE())
    with pytest.raises(ValueError, match=r"references is given, but of this model \(Model\) it is not known"):
        distil(stand_in(), name="run", data=edited(vae))
    assert vae.seen == []


@pytest.mark.parametrize(
    ("references", "said"),
    [
        ("elsewhere", "the folder of training references is .*elsewhere', which is no folder"),
        ("empty", "holds no references; looked for are .png"),
        ("../before", "a relative path lies in ComfyUI's input folder"),
        (
            "others",
            r"none of its 1 pictures has the name of one in .*after: the picture before a.png is called a, with any",
        ),
        (
            "twice",
            r"references is .*twice', which holds a.jpg and a.webp, each by its name the picture before a.png; leave",
        ),
    ],
)
def test_folders_of_no_use_are_named_before_anything_runs(references, said, output, edits):
    for made in ("empty", "others", "twice"):
        (edits / made).mkdir()
    for made in ("others/c.png", "twice/a.webp", "twice/a.jpg", "twice/c.jpg", "twice/c.png"):
        picture(edits / made, 64, 64)
    found = folder_data.ImageFolder.VALIDATE_INPUTS(folder="after", references=references)
    assert isinstance(found, str)
    with pytest.raises(ValueError, match=said):
        raise ValueError(found)
    assert folder_data.ImageFolder.VALIDATE_INPUTS(folder="after", references="before") is True
    assert make_it_fast.MakeItFast.VALIDATE_INPUTS(run_name="run", folder="after", references=references) == found
    assert make_it_fast.MakeItFast.VALIDATE_INPUTS(run_name="run", folder="after", references="before") is True


def test_the_node_says_how_many_pictures_have_a_reference(output, edits):
    (edits / "before" / "a.webp").unlink()
    given = {**FOLDER, "folder": "after", "references": "before", "vae": MeanVAE(), "clip": CLIP}
    (said,) = folder_data.ImageFolder().describe(**given)["ui"]["text"]
    assert said.endswith(f"2 with a caption file. 1 with a reference in {edits / 'before'}.")


def test_what_the_references_hold_may_change_while_their_name_stays(output, edits):
    given = {"folder": "after", "references": "before"}
    asked = folder_data.ImageFolder.IS_CHANGED(**given)
    assert asked == folder_data.ImageFolder.IS_CHANGED(**given) != folder_data.ImageFolder.IS_CHANGED(folder="after")
    picture(edits / "before" / "c.webp", 64, 64)
    assert asked != folder_data.ImageFolder.IS_CHANGED(**given)


# --- Make It Fast ----------------------------------------------------------------------------------------------------

GIVEN = {"folder": "after", "references": "before", "clip": CLIP, "side": 64, "vae": Draws()}


@pytest.mark.parametrize("kind", [Flux, QwenImage])
def test_make_it_fast_trains_on_the_same_as_the_node(kind, output, edits, quick, monkeypatch):  # noqa: F811
    monkeypatch.setitem(
        sys.modules, "comfy_extras.nodes_qwen", types.SimpleNamespace(TextEncodeQwenImageEditPlus=Looking())
    )
    told = make(of(kind), make_it_fast.PLAN, **GIVEN)["ui"]["text"][0]
    assert f"each made of the picture of its name in {edits / 'before'}" in told
    make(of(kind), make_it_fast.TRAIN, **GIVEN)
    distil(of(kind), name="by node", data=edited(Draws(), resolution=64, bucket_step=64, without_caption="use caption"))
    ours, theirs = data_of(output).tensors(), data_of(output, "by node").tensors()
    assert any("ref_latents[0]" in name for name in ours)
    assert same_tensors(ours, theirs)


def test_the_plan_counts_the_reference(output, edits):
    """What costs memory and time: as many values more as the picture has."""
    wished = choosing.Wishes(model=of(Flux), steps=2, goal=choosing.CLOSEST, **GIVEN)
    sample = wished._sample()
    assert sample.condition["ref_latents[0]"].shape == sample.x0.shape == (1, CHANNELS, 8, 8)


def test_the_plan_says_what_counts_where_the_student_draws_its_own(output, edits):
    wished = choosing.Wishes(model=of(Flux), steps=2, goal=choosing.SHARPEST, **GIVEN)
    assert any("of them only captions, sizes and references count for this goal" in said for said in wished.told())


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (
            Flux,
            {"folder": "", "prompts": "a fox"},
            "folder or references is 'before' and prompts are given too; give one of the two",
        ),
        (Model, {}, "references is given, but of this model"),
    ],
    ids=["prompts too", "no model that edits"],
)
def test_make_it_fast_names_it_before_anything_is_tried(kind, given, said, output, edits):
    with pytest.raises(ValueError, match=said):
        choosing.Wishes(model=of(kind), steps=2, goal=choosing.CLOSEST, **{**GIVEN, **given})


@pytest.mark.parametrize("lacking", ["gone", "no picture"])
@pytest.mark.parametrize("do", [make_it_fast.PLAN, make_it_fast.TRAIN])
def test_make_it_fast_names_what_has_no_reference_before_anything_is_tried(do, lacking, output, edits, monkeypatch):
    monkeypatch.setattr(choosing.planning, "fitted", None)
    reference, said = edits / "before" / "a.webp", "there is no picture of its name in"
    reference.unlink()
    if lacking == "no picture":
        reference.write_text("no picture")
        said = "its reference a.webp: "
    with pytest.raises(ValueError, match=rf"1 of 2 pictures in .*after cannot be used: a.png \({said}"):
        make(of(Flux), do, **GIVEN)


# --- in a host that has such models ----------------------------------------------------------------------------------

QWEN = ALL["qwen_image_edit"]


class Words(RandomCLIP):
    """Of Qwen's contract: texts in a template, and pictures."""

    def tokenize(self, text, images=(), llama_template="{}", **_):
        return llama_template.format(text) + "".join(str(tuple(each.shape)) + f"{each.mean():.6f}" for each in images)

    def encode_from_tokens_scheduled(self, tokens):
        embedding, _ = super().encode_from_tokens(tokens, return_pooled=True)
        return [[embedding, {"attention_mask": torch.ones(1, embedding.shape[1], dtype=torch.long)}]]


class Pictures(MeanVAE):
    """As Qwen-Image's: of one frame."""

    def encode(self, pictures):
        return super().encode(pictures).repeat(1, 4, 1, 1)[:, :, None]


@pytest.mark.skipif(not QWEN.known(), reason="this host has no Qwen-Image")
def test_qwen_image_edit_is_told_as_its_own_node_tells_it(output, edits):
    node = importlib.import_module("comfy_extras.nodes_qwen").TextEncodeQwenImageEditPlus
    model, clip = QWEN.model(), Words(QWEN.width, 24, padded=False)
    distil(model, name="run", data=edited(Pictures(), clip))
    bucket = max(data_of(output).buckets, key=lambda one: one.condition["ref_latents[0]"].shape[-1])
    looked = pixels(edits / "before" / "a.webp", (64, 64))[None]
    for text, mine in (("make it blue", bucket.condition), ("", bucket.unconditional)):
        given = node.execute(clip, text, image1=looked)[0]
        given[0][1]["reference_latents"] = [Pictures().encode(looked)]
        wanted = host.inputs.condition_for_training(model, given, latents=bucket.x0, name="positive")
        assert mine.keys() == wanted.keys()
        assert all(torch.equal(mine[key], value) for key, value in wanted.items())


class Channels(MeanVAE):
    """So many channels, so many pixels to one of them."""

    def __init__(self, channels, side):
        self.channels, self.side = channels, side

    def encode(self, pictures):
        colours = torch.nn.functional.avg_pool2d(super().encode(pictures), self.side // 8)
        return colours.repeat(1, self.channels // 4, 1, 1)


THEIRS = {
    "flux_kontext": Channels(16, 8),
    "omnigen2": Channels(16, 8),
    "flux2_edit": Channels(128, 16),
    "qwen_image_edit": Pictures(),
}


@pytest.mark.parametrize("kind", current_architectures.kinds(*THEIRS))
def test_the_hosts_own_models_learn_edits(kind, output, edits):
    """References of two shapes in one run; without theirs the same student would be learnt another way."""
    one, students = ALL[kind], []
    for references in ("before", "other"):
        if references == "other":
            (edits / "other").mkdir()
            for seed, name in enumerate(("a", "b")):
                picture(edits / "other" / f"{name}.png", 64, 64 + 64 * seed, seed=seed + 20)
        clip = Words(one.width, one.pooled or 8, padded="flux" in kind)
        distil(one.model(), name=references, data=edited(THEIRS[kind], clip, references=references))
        students.append(student_of(output, references))
    assert any(not torch.equal(students[0][key], students[1][key]) for key in students[0])
