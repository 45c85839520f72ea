"""Out of memory: the message names what to lower, and nothing of the run is kept alive by the error."""

import weakref

import pytest
import torch
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from comfyui_fewstep.trainers.training.out_of_memory import OutOfMemory, naming_what_to_lower

LORA = {"kind": "lora", "rank": 32}
ERRORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried 4 bytes"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: not enough memory: you tried 4 bytes"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:60])
def test_every_devices_error_is_explained(error):
    options = TrainOptions(batch_size=8, accumulation=2)
    with pytest.raises(OutOfMemory) as caught, naming_what_to_lower(options, student=LORA):
        raise error
    said = str(caught.value)
    for part in ("gradient_checkpointing on", "accumulation (it is 2)", "batch_size (it is 8)", "rank (it is 32)"):
        assert part in said
    assert "precision to bfloat16 (it is as_loaded)" in said
    assert (str(error).split("\n")[0] or "MemoryError") in said
    assert caught.value.__cause__ is error
    assert isinstance(caught.value, torch.cuda.OutOfMemoryError), "as hosts know it"


def test_what_would_not_help_is_not_advised():
    options = TrainOptions(batch_size=1, precision="bfloat16", gradient_checkpointing=True)
    with pytest.raises(OutOfMemory) as caught, naming_what_to_lower(options, student={"kind": "full_weights"}):
        raise ERRORS[0]
    said = str(caught.value)
    assert not any(
        part in said for part in ("gradient_checkpointing", "accumulation", "batch_size", "precision", "rank")
    )
    assert "train a LoRA, not full weights" in said


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyboardInterrupt(), ValueError("out of memory")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, naming_what_to_lower(TrainOptions(), student=LORA):
        raise error
    assert caught.value is error


def test_the_error_keeps_nothing_of_the_run():
    held = []

    def step():
        graph = torch.ones(1000)
        held.append(weakref.ref(graph))
        raise ERRORS[0]

    with pytest.raises(OutOfMemory) as caught, naming_what_to_lower(TrainOptions(), student=LORA):
        step()
    assert held[0]() is None
    assert caught.value.__cause__.__traceback__ is not None, "the log still says where"
