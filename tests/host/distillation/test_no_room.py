"""The plan of a run of which not even one picture fits: words, where a terminal showed the device's own error."""

import dataclasses

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import conditioning, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation import planning, running
from comfyui_fewstep.trainers.data.batches import Batch
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from comfyui_fewstep.trainers.training.trial import Rehearsal
from making_data import method_and_lora


def full(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("checkpointing", "said"),
    [
        (
            False,
            r"one picture at a time wants more than there is .* are free\. Switch gradient_checkpointing on, take smaller",
        ),
        (
            True,
            r"one picture at a time, with gradient checkpointing, wants more than there is .* are free\. Take smaller",
        ),
    ],
)
def test_of_a_run_as_it_is(checkpointing, said, output, monkeypatch):
    for trial in ("through", "costs"):
        monkeypatch.setattr(Rehearsal, trial, full)
    model, (method, lora) = tiny("sd15"), method_and_lora()
    prompt = conditioning("sd15", seed=0)
    with torch.inference_mode(False):
        x0 = torch.zeros(1, 4, 8, 8)
        condition = host.inputs.condition_for_training(model, prompt, latents=x0, name="positive")
        sample = Batch(x0, condition, None, condition)
        resolved = running.method_on(model, method, empty_prompt=True)
        trial = planning.Trial(
            model=model, run=host.folders.run_named("run"), method=resolved, student=lora, sample=sample
        )
        options = dataclasses.replace(TrainOptions(batch_size=2), gradient_checkpointing=checkpointing)
        with pytest.raises(ValueError, match=said):
            planning.planned(trial, options)
