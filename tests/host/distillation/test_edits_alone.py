"""Pictures before edits that nobody has drawn: some methods learn from them alone; for others the teacher draws the edits."""

import hashlib
import itertools
import sys
import types

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import ALL
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.data import folder_data
from comfyui_fewstep.nodes.distillation.fast import choosing, make_it_fast
from comfyui_fewstep.nodes.distillation.learning import matching_method
from comfyui_fewstep.samplers.schedules import trailing_sigmas
from comfyui_fewstep.trainers.data.batches import TensorData
from current_architectures import kinds
from encoders import MeanVAE, RandomCLIP
from making_data import FOLDER, Cancelled, distil, picture, same_tensors, student_of
from test_clips_from_prompts import make, quick  # noqa: F401 (a fixture)
from test_edits import CLIP, GIVEN, Channels, Draws, Flux, QwenImage, Words, before, data_of, edited, of
from test_edits import edits as pairs  # noqa: F401 (a fixture)
from test_make_it_fast import timed_once  # noqa: F401 (a fixture)
from test_several_references import NODES, Looking
from test_teacher_pictures import scaled

ALONE = {**GIVEN, "folder": "", "goal": choosing.SHARPEST}


@pytest.fixture
def edits(pairs):  # noqa: F811
    """What is asked for stands beside the pictures before the edit; there are no others."""
    for file in (pairs / "after").iterdir():
        if file.suffix == ".txt":
            file.rename(pairs / "before" / file.name)
        else:
            file.unlink()
    (pairs / "after").rmdir()
    return pairs


def alone(vae, **changed):
    return edited(vae, folder="before", **changed)


def matching():
    given = {"steps": 2, "iterations": 2, "learning_rate": 1e-3, "guidance_scale": 1.5}
    declared = matching_method.DistributionMatching.INPUT_TYPES()
    usual = {
        name: kind[1].get("default", kind[0][0] if isinstance(kind[0], list) else None)
        for name, kind in (declared["required"] | declared.get("optional", {})).items()
    }
    return matching_method.DistributionMatching().make(**{**usual, **given})[0]


def test_each_is_told_its_own_picture_and_what_is_asked_for(output, edits):
    distil(of(Flux), name="run", method=matching(), data=alone(MeanVAE()))
    square, _ = sorted(data_of(output).buckets, key=lambda bucket: bucket.condition["ref_latents[0]"].shape[-2])
    for told in (square.condition, square.unconditional):
        torch.testing.assert_close(told["ref_latents[0]"], before(edits, "a", (64, 64)))
    assert "student.safetensors" in {file.name for file in (output / "fewstep" / "runs" / "run").iterdir()}


def test_what_is_learnt_hangs_on_the_pictures(output, edits):
    students = []
    for seed in (0, 50):
        picture(edits / "before" / "a.webp", 64, 64, seed=seed)
        distil(of(Flux), name=f"run {seed}", method=matching(), data=alone(MeanVAE()))
        students.append(student_of(output, f"run {seed}"))
    assert any(not torch.equal(students[0][key], students[1][key]) for key in students[0])


def test_methods_that_want_pictures_after_the_edit_are_refused(output, edits):
    said = (
        r"references is the folder itself, of pictures before an edit that nobody has drawn, but progressive distillation "
        r"learns from pictures; connect Training Prompts"
    )
    with pytest.raises(ValueError, match=said):
        distil(of(Flux), name="run", data=alone(MeanVAE()))


def test_the_node_says_so(output, edits):
    given = {**FOLDER, "folder": "before", "references": "before", "vae": MeanVAE(), "clip": CLIP}
    (said,) = folder_data.ImageFolder().describe(**given)["ui"]["text"]
    assert said.endswith("2 with a caption file. Each is the picture before an edit that nobody has drawn.")
    assert folder_data.ImageFolder.VALIDATE_INPUTS(folder="before", references="before") is True


def test_make_it_fast_takes_them_for_the_goal_that_wants_no_others(output, edits, quick):  # noqa: F811
    told = make(of(Flux), make_it_fast.PLAN, **ALONE)["ui"]["text"][0]
    assert (
        f"2 pictures of {edits / 'before'}, at about 64 x 64, each the picture before an edit that nobody has" in told
    )
    make(of(Flux), make_it_fast.TRAIN, **ALONE)
    wished = choosing.Wishes(model=of(Flux), steps=2, **ALONE)
    sizes = {"resolution": 64, "bucket_step": 64, "without_caption": "use caption"}
    distil(of(Flux), name="by node", method=matching(), data=alone(Draws(), **sizes))
    assert same_tensors(data_of(output).tensors(), data_of(output, "by node").tensors())
    assert wished._sample().condition["ref_latents[0]"].shape == wished._sample().x0.shape


def test_a_folder_of_no_use_is_named_before_a_model_is_loaded(output, edits):
    asked = make_it_fast.MakeItFast.VALIDATE_INPUTS
    assert asked(run_name="run", folder="", references="before") is True
    assert "elsewhere', which is no folder" in asked(run_name="run", folder="", references="elsewhere")
    for file in (edits / "before").glob("*.txt"):
        file.unlink()
    with pytest.raises(ValueError, match="references is 'before', of whose 2 pictures none has a caption beside it"):
        choosing.Wishes(model=of(Flux), steps=2, **ALONE)


# --- that the teacher draws ------------------------------------------------------------------------------------------


def drawn(vae, clip=CLIP, **changed):
    given = {"folder": "before", "draw_steps": 3, "draw_cfg": 2.0, **changed}
    return edited(vae, clip, **given)


def solved(model, bucket, row, *, seed, cfg, steps):
    """Euler's solution of the probability flow (Song et al. 2021) from noise alone, by the denoiser that a training asks."""
    sigmas = trailing_sigmas(steps, table=host.models.noise_levels(host.models.model_sampling_of(model)))
    shape = bucket.x0[row : row + 1].shape
    x = sigmas[0] * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    batch = TensorData(x0=x, condition=bucket.take(torch.tensor([row])).condition).first(1)
    without = TensorData(x0=x, condition=bucket.take(torch.tensor([row])).unconditional).first(1)
    with torch.no_grad():
        denoise = host.training.as_denoiser(host.training.loaded(model), model=model)
        for sigma, sigma_next in itertools.pairwise(sigmas):
            own, led_away = (denoise(x, sigma[None], **each.condition) for each in (batch, without))
            x0 = led_away + cfg * (own - led_away)
            x = x0 + (sigma_next / sigma) * (x - x0)
    return x


def seed_of(file):
    return int(hashlib.sha256(file.read_bytes()).hexdigest()[:15], 16)


def solves(model, output, edits, *, cfg):
    for name, shape in (("a", (64, 64)), ("b", (64, 128))):
        buckets = [
            each
            for each in data_of(output).buckets
            if (each.x0.shape[-1] == each.x0.shape[-2]) == (shape[0] == shape[1])
        ]
        (bucket,) = buckets
        wanted = solved(model, bucket, 0, seed=seed_of(edits / "before" / f"{name}.webp"), cfg=cfg, steps=3)
        torch.testing.assert_close(bucket.x0[:1], wanted, atol=2e-4, rtol=2e-4)
        assert bucket.x0.std() > 1e-2


def test_the_teacher_draws_each_edit_with_its_picture_and_what_is_asked_for(output, edits):
    distil(of(Flux), name="run", data=drawn(MeanVAE()))
    solves(of(Flux), output, edits, cfg=2.0)


@pytest.mark.parametrize("kind", kinds("flux_kontext", "joy_image", "boogu"))
def test_the_hosts_own_models_draw_them_so(kind, output, edits):
    one = ALL[kind]
    clip = Words(one.width, one.pooled or 8, padded="flux" in kind)
    distil(one.model(), name="run", data=drawn(NODES[kind][2] if kind in NODES else Channels(16, 8), clip))
    solves(one.model(), output, edits, cfg=2.0)


def test_each_has_noise_of_its_own_and_a_cancel_costs_no_more_than_a_few(output, edits, monkeypatch):
    distil(of(Flux), name="whole", data=drawn(MeanVAE(), flip=True))
    noises, draw = [], host.data.draw

    def counted(*args, **given):
        noises.append(given["noise"])
        return draw(*args, **given)

    def interrupted(*args, **given):
        if len(noises) == 3:
            raise Cancelled
        return counted(*args, **given)

    monkeypatch.setattr(host.data, "draw", interrupted)
    with pytest.raises(Cancelled):
        distil(of(Flux), name="part", data=drawn(MeanVAE(), flip=True))
    monkeypatch.setattr(host.data, "draw", counted)
    distil(of(Flux), name="part", data=drawn(MeanVAE(), flip=True))
    assert len(noises) == 5, "two of the first shape once, one of the second once more"
    assert len({float(noise.sum()) for noise in noises}) == 4
    assert same_tensors(data_of(output, "whole").tensors(), data_of(output, "part").tensors())


def test_texts_are_encoded_once_and_before_anything_is_drawn_of_a_shard(output, edits, monkeypatch):
    """The text encoder and the model, each of gigabytes, would take each other's place on the card for every picture."""
    node, seen, draw = Looking(), [], host.data.draw
    monkeypatch.setitem(sys.modules, "comfy_extras.nodes_qwen", types.SimpleNamespace(TextEncodeQwenImageEditPlus=node))
    monkeypatch.setattr(node, "execute", lambda *a, see=node.execute, **k: seen.append("text") or see(*a, **k))
    monkeypatch.setattr(host.data, "draw", lambda *a, **k: seen.append("drawn") or draw(*a, **k))
    distil(of(QwenImage), name="run", data=drawn(MeanVAE(), flip=True))
    of_one_shape = ["text"] * 4 + ["drawn"] * 2
    assert seen == of_one_shape * 2, "of a picture and its mirror image, each with its prompt and the negative one"


def test_other_steps_and_other_guidance_make_other_data(output, edits):
    distil(of(Flux), name="run", data=drawn(MeanVAE()))
    with pytest.raises(ValueError, match=r"begun on other training data.*draw_cfg: there 2.0, here 3.0"):
        distil(of(Flux), name="run", data=drawn(MeanVAE(), draw_cfg=3.0))
    with pytest.raises(ValueError, match=r"begun on other training data.*draw_steps: there 3, here 4"):
        distil(of(Flux), name="run", data=drawn(MeanVAE(), draw_steps=4))


def test_edits_of_a_start_that_came_to_nothing_are_drawn_anew_by_another_teacher(output, edits, monkeypatch):
    """By one whose patches change what it draws, which is in no weight: as FreeU at another strength."""

    def teacher(by):
        model = scaled(by)
        model.model.__class__ = type("Omnigen2", (type(model.model),), {})
        return model

    drawings, draw, clip = [], host.data.draw, RandomCLIP(768, 768)

    def interrupted(*args, **given):
        drawings.append(1)
        if len(drawings) == 2:
            raise Cancelled
        return draw(*args, **given)

    monkeypatch.setattr(host.data, "draw", interrupted)
    with pytest.raises(Cancelled):
        distil(teacher(0.5), name="run", data=drawn(MeanVAE(), clip))
    distil(teacher(1.5), name="run", data=drawn(MeanVAE(), clip))
    assert len(drawings) == 4, "the first once more"
    distil(teacher(1.5), name="fresh", data=drawn(MeanVAE(), clip))
    assert same_tensors(data_of(output).tensors(), data_of(output, "fresh").tensors())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"references": ""}, "draw_steps is 3, but references is empty; give the folder, or set draw_steps to 0"),
        ({"folder": "after"}, "draw_steps is 3, but folder has the pictures after the edit, which are not drawn then"),
        ({"draw_cfg": 0.5}, "draw_cfg is 0.5; allowed is 1"),
        ({"draw_steps": -1}, "draw_steps is -1"),
    ],
)
def test_what_cannot_be_drawn_is_named(given, said, output, pairs):  # noqa: F811
    for file in (pairs / "after").glob("*.txt"):
        (pairs / "before" / file.name).write_text(file.read_text())
    with pytest.raises(ValueError, match=said):
        drawn(MeanVAE(), **given)


@pytest.mark.parametrize("goal", [choosing.CLOSEST, choosing.CHEAPEST])
def test_make_it_fast_has_the_model_draw_them_for_goals_that_look_at_them(goal, output, edits, quick):  # noqa: F811
    given = {**ALONE, "goal": goal, "guidance": 2.0}
    told = make(of(Flux), make_it_fast.PLAN, **given)["ui"]["text"][0]
    assert f"2 pictures of {edits / 'before'}, at about 64 x 64, each edited by your model in 32 steps at cfg 2" in told
    assert "drawing the edits of 2 pictures" in told
    make(of(Flux), make_it_fast.TRAIN, **given)
    sizes = {"resolution": 64, "bucket_step": 64, "without_caption": "use caption"}
    distil(of(Flux), name="by node", data=drawn(Draws(), draw_steps=32, **sizes))
    assert same_tensors(data_of(output).tensors(), data_of(output, "by node").tensors())
