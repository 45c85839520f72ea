"""Training Prompts (Teacher's Pictures) on the host's own classes, and which data Distill Model takes."""

import logging

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.sample
import comfy.samplers
from architectures import conditioning, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.data import data_sources, training_data
from comfyui_fewstep.nodes.sampling import model_sampling
from comfyui_fewstep.samplers.schedules import trailing_sigmas
from comfyui_fewstep.trainers.data.cache import read_data
from comfyui_fewstep.trainers.storage.files import tensors_sha256
from encoders import RandomCLIP
from making_data import LONG, Cancelled, cancel_at, distil, prompts, run_folder, same_tensors


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_pair_drawn_again_from_its_noise_is_the_stored_picture(kind, output, clip):
    """By the host's own sampling: the teacher, the schedule and guidance of the node; prompts in order, each three times."""
    if kind == "sdxl":
        clip = RandomCLIP(2048, 1280)
    model = tiny(kind)
    distil(model, name="run", data=prompts(clip))
    data = read_data(run_folder(output, "run") / "data")
    assert data.x0.shape == data.noise.shape == (6, 4, 4, 6)
    encoder = host.encoding.TextEncoder(clip, host.folders.encodings())
    texts = [encoder.conditioning(text) for text in ("a red fox", "a blue house", "")]
    sigmas = trailing_sigmas(4, table=host.models.noise_levels(host.models.model_sampling_of(model)))
    for i in range(0, 6, 2):
        with torch.inference_mode():
            latents = comfy.sample.sample_custom(
                model,
                data.noise[i : i + 2],
                2.0,
                comfy.samplers.sampler_object("euler"),
                sigmas,
                host.data.batched([texts[i // 3], texts[(i + 1) // 3]]),
                texts[2],
                torch.zeros(2, 4, 4, 6),
                disable_pbar=True,
                seed=0,
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


@pytest.mark.parametrize(
    "call", [pytest.param(1, marks=pytest.mark.thorough), 3, pytest.param(4, marks=pytest.mark.thorough), 5]
)
def test_a_cancel_while_drawing_goes_on_where_it_was(call, output, clip, monkeypatch):
    model = tiny("sd15")
    distil(model, name="whole", data=prompts(clip))
    drawn, draw = [], host.data.draw
    monkeypatch.setattr(host.data, "draw", lambda *args, **kw: drawn.append(len(kw["noise"])) or draw(*args, **kw))
    cancel_at(monkeypatch, call)
    with pytest.raises(Cancelled):
        distil(model, name="part", data=prompts(clip))
    monkeypatch.setattr(host.signals, "check_cancelled", lambda: None)
    distil(model, name="part", data=prompts(clip))
    assert drawn == [2, 2, 2], "each batch once"
    distil(model, name="part", data=prompts(None, batch_size=3), checkpoint_every=7)
    assert drawn == [2, 2, 2]
    one, other = (read_data(run_folder(output, name) / "data").tensors() for name in ("whole", "part"))
    assert same_tensors(one, other)


def scaled(by):
    """As FreeU: what it changes by is in no weight, and in no name."""
    model = tiny("sd15").clone()
    model.set_model_output_block_patch(lambda h, skip, options: (h * by, skip))
    return model


@pytest.mark.parametrize("call", [4, 6])
@pytest.mark.parametrize("change", ["patch", "prediction", "none"])
def test_pictures_of_a_start_that_came_to_nothing_are_those_of_this_model(change, call, output, clip, monkeypatch):
    """Whether some were drawn before the cancel or all: another MODEL draws its own, the same goes on with them."""
    before = scaled(1.0)
    now = {"patch": scaled(0.5), "prediction": before, "none": scaled(1.0)}[change]
    if change == "prediction":
        (now,) = model_sampling.PredictionType().patch(before, "v_prediction")
    with monkeypatch.context() as patched, pytest.raises(Cancelled):
        cancel_at(patched, call)
        distil(before, name="run", data=prompts(clip))
    there = run_folder(output, "run") / "data" / "00000.safetensors"
    kept = there.stat().st_ino
    distil(now, name="run", data=prompts(clip))
    assert (there.stat().st_ino == kept) == (change == "none")
    distil(now, name="fresh", data=prompts(clip))
    one, other = (read_data(run_folder(output, name) / "data").tensors() for name in ("run", "fresh"))
    assert same_tensors(one, other)


def test_pieces_of_one_clip_share_their_prompts_inputs(clip, monkeypatch):
    """Of hundreds each would hold a copy of megabytes; what comes out is as if each had been made by itself."""
    made, make = [], host.inputs.condition_for_training
    monkeypatch.setattr(host.inputs, "condition_for_training", lambda *a, **k: made.append(1) or make(*a, **k))
    texts = data_sources.Texts(tiny("sd15"), clip, "")
    pieces = [data_sources.Sample(torch.full((1, 4, 4, 6), float(i)), ("a fox", "a cat")[i % 2]) for i in range(6)]
    (together,) = texts.parts(pieces)
    assert len(made) == 2 * 2, "with the prompt and the negative one, of each text"
    assert torch.equal(together.x0.flatten(1)[:, 0], torch.arange(6.0))
    for i, piece in enumerate(pieces):
        (alone,) = texts.parts([piece])
        row = i if together.prompts is None else int(together.prompts[i])
        for name, value in alone.condition.items():
            assert torch.equal(together.condition[name][row : row + 1], value)


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
    with pytest.raises(
        ValueError, match=r"'run' was begun with another teacher.*differs: the teacher's weights differ\.$"
    ):
        distil(tiny("sd15", seed=1), name="run", data=prompts(clip))
    patched = tiny("sd15").clone()
    patched.add_patches({"diffusion_model.out.2.bias": (torch.ones(4),)}, 0.5)
    with pytest.raises(
        ValueError, match=r"begun with another teacher.*differs: the LoRAs and other patches in its weights"
    ):
        distil(patched, name="run", data=prompts(clip))
    with pytest.raises(ValueError, match="begun with another teacher"):  # of whose data it cannot be asked
        distil(tiny("sdxl"), name="run", data=prompts(RandomCLIP(2048, 1280)))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"text": " \n\n"}, "prompts is empty; give one prompt on each line"),
        ({"width": 44}, "width is 44; allowed are multiples of 8"),
        ({"height": 0}, "height is 0"),
        ({"steps": 0}, "steps is 0; allowed is 1 to 1000"),
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
    assert validate("a fox") is True
    assert validate(None) is True
    assert "prompts is empty" in validate(" ")


# --- Distill Model's inputs ------------------------------------------------------------------------------------------

LATENTS = {"samples": torch.randn(4, 4, 4, 6, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize(
    ("connected", "said"),
    [
        ((), "nothing is connected; connect latents and positive, or data"),
        (("latents",), "latents is connected; connect latents and positive, or data"),
        (("positive",), "positive is connected"),
        (("data", "latents", "positive"), "beside latents and positive; connect data alone"),
        (("data", "negative"), "beside negative; connect data alone"),
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
    return tensors_sha256(data.tensors())


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
    distil(tiny("sd3"), name="sd3", latents={"samples": torch.randn(4, 16, 4, 6)}, **sd3)
    data = read_data(run_folder(output, "sd3") / "data")
    assert torch.equal(data.condition["c_crossattn"], sd3["positive"][0][0])
    assert torch.equal(data.unconditional["c_crossattn"], sd3["negative"][0][0]), (
        "SD3 attends to its text itself, where a copy would count twice: whole batches see the empty prompt"
    )


def test_another_kind_of_model_under_the_name_draws_its_own(output, clip, monkeypatch, caplog):
    """After a start that was cancelled while SD1.5 drew: SDXL cannot be asked what SD1.5 said of its first picture."""
    with monkeypatch.context() as patched, pytest.raises(Cancelled):
        cancel_at(patched, 6)
        distil(tiny("sd15"), name="run", data=prompts(clip))
    assert (run_folder(output, "run") / "data" / "teacher.json").exists()
    with caplog.at_level(logging.WARNING):
        distil(tiny("sdxl"), name="run", data=prompts(RandomCLIP(2048, 1280)))
    assert any("made anew" in record.getMessage() for record in caplog.records)
