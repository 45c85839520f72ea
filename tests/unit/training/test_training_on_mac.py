"""Trainings on a device that knows no float64 and takes no tensors from the CPU: as on the CPU, but for how sums are rounded."""

import contextlib
import dataclasses

import pytest
import torch
from comfyui_fewstep.trainers.methods.consistency import ConsistencyOptions
from comfyui_fewstep.trainers.methods.consistency_training import ConsistencyTrainingOptions
from comfyui_fewstep.trainers.methods.distribution_matching import DistributionMatchingOptions
from comfyui_fewstep.trainers.methods.guidance import GuidanceOptions
from comfyui_fewstep.trainers.methods.progressive import ProgressiveOptions, StudentPrediction
from comfyui_fewstep.trainers.objective.method import TeacherKind
from comfyui_fewstep.trainers.objective.weighting import Weighting
from comfyui_fewstep.trainers.storage.export import read_student
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.adapters import Adapters
from comfyui_fewstep.trainers.students.student import FullWeightsStudent, LoRAStudent
from comfyui_fewstep.trainers.training.distillation import Distillation
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from gaussian import FAMILIES, table
from gpu import GPU, gpu
from process_worker import LORA, Network, data

SHORT = {"iterations": 2, "learning_rate": 1e-3}
GUIDED = {**SHORT, "guidance_scale": 2.0}
MATCHING = {**GUIDED, "companion_updates": 1, "companion_first": 1, "companion_learning_rate": 1e-3}
METHODS = {
    "progressive": ProgressiveOptions(start_steps=8, target_steps=4, weighting=Weighting.TRUNCATED_SNR, **GUIDED),
    "converting": ProgressiveOptions(
        start_steps=4, target_steps=2, weighting=Weighting.CONSTANT, student_prediction=StudentPrediction.X0, **GUIDED
    ),
    "guidance": GuidanceOptions(**GUIDED),
    "consistency": ConsistencyOptions(steps=2, levels=8, target_decay=0.9, **GUIDED),
    "consistency training": ConsistencyTrainingOptions(steps=2, first_levels=4, last_levels=8, **SHORT),
}
FORMS = {
    "critic": {"steps": 1, "adversarial_weight": 1.0, "critic_learning_rate": 1e-3},
    "segments": {"steps": 2, "rollout": "segments"},
    "landings": {"steps": 2, "rollout": "landings"},
    "deterministic": {"steps": 2, "rollout": "deterministic"},
}


MATCHED = {name: DistributionMatchingOptions.read(given | MATCHING) for name, given in FORMS.items()}


def as_denoiser(network):
    return lambda x, sigma, y: network.denoiser(x, sigma, y)


@contextlib.contextmanager
def student_on(device, *, kind):
    network = Network().to(device)
    if kind == "full":
        yield FullWeightsStudent(network, Network(seed=1).to(device), as_denoiser=as_denoiser)
        return
    with Adapters(network.requires_grad_(False).core, LORA) as adapters:
        names = {path: f"lora_unet_{path.replace('.', '_')}" for path in adapters.paths}
        yield LoRAStudent(adapters, LORA, denoise=as_denoiser(network), names=names, seed=5)


def trained(root, method, *, device="cpu", kind="full"):
    """The tensors of the student's file."""
    made = Distillation(
        run=RunFolder(root, "run"),
        method=method,
        data=dataclasses.replace(data(), batch_device=torch.device(device)),
        options=TrainOptions(batch_size=4, log_every=1, checkpoint_every=1, seed=4, ema_decay=0.9, caption_dropout=0.2),
        teacher_sha256="a" * 64,
        prediction_type="eps",
        student={"kind": kind, **dataclasses.asdict(LORA), "layers": "linear"},
    )
    with made.run.locked(), student_on(device, kind=kind) as student:
        made.execute(student)
    return read_student(made.run.student_file)[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("kind", "chosen"),
    [pytest.param("full", one, id=name) for name, one in METHODS.items()]
    + [pytest.param("lora", one, id=name) for name, one in MATCHED.items()],
)
def test_every_method_trains_on_a_mac(kind, chosen, family, tmp_path):
    """From its first iteration to the student's file, with the comparison that ends a stage."""
    method = chosen.on(TeacherKind(family=family, table=table(family), empty_prompt=True, prediction_type="eps"))
    with gpu():
        found = trained(tmp_path / "mac", method, device=GPU, kind=kind)
    for name, value in trained(tmp_path / "cpu", method, kind=kind).items():
        torch.testing.assert_close(found[name], value)
