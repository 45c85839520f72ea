"""The GPU book without a card: its parts on small shapes on the CPU, and what it says where there is none."""

import dataclasses
import importlib.util
import json
import types

import pytest
import torch
from comfyui_fewstep.benchmarks.gpu import command as gpu
from comfyui_fewstep.benchmarks.gpu import gradients as gpu_gradients
from comfyui_fewstep.benchmarks.gpu import parts as gpu_parts
from comfyui_fewstep.benchmarks.gpu import room as gpu_room
from comfyui_fewstep.benchmarks.gpu.bench import Bench
from comfyui_fewstep.benchmarks.gpu.shapes import SHAPES
from comfyui_fewstep.benchmarks.gpu.subject import PRECISIONS, SCALED
from comfyui_fewstep.commands.embedded import import_host
from thorough import first_then_thorough

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
    "Flux, 1024 px": {"hidden_size": 64, "num_heads": 4, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 6, 6]},
}
"""What of a shape's network is smaller; all else is as in truth."""


def small(name):
    import comfy.supported_models

    shape = SHAPES[name]
    if not hasattr(comfy.supported_models, shape.config):
        pytest.skip(f"this ComfyUI has no {shape.config}")
    latent = (*shape.latent[:-2], 8, 8) if len(shape.latent) == 3 else (shape.latent[0], 3, 8, 8)
    return dataclasses.replace(shape, network={**shape.network, **SMALL[name]}, latent=latent, tokens=32)


def precisions():
    return [name for name in PRECISIONS if name != SCALED or importlib.util.find_spec("comfy.quant_ops")]


@pytest.mark.parametrize("name", first_then_thorough([name for name in SMALL if name != "SD1.5, 512 px"], SMALL))
def test_each_part_measures_each_shape(name, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_parts, "SECONDS", 0.0)
    monkeypatch.setattr(gpu_parts, "PLANNED", 4)
    monkeypatch.setattr(gpu_gradients, "ROOMS", {"all": 1.0})  # without a card there are no others
    monkeypatch.setitem(SHAPES, name, small(name))
    with Bench(str(tmp_path), gpu_parts.PARTS) as bench:
        for precision in precisions():
            parts = [part for part in gpu_parts.PARTS if part != "gradients" or precision != "fp8"]  # for time
            found = {part: bench.measured(name, precision, part, 0.0) for part in parts}
            held = list(bench._subject[1].network.diffusion_model.parameters())
            quantised = any(hasattr(value, "__tensor_flatten__") for value in held)
            assert quantised == (precision == SCALED)
            assert quantised or PRECISIONS[precision][0] in {value.dtype for value in held}
            assert found["sampling"].keys() == {"call", "lightning", "lcm", "euler", "rounds"}
            assert all(0.1 < found["sampling"][key] < 10.0 for key in ("lightning", "lcm", "euler"))
            assert all(found[part]["step"] > 0.0 for part in ("training", "matching", "critic", "plan"))
            assert [0.2 < planned / step < 5.0 for planned, step in found["plan"]["pairs"]] == [True] * 2
            assert found["plan"]["planned bytes"] > 0.0
            for part, count in {"gradients": 4, "pulls": 2}.items():
                cosines = [value["cosine"] for value in found.get(part, {}).values() if isinstance(value, dict)]
                assert len(cosines) == (count if part in found else 0)
                assert min(cosines, default=1.0) > 0.9999


def test_gradients_of_other_weights_are_seen(tmp_path, monkeypatch):
    """A layer that is lent another weight in backward."""
    from comfyui_fewstep.nodes.host.memory import lending

    name = "SD1.5, 512 px"
    monkeypatch.setitem(SHAPES, name, small(name))
    own, passes = lending._linear_gradient, []

    def wrong(layer, grad, shape):
        passes.append(layer)
        return own(layer, grad, shape).flip(-1) if len(passes) > 30 else own(layer, grad, shape)

    monkeypatch.setattr(lending, "_linear_gradient", wrong)
    monkeypatch.setattr(gpu_gradients, "ROOMS", {"all": 1.0})
    with Bench(str(tmp_path), gpu_parts.PARTS) as bench:
        found = bench.measured(name, "bf16", "gradients", 0.0)
    assert min(value["cosine"] for value in found.values() if isinstance(value, dict)) < 0.99


def test_a_cell_that_an_error_ends_tells_it_and_the_next_goes_on(tmp_path, monkeypatch):
    name = "SD1.5, 512 px"
    monkeypatch.setitem(SHAPES, name, small(name))

    def no_room(*_):
        raise torch.OutOfMemoryError("80 GiB")

    monkeypatch.setitem(gpu_parts.PARTS, "training", no_room)
    monkeypatch.setattr(gpu_parts, "SECONDS", 0.0)
    with Bench(str(tmp_path), gpu_parts.PARTS) as bench:
        assert bench.measured(name, "bf16", "training", 8.0) == {"error": "OutOfMemoryError: 80 GiB"}
        assert "call" in bench.measured(name, "bf16", "sampling", 0.0)


def test_nothing_of_a_model_is_left_on_the_card_for_the_next_cell(tmp_path, monkeypatch):
    """A student's clone had loaded it, of which the host knows nothing any more."""
    name = "SD1.5, 512 px"
    monkeypatch.setitem(SHAPES, name, small(name))
    with Bench(str(tmp_path), gpu_parts.PARTS) as bench:
        bench.measured(name, "bf16", "training", 0.0)
        model, left = bench._subject[1].model, []
        monkeypatch.setattr(model, "detach", lambda *_: left.append(model), raising=False)
        bench.leave(0.0)
    assert model in left


PUBLISHED = {"SD1.5": 859.5, "SDXL": 2567.5, "Z-Image": 6155.0, "Wan 1.3B": 1419.0, "Flux": 11901.4}
"""Millions of weights of the released networks."""


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_true(name):
    import comfy.supported_models

    small(name)  # skips what this host lacks
    shape = SHAPES[name]
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


CARDS, TOTAL = 2, 80 * gpu.GIB


class Feigned:
    """A process that answers as the cells' own does. It ends without a word at the Wan of a card of 8 GiB."""

    started: list[list[str]] = []

    def __init__(self, command, **_):
        Feigned.started.append(command)
        self.asked = json.loads(command[-1])
        self.stdout, self.stderr = self.answers(), iter(["Traceback\n", "torch.OutOfMemoryError: 80 GiB\n"])

    def answers(self):
        for model, _, part, card in self.asked["cells"]:
            if model.startswith("Wan") and card == 8:
                return
            sampled = {"call": 0.05, "lightning": 1.01, "lcm": 1.02, "euler": 0.99}
            gradients = {
                "same": 1.0,
                "half": {"cosine": 0.99991, "weights": 0.2},
                "half, drawn before": {"cosine": 1.0, "weights": 0.5},
            }
            gradients |= {room: {"cosine": 1.0, "weights": 1.0} for room in ("all", "hardly any")}
            trained = {"step": 0.5 + card, "bytes": 3 * gpu.GIB, "weights": 5 * gpu.GIB}
            figures = {"sampling": sampled, "gradients": gradients, "training": trained}
            figures |= {
                "matching": {**trained, "step": 1.5},
                "critic": {**trained, "step": 2.5},
                "pulls": {"same": 1.0, "hardly any": {"cosine": 0.99992, "weights": 0.1}},
                "plan": {**trained, "planned bytes": gpu.GIB, "pairs": [(0.45, 0.5), (0.5, 0.4)]},
            }
            yield "the host says something\n"
            yield gpu.MARK + json.dumps(figures[part])

    def terminate(self):
        pass

    def wait(self):
        pass


@pytest.fixture
def card(monkeypatch):
    for key, value in {"is_available": True, "device_count": CARDS, "get_device_name": "Feigned"}.items():
        monkeypatch.setattr(torch.cuda, key, lambda value=value: value)
    monkeypatch.setattr(gpu, "subprocess", types.SimpleNamespace(Popen=Feigned, PIPE=None))
    monkeypatch.setattr(Feigned, "started", [])


def test_the_book_has_every_cell_goes_on_and_tells_errors(tmp_path, card):
    gpu.main(["--folder", str(tmp_path)])
    page, parts = (tmp_path / "gpu.md").read_text(), json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(parts) == [cell.label for cell in gpu.cells()]
    assert "on 2 x Feigned" in page
    assert "| SDXL, 1024 px | fp8 | pages | 50.0 | 1.010 | 1.020 | 0.990 |" in page
    assert "| SDXL, 1024 px | bf16 | pages | 3.00 | 5.00 | 0.50 | 24.50 | 16.50 | 12.50 | 8.50 |" in page
    assert "| SDXL, 1024 px | bf16 | no pages, 2 processes | 3.00 | 5.00 | 0.50 | - | - | - | - |" in page
    assert page.count("| SDXL, 1024 px | bf16 | pages | 3.00 | 5.00 | 1.50 | 1.50 | 1.50 | 1.50 | 1.50 |") == 1
    assert "| SDXL, 1024 px | bf16 | pages | 0.50 | 0.90, 1.25 | 3.00 | 0.33 |" in page
    assert page.count("| SDXL, 1024 px | bf16 | pages | 3.00 | 5.00 | 2.50 | 2.50 | 2.50 | 2.50 | 2.50 |") == 1
    assert "| SDXL, 1024 px | bf16 | a critic | 1.000000 | - | - | 0.999920 (0.10) |" in page
    assert (
        "| SDXL, 1024 px | bf16 | a LoRA | 1.000000 | 1.000000 (1.00) | 0.999910 (0.20 to 0.50) | 1.000000 (1.00) |"
        in page
    )
    wan = "Wan 1.3B, 832 x 480, 81 frames"
    assert f"| {wan} | fp8 | pages | 3.00 | 5.00 | 0.50 | 24.50 | 16.50 | 12.50 | **error** |" in page
    assert f"- {wan}, fp8, training, pages, 8 GiB: torch.OutOfMemoryError: 80 GiB" in page


def test_what_another_card_measured_is_marked(tmp_path, card, monkeypatch):
    sdxl = ["--folder", str(tmp_path), "--models", "SDXL, 1024 px", "--weights", "bf16", "--holding", "pages"]
    gpu.main([*sdxl, "--parts", "training", "gradients", "--cards", "0", "8"])
    page = (tmp_path / "gpu.md").read_text().replace("*Pages*", "").replace("*no pages*", "").replace("*GiB*", "")
    assert "*" not in page.replace("*of weights*", "")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Another")
    gpu.main([*sdxl, "--parts", "training", "pulls", "--cards", "0", "8", "12"])
    page = (tmp_path / "gpu.md").read_text()
    assert f"on 2 x Feigned, torch {torch.__version__}, " in page
    assert f"; on 2 x Another, torch {torch.__version__}, {gpu._host()}, marked *." in page
    assert "| SDXL, 1024 px | bf16 | pages | 3.00 | 5.00 | 0.50 | - | - | 12.50* | 8.50 |" in page
    assert "| SDXL, 1024 px | bf16 | a LoRA | 1.000000 |" in page
    assert "| SDXL, 1024 px | bf16 | a critic* | 1.000000 |" in page


def test_a_process_goes_on_behind_the_cell_that_ended_the_one_before(tmp_path, card):
    gpu.main(["--folder", str(tmp_path), "--weights", "bf16", "--parts", "training"])
    asked = [json.loads(command[-1]) for command in Feigned.started]
    assert [one["options"] for one in asked] == [[]] * 2 + [["--disable-dynamic-vram"]] * 3
    assert asked[1]["cells"][0][0].startswith("Flux")
    assert ["torch.distributed.run" in command for command in Feigned.started] == [False] * 4 + [True]
    gpu.main(["--folder", str(tmp_path), "--weights", "bf16", "--parts", "training"])
    gpu.main(["--folder", str(tmp_path), "--models", "SDXL, 1024 px", "--weights", "bf16", "--parts", "training"])
    told = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert sum("error" in part["figures"] for part in told.values()) == 2, "what else an error ended stays told"
    again = [json.loads(command[-1])["cells"] for command in Feigned.started[5:]]
    wan = ["Wan 1.3B, 832 x 480, 81 frames", "bf16", "training", 8]
    assert again == [[wan], [wan]], "nothing is measured twice but what an error ended, with pages and without"


def test_a_book_of_one_card_is_started_again_without_harm(tmp_path, card, monkeypatch):
    """What wants two cards is told again, and stands as before."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for _ in range(2):
        gpu.main(["--folder", str(tmp_path), "--models", "SDXL, 1024 px", "Flux, 1024 px", "--parts", "training"])
        page = (tmp_path / "gpu.md").read_text()
        assert "| Flux, 1024 px | fp8 | no pages, 2 processes | - | - | **error** | - | - | - | - |" in page
        assert page.count("this machine has 1 card") == 6


def test_a_host_that_cannot_start_costs_no_more_than_three_cells(tmp_path, card, monkeypatch):
    monkeypatch.setattr(Feigned, "answers", lambda self: iter(()))
    with pytest.raises(SystemExit, match=r"first 3 cells all ended with: torch\.OutOfMemoryError: 80 GiB"):
        gpu.main(["--folder", str(tmp_path)])
    assert len(Feigned.started) == 3


def test_two_processes_want_two_cards(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    cell = gpu.Cell("SDXL, 1024 px", "bf16", "training", 0, "no pages", 2)
    assert gpu.Child([cell]).figures(cell) == {"error": "this machine has 1 card"}


def test_another_program_holds_what_is_not_there(monkeypatch):
    """Half a gibibyte of it is its own, and one is held by this process."""
    held = []
    other = types.SimpleNamespace(
        stdin=types.SimpleNamespace(write=lambda text: held.append(text.strip()), flush=lambda: None)
    )
    other.stdout = types.SimpleNamespace(readline=lambda: "held\n")
    monkeypatch.setattr(gpu_room.subprocess, "Popen", lambda *_, **__: other)
    taken = lambda: gpu.GIB + (gpu.GIB // 2 if held else 0) + int([text for text in held if text][-1] if held else 0)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (TOTAL - taken(), TOTAL))
    room = gpu_room.Room()
    room.leave(8.0)
    assert torch.cuda.mem_get_info()[0] == 7 * gpu.GIB
    room.leave_free(3 * gpu.GIB)
    assert torch.cuda.mem_get_info()[0] == 3 * gpu.GIB
    other.stdout = types.SimpleNamespace(readline=lambda: "CUDA error 2\n")
    with pytest.raises(MemoryError, match="CUDA error 2"):
        room.leave(8.0)
