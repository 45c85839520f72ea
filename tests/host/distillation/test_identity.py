"""A run goes on with its own teacher alone: whatever changes what the MODEL draws is found, named, and rounding is not."""

import importlib
import json

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.sd
from architectures import conditioning, kinds, noise_for, on_levels, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation import runs, teacher
from comfyui_fewstep.trainers.data.batches import Batch
from comfyui_fewstep.trainers.storage.identity import EXACT, ROUNDING, another_teacher
from test_lora import distil, lora_like, output  # noqa: F401 (a fixture)


def stock(file, node):
    """A node class of the host's extras, wherever it keeps them."""
    for place in ("comfy_extras.nodes", "comfy_extras"):
        try:
            return getattr(importlib.import_module(f"{place}.{file}"), node)
        except ImportError:
            continue
    raise AssertionError(f"this host has no {file}")


def shift(value):
    return lambda model: on_levels("ModelSamplingSD3", model, value)


def levels(*, zero_terminal):
    return lambda model: on_levels("ModelSamplingDiscrete", model, "v_prediction", zero_terminal)


def free_u(b2=1.4):
    return lambda model: stock("nodes_freelunch", "FreeU_V2")().patch(model, 1.3, b2, 0.9, 0.2)[0]


def patched(set_name, function, *places):
    def made(model):
        clone = model.clone()
        getattr(clone, set_name)(function, *places)
        return clone

    return made


def beside(strength):
    """As Load LoRA (Bypass) of current hosts puts a LoRA."""

    def made(model):
        with torch.inference_mode():
            generator = torch.Generator().manual_seed(5)
            style = {n: 0.5 * torch.randn(v.shape, generator=generator) for n, v in lora_like(model).items()}
            return comfy.sd.load_bypass_lora_for_models(model, None, style, strength, 0.0)[0]

    return made


def held_in_halves(model):
    """The same weights, as ComfyUI holds them where it is told to."""
    halves = tiny("sd15", computes_in=torch.float16)
    with torch.inference_mode():
        halves.model.diffusion_model.half()
    return halves


def as_it_is(model):
    return model


def scaled(n, *_):
    return 1.2 * n


LEVELS = r"noise levels \(its shift, zero terminal SNR\): there "
OTHERS = [
    pytest.param("sd15", as_it_is, held_in_halves, r"weights differ \(there float32, here float16: ", id="type"),
    pytest.param("sd3", shift(3.0), shift(6.0), LEVELS, id="shift"),
    pytest.param(
        "sd2_v",
        levels(zero_terminal=False),
        levels(zero_terminal=True),
        LEVELS,
        id="zsnr",
    ),
    pytest.param(
        "sd15", as_it_is, free_u(), r"output_block_patch patches .* none, here nodes_freelunch\.FreeU_V2", id="freeu"
    ),
    pytest.param(
        "sd15",
        free_u(),
        free_u(1.41),
        r"answers at noise level 1\.6.*rounding in float32 explains 0.01:",
        id="freeu more",
    ),
    pytest.param(
        "sd15",
        as_it_is,
        patched("set_model_attn2_output_patch", scaled),
        "attn2_output_patch patches",
        id="attention",
        marks=pytest.mark.thorough,
    ),
]
if hasattr(comfy.sd, "load_bypass_lora_for_models"):
    OTHERS += [
        pytest.param("sd15", as_it_is, beside(1.0), r"beside its layers .* differ", id="bypass"),
        pytest.param("sd15", beside(1.0), beside(0.5), r"beside its layers .* differ", id="bypass, weaker"),
    ]


@pytest.mark.parametrize(("kind", "one", "other", "named"), OTHERS)
def test_a_run_of_another_teacher_is_refused_and_what_differs_named(kind, one, other, named, output):  # noqa: F811
    """Finished or not. With its own teacher it is loaded, made anew as it may be."""
    model = tiny(kind)
    settings = {"name": "run", "iterations": 1}
    distil(one(model), kind, **settings)
    with pytest.raises(ValueError, match=f"holds another run.*{named}"):
        distil(other(model), kind, **settings)
    before = (output / "fewstep/runs/run/run.json").read_bytes()
    distil(one(tiny(kind)), kind, **settings)
    assert (output / "fewstep/runs/run/run.json").read_bytes() == before


def test_watching_and_other_processes_ask_the_same(output, monkeypatch):  # noqa: F811
    """Of hashes that are taken once."""
    parts, hashed = host.identity.teacher_parts, []
    monkeypatch.setattr(host.identity, "teacher_parts", lambda model: hashed.append(1) or parts(model))
    model = tiny("sd3")
    distil(shift(3.0)(model), "sd3", name="run", iterations=1)
    (output / "fewstep/runs/run/student.safetensors").unlink()
    with pytest.raises(ValueError, match=f"was begun with another teacher.*{LEVELS}"):
        runs.WatchRun().watch(shift(6.0)(model), "run", 1)
    with pytest.raises(ValueError, match="no process has trained"):
        runs.WatchRun().watch(shift(3.0)(model), "run", 1)
    assert len(hashed) == 3


def test_a_run_of_before_is_taken_as_it_was_and_told(output):  # noqa: F811
    model, settings = tiny("sd15"), {"name": "run", "iterations": 1}
    distil(model, "sd15", **settings)
    file = output / "fewstep/runs/run/run.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in said.items() if key != "teacher_is"}))
    distil(model, "sd15", **settings)
    assert json.loads(file.read_text()) == said
    file.write_text(json.dumps(said | {"teacher_is": {"weights": 3}}))
    with pytest.raises(ValueError, match=r"run\.json of the run 'run' is damaged \(teacher_is in run\.json is not"):
        distil(model, "sd15", **settings)


def asked(model, kind):
    """What identifies the MODEL, asked with a sample of its own shape."""
    latents = host.inputs.latents_for_training(model, {"samples": noise_for(model, batch=1)})
    condition = host.inputs.condition_for_training(model, conditioning(kind), latents=latents, name="positive")
    return teacher.described(model, Batch(latents, condition), parts=teacher.hashed(model).parts)


@pytest.mark.parametrize("kind", kinds(thorough=["sdxl", "sd2_v"]))
def test_rounding_is_no_other_teacher(kind):
    """Another number of threads, and other types; a change of twice what is allowed is found in each."""
    found = asked(tiny(kind), kind)
    assert another_teacher(found, found) == []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(before, 2))
        assert another_teacher(found, asked(tiny(kind), kind)) == []
    finally:
        torch.set_num_threads(before)
    halves = asked(tiny(kind, computes_in=torch.float16), kind)
    assert list(halves["answers"]) == ["float16 on cpu"]
    as_if = halves | {"answers": {"float32 on cuda": halves["answers"]["float16 on cpu"]}}
    assert another_teacher(found, as_if) == [], "which a GPU's TF32 rounds like"
    at_home = found["answers"]["float32 on cpu"]
    limits = [(("float32 on cpu",) * 2, EXACT["float32 on cpu"])]
    limits += [((f"{dtype} on cpu", f"{dtype} on cuda"), allowed) for dtype, allowed in ROUNDING.items()]
    for places, allowed in limits:
        for by, said in ((0.5, 0), (2.0, 2)):
            further = [{**one, "numbers": [(1 + by * allowed) * n for n in one["numbers"]]} for one in at_home]
            one, other = ({**found, "answers": {places[i]: answers}} for i, answers in enumerate((at_home, further)))
            assert len(another_teacher(one, other)) == said


def test_asking_changes_nothing_of_the_model():
    model = tiny("sd15")
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    state = torch.get_rng_state()
    assert asked(model, "sd15") == asked(model, "sd15")
    assert torch.equal(torch.get_rng_state(), state)
    after = model.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
