"""start_lora of LoRA Student: a LoRA that begins as a finished student or as a speed LoRA of others, and learns on from there."""

import logging
import uuid
from pathlib import Path

import pytest
import torch
from architectures import conditioning, noise_for, tiny
from cancelling import cancel_at
from test_lora import TRAINING, output  # noqa: F401

import folder_paths  # isort: skip  # architectures made it importable
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation import distillation
from comfyui_fewstep.nodes.distillation.learning import methods, starting_lora, students
from comfyui_fewstep.trainers.storage.export import read_student
from comfyui_fewstep.trainers.storage.files import read_tensors, write_tensors
from comfyui_fewstep.trainers.students.adapters import (
    LoRALayers,
    LoRAOptions,
    LowRank,
    adaptable_layers,
    lora_file,
    product,
)

RANK, STRENGTH, HARDLY = 3, 0.5, 1e-9
"""Of the speed LoRA; a learning rate at which what was begun with is still there."""


def speed_lora(model, *, layers=LoRALayers.LINEAR):
    """(the file's name in the host's list, the change of each layer's weight at strength 1): alpha is not its rank."""
    generator = torch.Generator().manual_seed(4)
    adapters = {
        path: LowRank(
            torch.randn(RANK, *layer.weight.shape[1:], generator=generator),
            torch.randn(layer.weight.shape[0], RANK, *(1,) * (layer.weight.ndim - 2), generator=generator),
        )
        for path, layer in adaptable_layers(model.model.diffusion_model, layers).items()
    }
    name = f"speed {uuid.uuid4().hex}"
    file = Path(folder_paths.get_output_directory()) / "loras" / "fewstep" / f"{name}.safetensors"
    tensors = lora_file(adapters, alpha=2.0, names=host.naming.lora_names(model, adapters))
    write_tensors(file, tensors, metadata={})
    starting_lora.folders.list_own_models()
    return f"fewstep/{name}.safetensors", {path: product(a) * 2.0 / RANK for path, a in adapters.items()}


def student(**changed):
    given = {"rank": 4, "alpha": 8.0, "layers": "linear", **changed}
    return students.LoRAStudentNode().make(**given)[0]


@torch.inference_mode()
def distil(model, chosen, *, name=None, iterations=1, learning_rate=HARDLY, method=None, **changed):
    """The run's name."""
    (consistency,) = methods.ConsistencyDistillation().make(
        iterations=iterations, learning_rate=learning_rate, guidance_scale=1.0, steps=2, levels=8
    )
    name = name or uuid.uuid4().hex
    distillation.Distill().distil(
        model,
        latents={"samples": noise_for(model, seed=1, batch=8)},
        positive=conditioning("sd15", seed=2),
        method=method or consistency,
        run_name=name,
        student=chosen,
        **{**TRAINING, **changed},
    )
    return name


def changes(model, name):
    """What the run's student adds to each layer's weight."""
    tensors, *_ = read_student(starting_lora.folders.run_named(name).student_file)
    paths = {layer: path for path, layer in host.naming.lora_names(model, _paths(model, LoRALayers.LINEAR)).items()}
    found = {}
    for key in tensors:
        layer, _, part = key.partition(".lora_up")
        if part:
            down, up = tensors[f"{layer}.lora_down.weight"], tensors[key]
            found[paths[layer]] = float(tensors[f"{layer}.alpha"]) / len(down) * product(LowRank(down, up))
    return found


def _paths(model, layers):
    return list(adaptable_layers(model.model.diffusion_model, layers))


def same(found, wanted, *, scale=1.0):
    assert found.keys() == wanted.keys()
    for path, change in wanted.items():
        torch.testing.assert_close(found[path], scale * change, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def model():
    return tiny("sd15")


def test_it_begins_as_the_file_at_its_strength(model, output):  # noqa: F811
    file, wanted = speed_lora(model)
    name = distil(model, student(start_lora=file, start_strength=STRENGTH))
    same(changes(model, name), wanted, scale=STRENGTH)


def test_directions_that_the_file_leaves_free_learn(model, output):  # noqa: F811
    """Were they next to nothing on both sides, neither would have a gradient."""
    file, wanted = speed_lora(model)
    name = distil(model, student(start_lora=file), iterations=6, learning_rate=1e-2)
    learnt = [change - wanted[path] for path, change in changes(model, name).items()]
    ranks = [int(torch.linalg.matrix_rank(change, rtol=1e-3)) for change in changes(model, name).values()]
    assert max(change.abs().max() for change in learnt) > 1e-2
    assert max(ranks) == RANK + 1


def test_a_finished_student_goes_on_by_another_method(model, output):  # noqa: F811
    first = distil(model, student(), iterations=6, learning_rate=1e-2)
    published = f"fewstep/{first}.safetensors"
    second = distil(model, student(rank=6, alpha=6.0, start_lora=published))
    same(changes(model, second), changes(model, first))
    assert max(change.abs().max() for change in changes(model, first).values()) > 1e-2
    with pytest.raises(ValueError, match="a student of another teacher"):
        distil(tiny("sd15", seed=5), student(start_lora=published))


def progressive(student_prediction):
    return methods.ProgressiveDistillation().make(
        start_steps=2,
        target_steps=1,
        iterations=1,
        learning_rate=HARDLY,
        guidance_scale=1.0,
        weighting="truncated_snr",
        student_prediction=student_prediction,
    )[0]


def test_a_student_that_predicts_otherwise_is_refused(model, output):  # noqa: F811
    """Of the same teacher, whose weights alone do not tell it."""
    of_v, of_eps = (distil(model, student(), method=progressive(kind)) for kind in ("v_prediction", "as_teacher"))
    said = r"start_lora is fewstep/{}\.safetensors, a student that predicts {}, and this run's predicts {}; allowed are"
    with pytest.raises(ValueError, match=said.format(of_v, "v_prediction", "eps")):
        distil(model, student(start_lora=f"fewstep/{of_v}.safetensors"), name="refused")
    with pytest.raises(ValueError, match=said.format(of_eps, "eps", "v_prediction")):
        distil(
            model,
            student(start_lora=f"fewstep/{of_eps}.safetensors"),
            name="refused",
            method=progressive("v_prediction"),
        )
    assert not starting_lora.folders.run_named("refused").path.exists()


def test_a_rank_that_is_too_low_says_what_it_loses(model, output, caplog):  # noqa: F811
    file, wanted = speed_lora(model)
    with caplog.at_level(logging.WARNING):
        name = distil(model, student(rank=2, start_lora=file))
    lost = sum(float((wanted[path] - c).square().sum()) for path, c in changes(model, name).items())
    share = 100.0 * lost / sum(float(c.square().sum()) for c in wanted.values())
    (said,) = [record.getMessage() for record in caplog.records if "start_lora" in record.getMessage()]
    assert float(said.split(", ")[-1].split(" percent")[0]) == pytest.approx(share, rel=0.01)


def test_it_goes_on_bit_for_bit(model, output, monkeypatch):  # noqa: F811
    file, _ = speed_lora(model)
    whole = distil(model, student(start_lora=file), iterations=4, learning_rate=1e-2)
    name = uuid.uuid4().hex
    with monkeypatch.context() as patch, pytest.raises(host.signals.Cancelled):
        cancel_at(patch, 2, host.signals.Cancelled)
        distil(model, student(start_lora=file), name=name, iterations=4, learning_rate=1e-2)
    distil(model, student(start_lora=file), name=name, iterations=4, learning_rate=1e-2)
    one, other = (read_student(starting_lora.folders.run_named(run).student_file)[0] for run in (whole, name))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_does_not_fit_is_named(model, output):  # noqa: F811
    with pytest.raises(ValueError, match=r"start_lora is '\.\./\.\./x'; allowed are nothing"):
        student(start_lora="../../x")
    file, _ = speed_lora(model, layers=LoRALayers.LINEAR_AND_CONV)
    with pytest.raises(ValueError, match="start_strength is 0"):
        student(start_lora=file, start_strength=0.0)
    with pytest.raises(ValueError, match="has no adapter; set layers to linear_and_conv"):
        distil(model, student(start_lora=file))
    with pytest.raises(ValueError, match=r"of the \d+ layers of speed .* are not in this model"):
        list(host.training.changes_of(tiny("sd3"), starting_lora.folders.lora_file(file), strength=1.0))


def test_the_run_says_what_it_began_as(model, output):  # noqa: F811
    file, _ = speed_lora(model)
    chosen = student(start_lora=file, start_strength=STRENGTH)
    assert students.read(students.description(chosen)) == chosen
    assert students.description(student()).keys() == {"kind", "rank", "alpha", "layers"}, (
        "older runs stay what they are"
    )
    assert isinstance(students.read(students.description(student())), LoRAOptions)
    with starting_lora.folders.lora_file(file).open("ab") as content:
        content.write(b"x")
    with pytest.raises(ValueError, match="is another file now"):
        chosen.file()


@pytest.mark.parametrize("damage", ["nan", "cut", "no file of that kind"])
def test_a_file_of_no_use_is_named_and_leaves_no_run(damage, model, output):  # noqa: F811
    name, _ = speed_lora(model)
    file = Path(folder_paths.get_full_path("loras", name))
    if damage == "nan":
        tensors, _ = read_tensors(file)
        tensors[next(iter(tensors))].fill_(float("nan"))
        write_tensors(file, tensors, metadata={})
    else:
        file.write_bytes(file.read_bytes()[:-50] if damage == "cut" else b"pickle")
    with pytest.raises(ValueError, match=rf"{file.name} is (damaged|not written or used)"):
        distil(model, student(start_lora=name), name="run")
    assert not starting_lora.folders.run_named("run").path.exists()


def test_what_a_file_says_of_attention_is_no_layer(model, output):  # noqa: F811
    """From 0.38 on a file may name a kernel for a layer's attention, which stands aside in training."""
    name, wanted = speed_lora(model)
    file = Path(folder_paths.get_full_path("loras", name))
    tensors, _ = read_tensors(file)
    said = torch.tensor(list(b'{"attention": "comfy_kitchen_int8"}'), dtype=torch.uint8)
    write_tensors(file, {**tensors, "diffusion_model.middle_block.1.attn.comfy_attention.config": said}, metadata={})
    assert host.training.changes_of(model, file, strength=1.0).keys() == wanted.keys()


@pytest.mark.parametrize(("up", "down"), [(40, 32), (32, 40)])
def test_a_file_whose_layers_have_another_size_is_refused_before_there_is_data(model, output, up, down):  # noqa: F811
    """As Wan 14B's on Wan 1.3B, whose layers have the same names. The host only logs it, and would begin as nothing."""
    layer = next(
        path for path in adaptable_layers(model.model.diffusion_model, LoRALayers.LINEAR) if "attn1.to_q" in path
    )
    name = host.naming.lora_names(model, [layer])[layer]
    assert model.model.diffusion_model.get_submodule(layer).weight.shape == (32, 32)
    file, _ = speed_lora(model)
    tensors = {f"{name}.lora_up.weight": torch.ones(up, 4), f"{name}.lora_down.weight": torch.ones(4, down)}
    write_tensors(Path(folder_paths.get_full_path("loras", file)), tensors, metadata={})
    with pytest.raises(ValueError, match=rf"start_lora is {file}: it does not fit the layer {layer}"):
        distil(model, student(start_lora=file), name="run")
    assert not starting_lora.folders.run_named("run").path.exists()
