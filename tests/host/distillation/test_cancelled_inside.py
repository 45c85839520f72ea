"""A host that looks for a cancel in every operation of a network, as those of today do."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.model_management
import comfy.ops
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.demo import digits
from comfyui_fewstep.nodes.distillation import distillation
from comfyui_fewstep.nodes.distillation.fast import make_it_fast
from comfyui_fewstep.nodes.distillation.learning import methods
from comfyui_fewstep.nodes.host import folders
from making_data import TRAINING
from test_lora import output  # noqa: F401 (a fixture)


@torch.inference_mode()
def train(teacher):
    latents, labels = digits.DigitsData().load()
    given = {"start_steps": 4, "target_steps": 2, "iterations": 12, "guidance_scale": 1.5}
    (method,) = methods.ProgressiveDistillation().make(weighting="constant", learning_rate=1e-3, **given)
    negative = digits.DigitPrompt().encode("")[0]
    data = {"latents": latents, "positive": labels, "negative": negative}
    return distillation.Distill().distil(teacher, method=method, run_name="run", **TRAINING, **data)


def test_a_cancel_amid_an_iteration_waits_for_its_end_and_the_state_is_saved(output, monkeypatch):  # noqa: F811
    look = comfy.model_management.throw_exception_if_processing_interrupted
    monkeypatch.setattr(comfy.ops, "run_every_op", look, raising=False)
    (teacher, *_), calls = digits.DemoTeacher().load(), []
    run = folders.run_named("run")

    def every_operation(*_):
        calls.append((run.path / "data").exists() and torch.is_grad_enabled())
        if calls[-1] and sum(calls) == 6:  # the student's forward, after those of the probes
            comfy.model_management.interrupt_current_processing()
        comfy.ops.run_every_op()

    with teacher.model.diffusion_model.register_forward_pre_hook(every_operation):
        with pytest.raises(host.signals.Cancelled):
            train(teacher)
        assert sum(calls) >= 6
        assert comfy.ops.run_every_op is look, "the host has its own back"
        assert run.checkpoints()
        saved = run.load_checkpoint()[1]
        assert 0 < saved["stage_iteration"] < 12
        train(teacher)
    assert run.finished


@pytest.mark.skipif(
    not hasattr(make_it_fast.MakeItFast, "IS_CHANGED"), reason="this host cannot be asked whether a node changed"
)
def test_make_it_fast_says_whether_its_result_is_still_there(output):  # noqa: F811
    asked = make_it_fast.MakeItFast.IS_CHANGED
    assert asked(run_name="run", steps="4") != asked(run_name="run", steps="4"), "nothing is there"
    train(digits.DemoTeacher().load()[0])
    assert asked(run_name="run", steps="4") == asked(run_name="run", steps="4")
