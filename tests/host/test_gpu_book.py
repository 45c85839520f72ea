"""The GPU book without a card: its parts on small shapes on the CPU, and what it says where there is none."""

import dataclasses
import json
import types

import pytest
import torch
from comfyui_fewstep.benchmarks import gpu, gpu_parts
from comfyui_fewstep.commands.embedded import import_host
from comfyui_fewstep.trainers.processes.group import Processes

import_host()

UNET = {
    **{"model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": [1, 1], "transformer_depth": [0, 1]},
    **{"transformer_depth_output": [0, 0, 1, 1], "transformer_depth_middle": 1},
}
SMALL = {
    "SD1.5, 512 px": UNET,
    "SDXL, 1024 px": UNET,
    "Z-Image, 1024 px": {
        "dim": 256,
        "n_heads": 16,
        "n_kv_heads": 16,
        "axes_dims": [4, 6, 6],
        "n_layers": 1,
        "n_refiner_layers": 1,
    },
    "Wan 1.3B, 832 x 480, 81 frames": {"dim": 96, "ffn_dim": 64, "num_heads": 4, "num_layers": 1},
}
"""What of a shape's network is smaller; all else is as in truth."""


def small(name):
    import comfy.supported_models

    shape = gpu_parts.SHAPES[name]
    if not hasattr(comfy.supported_models, shape.config):
        pytest.skip(f"this ComfyUI has no {shape.config}")
    latent = (*shape.latent[:-2], 8, 8) if len(shape.latent) == 3 else (shape.latent[0], 3, 8, 8)
    return dataclasses.replace(shape, network={**shape.network, **SMALL[name]}, latent=latent)


@pytest.mark.parametrize("name", SMALL)
def test_each_part_measures_each_shape(name, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_parts, "ROUNDS", 2)
    monkeypatch.setattr(gpu_parts, "ITERATIONS", 3)
    for precision in gpu_parts.PRECISIONS:
        subject = gpu_parts.Subject(small(name), precision, torch.device("cpu"))
        held = {value.dtype for value in subject.model.model.diffusion_model.parameters()}
        assert held <= {gpu_parts.PRECISIONS[precision][0], torch.float32}
        sampled = gpu_parts.sampling(subject, Processes(), tmp_path)
        assert sampled.keys() == {"call", "lightning", "lcm", "euler"}
        assert all(0.2 < sampled[key] < 5.0 for key in ("lightning", "lcm", "euler"))
        trained = gpu_parts.training(subject, Processes(), tmp_path / precision)
        assert trained["step"] > 0.0


PUBLISHED = {"SD1.5": 859.5, "SDXL": 2567.5, "Z-Image": 6155.0, "Wan 1.3B": 1419.0}
"""Millions of weights of the released networks."""


@pytest.mark.parametrize("name", gpu_parts.SHAPES)
def test_shapes_are_true(name):
    import comfy.supported_models

    small(name)  # skips what this host lacks
    shape = gpu_parts.SHAPES[name]
    config = getattr(comfy.supported_models, shape.config)(dict(shape.network))
    config.set_inference_dtype(torch.bfloat16, None)
    network = config.get_model({}, "", torch.device("meta")).diffusion_model
    found = sum(value.numel() for value in network.parameters()) / 1e6
    assert found == pytest.approx(PUBLISHED[name.split(",")[0]], rel=2e-3)


def test_a_machine_without_a_card_says_so_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main(["--folder", str(tmp_path)])
    assert "no CUDA card" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_book_has_every_cell_goes_on_and_tells_errors(tmp_path, monkeypatch):
    """With a card that is feigned, and processes that answer at once."""
    calls = []

    def answered(command, **_):
        name, *_ = json.loads(command[-1])
        calls.append(command)
        if name.startswith("Wan"):
            return types.SimpleNamespace(returncode=1, stdout="", stderr="Traceback\ntorch.OutOfMemoryError: 80 GiB\n")
        figures = {"call": 0.05, "lightning": 1.01, "lcm": 1.02, "euler": 0.99, "step": 0.5, "bytes": 3 * gpu.GIB}
        return types.SimpleNamespace(returncode=0, stdout=f"said\n{json.dumps(figures)}\n", stderr="")

    for key, value in {"is_available": True, "device_count": 2, "get_device_name": "Feigned"}.items():
        monkeypatch.setattr(torch.cuda, key, lambda value=value: value)
    monkeypatch.setattr(gpu, "subprocess", types.SimpleNamespace(run=answered))
    gpu.main(["--folder", str(tmp_path)])
    assert len(calls) == 4 * 2 * 3
    assert sum("torch.distributed.run" in command for command in calls) == 4 * 2
    page = (tmp_path / "gpu.md").read_text()
    assert "on 2 x Feigned" in page
    assert "| SDXL, 1024 px | fp8 | 50.0 | 1.010 | 1.020 | 0.990 |" in page
    assert "| SDXL, 1024 px | bf16 | 2 | 0.500 | 3.00 |" in page
    assert "| Wan 1.3B, 832 x 480, 81 frames | fp8 | 1 | **error** | **error** |" in page
    assert "torch.OutOfMemoryError: 80 GiB" in page
    gpu.main(["--folder", str(tmp_path)])
    assert len(calls) == 4 * 2 * 3, "nothing is measured twice"


def test_two_processes_want_two_cards(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert gpu.measured("SDXL, 1024 px", "bf16", "training", processes=2) == {"error": "this machine has 1 card"}
