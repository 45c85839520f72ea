"""Memory by the host's own management: other models make room, an error or a VAE in between leaves everything right."""

import functools
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.model_management
import comfy.sd
from architectures import conditioning, kinds, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation import observing
from comfyui_fewstep.nodes.distillation.learning import methods, students
from comfyui_fewstep.samplers.few_step import sample_few_step
from comfyui_fewstep.trainers.storage.export import LORA
from comfyui_fewstep.trainers.training import stages
from test_lora import assert_whole, distil, draw, lora_like, output, read_student_of, snapshot  # noqa: F401 (a fixture)
from test_memory import STUDENTS


class Pictures:
    """Stands for a VAE: what it is given, as three channels. before: what the host does to make room for one."""

    def __init__(self, before=lambda: None):
        self.seen, self._before = [], before

    def decode(self, samples):
        self._before()
        self.seen.append(samples.clone())
        return samples[:, :1].expand(-1, 3, -1, -1).movedim(1, -1).sigmoid()


def fail_in_backward(monkeypatch, *, at):
    """Out of memory in the backward pass of one step, which has gone through half the network."""
    calls, whole = [], torch.Tensor.backward

    def backward(loss, *args, **kwargs):
        calls.append(1)
        whole(loss, *args, **kwargs)
        if len(calls) == at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(torch.Tensor, "backward", backward)


@pytest.mark.parametrize("which", STUDENTS)
@pytest.mark.parametrize("kind", kinds("sd15", "flux"))
def test_out_of_memory_says_what_to_lower_and_leaves_all_whole(kind, which, output, monkeypatch):  # noqa: F811
    model = tiny(kind)
    picture, before = draw(model, kind), snapshot(model)
    settings = {"iterations": 3, "student": STUDENTS[which], "checkpoint_every": 2}
    expected = read_student_of(output, distil(model, kind, name="whole", **settings)[2])
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError) as caught:
        fail_in_backward(patch, at=4)
        distil(model, kind, name="broken", **settings)
    assert "Switch gradient_checkpointing on or raise accumulation (it is 1), up to batch_size, and queue again" in str(
        caught.value
    )
    assert "lower batch_size (it is 4)" in str(caught.value)
    assert [path.stem for path in sorted(output.glob("**/broken/checkpoints/*"))] == ["00000002", "00000003"]
    assert_whole(model, before)
    assert torch.equal(draw(model, kind), picture)
    resumed = distil(model, kind, name="broken", gradient_checkpointing=True, **settings)
    resumed = read_student_of(output, resumed[2])
    assert all(torch.equal(resumed[key], value) for key, value in expected.items())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_of_a_run_stays_in_memory(checkpointing, output, monkeypatch):  # noqa: F811
    emptied, made, original = [], [], students.FullWeightsStudent

    def remembered(*args, **kwargs):
        student = original(*args, **kwargs)
        made.extend(weakref.ref(value) for value in student.parameters())
        return student

    monkeypatch.setattr(students, "FullWeightsStudent", remembered)
    monkeypatch.setattr(
        comfy.model_management,
        "soft_empty_cache",
        lambda *_: emptied.append(sum(value() is not None for value in made)),
    )
    distil(tiny("sd15"), "sd15", iterations=2, student=students.FullWeights(), gradient_checkpointing=checkpointing)
    assert made
    assert emptied[-1] == 0, "the cache is emptied when the weights are gone"


DEVICE = 24 * 2**30
"""Bytes of it, all of which the host is asked for."""


@pytest.fixture(autouse=True)
def size_of_device(monkeypatch):
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *_: DEVICE)


def of_june_2024(models, memory_required=0, force_patch_weights=False):
    return {"memory_required": memory_required}


def of_autumn_2024(models, memory_required=0, force_patch_weights=False, minimum_memory_required=None):
    return {"memory_required": memory_required, "minimum_memory_required": minimum_memory_required}


def of_2025(models, memory_required=0, force_patch_weights=False, minimum_memory_required=None, force_full_load=False):
    return {"memory_required": memory_required, "force_full_load": force_full_load}


@pytest.mark.parametrize(
    ("load", "asked"),
    [
        (of_june_2024, {"memory_required": DEVICE}),
        (of_autumn_2024, {"memory_required": DEVICE, "minimum_memory_required": 0}),
        (of_2025, {"memory_required": DEVICE, "force_full_load": True}),
    ],
)
def test_other_models_make_room(load, asked, monkeypatch):
    """The host is asked for the whole device, and for the whole MODEL on its device where it can be asked for that."""
    seen = []
    replacement = functools.wraps(load)(lambda *args, **kwargs: seen.append(load(*args, **kwargs)))
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", replacement)
    host.training.loaded(tiny("sd15"))
    assert seen == [asked]


@pytest.mark.parametrize("fits", [False, True])
@pytest.mark.parametrize("load", [of_june_2024, of_autumn_2024, of_2025])
def test_a_model_that_does_not_fit_is_not_asked_for_whole(load, fits, monkeypatch):
    """Once other models have left the device; half of its room is for the weights then."""
    model, seen, management = tiny("sd15"), [], comfy.model_management
    free = model.model_size() + (1024 if fits else -1024)
    monkeypatch.setattr(model, "load_device", torch.device("cuda"))
    monkeypatch.setattr(management, "minimum_inference_memory", lambda: 2**30)
    monkeypatch.setattr(management, "get_free_memory", lambda *_: 2**30 + free if "freed" in seen else 0)
    asked = []
    monkeypatch.setattr(
        management, "free_memory", lambda wanted, *_, **__: asked.append(wanted) or seen.append("freed")
    )
    replacement = functools.wraps(load)(lambda *args, **kwargs: seen.append(load(*args, **kwargs)))
    monkeypatch.setattr(management, "load_models_gpu", replacement)
    host.training.loaded(model)
    assert asked == [DEVICE]
    _, asked = seen
    assert asked["memory_required"] == (DEVICE if fits else free / 2)
    assert not fits or asked.get("force_full_load") is (True if load is of_2025 else None)
    assert fits or not asked.get("force_full_load")


def test_a_model_that_is_whole_on_its_device_stays_so(monkeypatch):
    """Though what a run holds beside it leaves no room now."""
    model, seen, management = tiny("sd15"), [], comfy.model_management
    host.training.loaded(model)
    monkeypatch.setattr(model, "loaded_size", model.model_size, raising=False)
    monkeypatch.setattr(model, "load_device", torch.device("cuda"))
    monkeypatch.setattr(management, "get_free_memory", lambda *_: 0)
    replacement = functools.wraps(of_2025)(lambda *args, **kwargs: seen.append(of_2025(*args, **kwargs)))
    monkeypatch.setattr(management, "load_models_gpu", replacement)
    host.training.loaded(model)
    assert seen == [{"memory_required": DEVICE, "force_full_load": True}]


# --- previews --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds("sd15", "sd3", thorough=["sd15"]))
def test_a_vae_that_drives_the_model_out_changes_nothing(kind, output):  # noqa: F811
    """The host then takes a user's LoRA off the weights; the run goes on with it, and with the same result."""
    model = tiny(kind)
    with torch.inference_mode():
        style = {name: 0.5 * torch.randn_like(value) for name, value in lora_like(model).items()}
        styled, _ = comfy.sd.load_lora_for_models(model, None, style, 1.0, 0.0)
    before, picture = snapshot(styled), draw(styled, kind)
    settings = {"iterations": 4, "checkpoint_every": 1}
    expected = read_student_of(output, distil(styled, kind, name="blind", **settings)[2])
    vae = Pictures(before=comfy.model_management.unload_all_models)
    found = read_student_of(output, distil(styled, kind, name="seeing", vae=vae, **settings)[2])
    assert len(vae.seen) == 8 + 2, "the student's at each checkpoint, the teacher's in each stage"
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert torch.equal(draw(styled, kind), picture)
    comfy.model_management.unload_all_models()
    after = snapshot(styled)[1]
    assert all(torch.equal(after[name], value) for name, value in before[1].items()), "the LoRA is off again"


def test_a_model_that_goes_for_a_vae_leaves_nothing_behind():
    """The weights with a user's LoRA in them, which the host makes anew at every load, a preview each."""
    model = tiny("sd15")
    with torch.inference_mode():
        style = {name: 0.5 * torch.randn_like(value) for name, value in lora_like(model).items()}
        styled, _ = comfy.sd.load_lora_for_models(model, None, style, 1.0, 0.0)
    vae = Pictures(before=comfy.model_management.unload_all_models)
    with torch.inference_mode(False), host.training.shared_network(styled) as network:
        preview = object.__new__(observing.Preview)
        preview._student, preview._model, preview._vae, preview._shapes = (
            SimpleNamespace(kind=LORA),
            styled,
            vae,
            [None],
        )
        held = {name: weakref.ref(value) for name, value in network.named_parameters()}
        preview._decoded([(torch.ones(1, 4, 8, 8), torch.ones(1, 4, 8, 8))])
        gc.collect()
        now = dict(network.named_parameters())
        assert not any(value.is_inference() for value in now.values()), "what autograd may save"
        left = [name for name, one in held.items() if one() is not None and one() is not now[name]]
        assert not left


@pytest.mark.parametrize("ema_decay", [pytest.param(0.0, marks=pytest.mark.thorough), 0.9])
def test_previews_show_what_the_stage_would_result_in(ema_decay, output, monkeypatch):  # noqa: F811
    """The student's row of the last preview is drawn with the weights that are exported."""
    model, vae, drawn_with = tiny("sd15"), Pictures(), []
    drawing = observing.Preview._draw

    def watched(preview, denoiser, *args, **kwargs):
        drawn_with.append({name: value.clone() for name, value in preview._student.exported().items()})
        return drawing(preview, denoiser, *args, **kwargs)

    monkeypatch.setattr(observing.Preview, "_draw", watched)
    name = distil(model, "sd15", iterations=3, vae=vae, ema_decay=ema_decay)[2]
    exported = read_student_of(output, name)
    assert all(torch.equal(drawn_with[-1][key], value) for key, value in exported.items())
    blind = read_student_of(output, distil(model, "sd15", iterations=3, ema_decay=ema_decay)[2])
    assert all(torch.equal(blind[key], value) for key, value in exported.items())


def test_a_preview_sends_no_more_through_the_network_than_training_does(output, monkeypatch):  # noqa: F811
    """So that a run that fits goes on fitting: ten samples are shown, and one passes at a time."""
    rows, reading = [], host.training.as_denoiser

    def counted(*args, **kwargs):
        denoiser = reading(*args, **kwargs)

        def denoise(x, sigma, **condition):
            rows.append(len(x))
            return denoiser(x, sigma, **condition)

        return denoise

    monkeypatch.setattr(host.training, "as_denoiser", counted)
    vae = Pictures()
    distil(tiny("sd15"), "sd15", iterations=1, checkpoint_every=1, batch_size=4, accumulation=4, vae=vae)
    assert sum(map(len, vae.seen)) > 4, "several samples are shown"
    assert set(rows) == {1}


GUIDED = [
    ("sd15", methods.ProgressiveDistillation, {"start_steps": 4, "target_steps": 2, "weighting": "constant"}),
    ("sd3", methods.GuidanceDistillation, {"steps": 4, "weighting": "constant"}),
    ("sd15", methods.ConsistencyDistillation, {"steps": 2, "guidance_scale_max": 5.0}),
]


@pytest.mark.parametrize(("kind", "node", "chosen"), GUIDED)
def test_the_previews_teacher_is_the_one_that_the_student_learns_from(kind, node, chosen, output, monkeypatch):  # noqa: F811
    """What the host itself draws at that cfg with both prompts, from the same noise at the same levels."""
    model, drawn, drawing = tiny(kind), [], stages.draw_from_noise
    monkeypatch.setattr(
        stages, "draw_from_noise", lambda *a, **k: drawn.append((a[1], a[2], drawing(*a, **k))) or drawn[-1][2]
    )
    (method,) = node().make(iterations=1, learning_rate=1e-3, guidance_scale=3.0, **chosen)
    distil(model, kind, vae=Pictures(), method=method)
    noise, sigmas, taught = drawn[0]
    cfg = 4.0 if "guidance_scale_max" in chosen else 3.0
    with torch.inference_mode():
        scale = model.get_model_object("latent_format").process_out
        wanted = host.models.sample(
            model,
            host.models.sampler(sample_few_step, gamma=0.0),
            sigmas.clone(),
            noise=noise.clone(),
            positive=conditioning(kind, seed=2),
            negative=conditioning(kind, seed=5),
            cfg=cfg,
            seed=0,
        )
    torch.testing.assert_close(scale(taught.clone()), wanted, atol=2e-3, rtol=1e-3)
